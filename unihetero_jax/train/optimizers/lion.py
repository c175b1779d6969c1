"""Lion (arXiv 2302.06675): the sign of a moving average, so one moment instead of AdamW's two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from unihetero_jax.config.components import OPTIMIZERS
from unihetero_jax.config.constraints import Fraction, PositiveFloat
from unihetero_jax.config.optimizer import OptimizerConfig


@dataclass(frozen=True)
class LionConfig(OptimizerConfig):
    """Lion. Its updates are larger than AdamW's: a learning rate 3 to 10 times lower fits, with as much more decay.

    Attributes:
      learning_rate: peak of the schedule.
      beta1: share of the moment in the direction of an update.
      beta2: decay of the moment.
      moment_dtype: type of the moment; bfloat16 saves two bytes per parameter.
    """

    learning_rate: PositiveFloat = 3e-4
    beta1: Fraction = 0.9
    beta2: Fraction = 0.99
    moment_dtype: Literal["float32", "bfloat16"] = "float32"


@OPTIMIZERS.register("lion", config=LionConfig)
def lion(config: LionConfig) -> Any:
    """Return Lion's update rule as an optax transformation."""
    import optax  # imports JAX, which the section has to do without

    return optax.scale_by_lion(b1=config.beta1, b2=config.beta2, mu_dtype=config.moment_dtype)
