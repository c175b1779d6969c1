"""A unified model as a pure function of its parameters: abstract shapes, shardings, initialization.

Parameters are nested dicts of arrays everywhere outside the model; ``ModelDefinition.bind`` puts them back into
modules.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
from flax import nnx
from jax.sharding import Mesh

from unihetero_jax.config import Config, DecoderConfig, LoraConfig
from unihetero_jax.model import lora
from unihetero_jax.model.language_model import LanguageModel
from unihetero_jax.model.unified import UnifiedModel
from unihetero_jax.parallel.mesh import RULES, Rules
from unihetero_jax.parallel.module_definition import ModelDefinition, Params, define_module


@dataclass(frozen=True)
class LoraDefinition(ModelDefinition[UnifiedModel]):
    """A model with LoRA factors beside some of its linear layers; it binds parameters without them too."""

    config: LoraConfig
    targets: tuple[lora.Target, ...]

    def init(self, key: jax.Array) -> Params:
        """Initialize parameters from a key: those of the model alone are the same with and without LoRA."""
        return {**super().init(key), lora.LORA: lora.init(self.targets, self.config.rank, key)}

    def bind(self, params: Params, dropout_key: jax.Array | None = None) -> UnifiedModel:
        """Build the model with these parameters; dropout on the factors' input only with a key."""
        model = super().bind({name: value for name, value in params.items() if name != lora.LORA})
        if lora.LORA in params:
            lora.adapt(model, self.targets, params[lora.LORA], self.config, dropout_key)
        return model

    def shapes(self) -> Params:
        """Return the shape and type of each parameter."""
        return {**super().shapes(), lora.LORA: lora.shapes(self.targets, self.config.rank)}

    def shardings(self, mesh: Mesh, rules: Rules = RULES) -> Params:
        """Return the sharding of each parameter."""
        return {
            **super().shardings(mesh, rules),
            lora.LORA: lora.shardings(self.targets, self.config.rank, mesh, rules),
        }


def define(config: Config, vocabulary: int) -> ModelDefinition[UnifiedModel]:
    """Return the definition of a config's model.

    Raises:
      UsageError: a pattern of ``config.model.lora.targets`` that matches nothing.
    """
    plain = define_module(lambda rngs: UnifiedModel(config, vocabulary, rngs=rngs))
    settings = config.model.lora
    if not settings.rank:
        return plain
    targets = lora.find_targets(nnx.merge(plain.graph, plain.abstract), settings)
    return LoraDefinition(plain.create, plain.graph, plain.abstract, settings, targets)


def define_language_model(config: DecoderConfig, vocabulary: int) -> ModelDefinition[LanguageModel]:
    """Return the definition of a decoder that stands alone."""
    return define_module(lambda rngs: LanguageModel(config, vocabulary, rngs=rngs))
