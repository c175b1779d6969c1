"""What every optimizer's config section has: learning rate, decay, clipping, and factors by group of parameters.

The section of one optimizer adds its own fields and stands with it in ``unihetero_jax.train.optimizers``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from unihetero_jax.config.constraints import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat
from unihetero_jax.config.tree import Table
from unihetero_jax.errors import UsageError, nearest

# Parts of the unified model; ``model.groups`` maps each parameter to one of them.
GROUPS = ("decoder", "embeddings", "adapters", "heads", "towers", "lora")


@dataclass(frozen=True)
class ParameterGroupConfig:
    """How the parameters of one group are trained.

    Attributes:
      learning_rate_factor: factor on the learning rate.
      weight_decay_factor: factor on the weight decay.
      frozen: keep the parameters as they are: they get no gradient and no optimizer state.
    """

    learning_rate_factor: float = 1.0
    weight_decay_factor: NonNegativeFloat = 1.0
    frozen: bool = False

    def check(self, key: str) -> None:
        """Refuse a learning rate of 0, which is not how a group is frozen."""
        if self.learning_rate_factor <= 0:
            raise UsageError(
                f"{key}.learning_rate_factor={self.learning_rate_factor}: expected a value above 0; to leave the group "
                f"as it is, set {key}.frozen=True"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule: linear warm-up, then down to a fraction of the peak.

    Attributes:
      learning_rate: peak of the schedule.
      warmup_steps: steps from 0 to the peak; the first step already learns.
      schedule: shape of the decay after the warm-up.
      final_fraction: share of the peak at the last step.
      weight_decay: decoupled decay, times the learning rate; scales of norms and biases do not decay.
      clip_norm: largest global norm of the gradient; 0: no clipping.
      frozen_dtype: type that frozen parameters are stored as.
      groups: settings of a part of the model: ``decoder`` (layers and final norm), ``embeddings`` (of tokens, and the
        output head), ``adapters`` (with the visual positions), ``heads`` (of the visual losses), ``towers`` (all of
        them), ``lora`` (the factors).
    """

    kind: ClassVar[str]

    learning_rate: PositiveFloat = 2e-3
    warmup_steps: NonNegativeInt = 20
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_fraction: Fraction = 0.0
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: NonNegativeFloat = 1.0
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    groups: dict[str, ParameterGroupConfig] = field(default_factory=Table)

    def check(self, key: str) -> None:
        """Refuse groups that the model does not have."""
        for name in self.groups:
            if name not in GROUPS:
                raise UsageError(
                    f"unknown config key {key}.groups.{name}: expected one of {', '.join(GROUPS)}"
                    f"{nearest(name, GROUPS)}"
                )
