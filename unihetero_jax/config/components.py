"""The registries of components, and what the config sections of each sort have in common.

Built-in components are found by name in the registry's package; a user's own by the file that registers them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from unihetero_jax.config.constraints import NonNegativeFloat
from unihetero_jax.config.registry import Registry

TOWERS: Registry[Any] = Registry("tower", "unihetero_jax.towers", module="network")
LOSSES: Registry[Any] = Registry("loss", "unihetero_jax.losses", module="loss")
EVALUATORS: Registry[Any] = Registry("evaluator", "unihetero_jax.evaluate", module="evaluator")
SOURCES: Registry[Any] = Registry("data source", "unihetero_jax.data.sources", module="source", default="shards")
IMPORTERS: Registry[Any] = Registry("importer", "unihetero_jax.data.importers", module="importer")
OPTIMIZERS: Registry[Any] = Registry("optimizer", "unihetero_jax.train.optimizers", module="optimizer")
ATTENTION: Registry[Any] = Registry("attention implementation", "unihetero_jax.model.attention", others=("auto",))
DECODER_FAMILIES: Registry[Any] = Registry("decoder family", "unihetero_jax.model.families")


@dataclass(frozen=True)
class Part:
    """FLOPs of one part of the model in a step's forward pass.

    Attributes:
      name: of the part.
      forward: FLOPs of the forward pass over the global batch.
      backward: FLOPs of the backward pass, as a multiple of ``forward``.
      again: forward passes that the backward pass repeats to save memory.
      dense: what the program computes for one FLOP that is counted: 2 for causal attention over full rows.
      kernel: whether a kernel does it, inside which the compiler counts nothing.
    """

    name: str
    forward: float
    backward: float
    again: float = 0.0
    dense: float = 1.0
    kernel: bool = False

    @property
    def model(self) -> float:
        """FLOPs that training needs."""
        return self.forward * (1 + self.backward)

    @property
    def executed(self) -> float:
        """FLOPs that the program does."""
        return self.forward * self.dense * (1 + self.backward + self.again)


@dataclass(frozen=True)
class LossConfig:
    """What every loss has in common.

    Attributes:
      weight: factor on the loss; 0 leaves out the loss and its head.
    """

    kind: ClassVar[str]
    # What the loss's head can generate on a visual slot: one of config.model.generation, or nothing.
    generates: ClassVar[str] = ""

    weight: NonNegativeFloat = 1.0

    @property
    def reaches_decoder(self) -> bool:
        """Whether the decoder learns from the loss."""
        return True

    @property
    def teacher_decay(self) -> float | None:
        """Decay of the moving average of tower and adapter that gives the loss its targets; None without one."""
        return None

    @property
    def null_condition(self) -> bool:
        """Whether the head knows a null condition that generation can be guided away from."""
        return False

    def without_teacher(self) -> LossConfig:
        """The same loss with the model's own targets, for evaluations."""
        return self

    def check_with(self, config: Any, key: str) -> None:
        """Refuse values that contradict the rest of the config.

        Args:
          config: the whole config.
          key: where the section is.

        Raises:
          UsageError: naming the key and what would be right.
        """

    def work(self, config: Any, vocabulary: int, embeddings_trained: bool) -> list[Part]:
        """FLOPs of the loss and its head over the global batch, for MFU.

        Args:
          config: the whole config.
          vocabulary: rows of the decoder's output table.
          embeddings_trained: whether the output table learns.
        """
        del config, vocabulary, embeddings_trained
        return []


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
