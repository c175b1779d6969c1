"""A unified model as a pure function of its parameters: abstract shapes, shardings, initialisation.

Parameters are nested dicts of arrays everywhere outside the model; ``ModelDefinition.bind`` puts them back into
modules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from unihetero_jax.config import Config, DecoderConfig, LoraConfig
from unihetero_jax.model import lora
from unihetero_jax.model.initial_values import initial_values
from unihetero_jax.model.language import LanguageModel
from unihetero_jax.model.unified import UnifiedModel
from unihetero_jax.parallel.mesh import RULES, Rules

Params = dict[str, Any]
Module = TypeVar("Module", bound=nnx.Module)


@dataclass(frozen=True)
class ModelDefinition(Generic[Module]):
    """The model without its numbers."""

    create: Callable[[nnx.Rngs], Module]
    graph: Any
    abstract: nnx.State

    def init(self, key: jax.Array) -> Params:
        """Parameters for a key, each from the key and its path; pure, the same whatever sharding it is compiled for."""
        return initial_values(self.create, key)

    def bind(self, params: Params, dropout_key: jax.Array | None = None) -> Module:
        """The model with these parameters; ``dropout_key`` is for the dropout of LoRA, where there is any."""
        del dropout_key
        # A copy of the tree's structure, so that the shared abstract state is never filled in.
        state = jax.tree.map(lambda leaf: leaf, self.abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self.graph, state)

    def shapes(self) -> Params:
        """Shape and type of each parameter."""
        return nnx.to_pure_dict(self.abstract)

    def shardings(self, mesh: Mesh, rules: Rules = RULES) -> Params:
        """Where each parameter lives, from the logical axes that it carries."""

        def place(variable: nnx.Param) -> Any:
            shape = variable.get_value().shape
            axes = variable.get_metadata()["axes"]
            if len(axes) < len(shape):  # a stack of layers
                axes = ("layers", *axes)
            return variable.replace(NamedSharding(mesh, rules.spec(axes, shape, mesh)))

        return nnx.to_pure_dict(jax.tree.map(place, self.abstract, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)))


@dataclass(frozen=True)
class LoraDefinition(ModelDefinition[UnifiedModel]):
    """A model with factors beside some of its linears; without them in the parameters, the model they belong to."""

    config: LoraConfig
    targets: tuple[lora.Target, ...]

    def init(self, key: jax.Array) -> Params:
        """Parameters for a key: those of the model alone are the same with and without LoRA."""
        return {**super().init(key), lora.LORA: lora.init(self.targets, self.config.rank, key)}

    def bind(self, params: Params, dropout_key: jax.Array | None = None) -> UnifiedModel:
        """The model with these parameters; dropout on the factors' input only with a key."""
        model = super().bind({name: value for name, value in params.items() if name != lora.LORA})
        if lora.LORA in params:
            lora.adapt(model, self.targets, params[lora.LORA], self.config, dropout_key)
        return model

    def shapes(self) -> Params:
        """Shape and type of each parameter."""
        return {**super().shapes(), lora.LORA: lora.shapes(self.targets, self.config.rank)}

    def shardings(self, mesh: Mesh, rules: Rules = RULES) -> Params:
        """Where each parameter lives."""
        return {
            **super().shardings(mesh, rules),
            lora.LORA: lora.shardings(self.targets, self.config.rank, mesh, rules),
        }


def define(config: Config, vocabulary: int) -> ModelDefinition[UnifiedModel]:
    """The definition of a config's model.

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
    """The definition of a decoder that stands alone."""
    return define_module(lambda rngs: LanguageModel(config, vocabulary, rngs=rngs))


def define_module(create: Callable[[nnx.Rngs], Module]) -> ModelDefinition[Module]:
    """The definition of the module that ``create`` makes; nothing is computed."""
    graph, abstract = nnx.split(nnx.eval_shape(lambda: create(nnx.Rngs(0))), nnx.Param)
    return ModelDefinition(create, graph, abstract)
