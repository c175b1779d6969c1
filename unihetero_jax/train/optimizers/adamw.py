"""AdamW (arXiv 1711.05101)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from unihetero_jax.config.components import OPTIMIZERS
from unihetero_jax.config.constraints import Fraction, PositiveFloat
from unihetero_jax.config.optimizer import OptimizerConfig


@dataclass(frozen=True)
class AdamWConfig(OptimizerConfig):
    """AdamW. The second moment stays float32: bfloat16 is too coarse for its steps of (1 − beta2) of itself.

    Attributes:
      beta1: decay of the first moment.
      beta2: decay of the second moment.
      epsilon: added to the root of the second moment.
      first_moment_dtype: type of the first moment; bfloat16 saves two bytes per parameter.
    """

    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    epsilon: PositiveFloat = 1e-8
    first_moment_dtype: Literal["float32", "bfloat16"] = "float32"


@OPTIMIZERS.register("adamw", config=AdamWConfig)
def adamw(config: AdamWConfig) -> Any:
    """Return Adam's update rule as an optax transformation."""
    import optax  # imports JAX, which the section has to do without

    return optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon, mu_dtype=config.first_moment_dtype)
