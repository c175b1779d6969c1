"""The registries of components, and what the config sections of each sort have in common.

Built-in components are found by name in the registry's package; a user's own by the file that registers them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from unihetero_jax.config.registry import Registry

TOWERS: Registry[Any] = Registry("tower", "unihetero_jax.towers", module="network")
LOSSES: Registry[Any] = Registry("loss", "unihetero_jax.losses", module="loss")
EVALUATORS: Registry[Any] = Registry("evaluator", "unihetero_jax.evaluate", module="evaluator")
SOURCES: Registry[Any] = Registry("data source", "unihetero_jax.data.sources", module="source", default="shards")
IMPORTERS: Registry[Any] = Registry("importer", "unihetero_jax.data.importers", module="importer")
OPTIMIZERS: Registry[Any] = Registry("optimizer", "unihetero_jax.train.optimizers", module="optimizer")
ATTENTION: Registry[Any] = Registry("attention implementation", "unihetero_jax.model.attention")
DECODER_FAMILIES: Registry[Any] = Registry("decoder family", "unihetero_jax.model.families")


@dataclass(frozen=True)
class EvaluatorConfig:
    """What the config sections of all evaluators have in common."""

    kind: ClassVar[str] = ""

    def check_files(self, key: str) -> None:
        """Refuse files that are missing or hold something else, before a training that ends with the evaluation.

        Args:
          key: of the section, for error messages.

        Raises:
          UsageError: naming the key and what was expected.
        """
