"""Muon (https://kellerjordan.github.io/posts/muon): orthogonalized momentum for matrices.

Everything else has AdamW with Nesterov momentum, as in optax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from unihetero_jax.config.components import OPTIMIZERS
from unihetero_jax.config.constraints import Fraction, PositiveFloat, PositiveInt
from unihetero_jax.config.optimizer import OptimizerConfig

if TYPE_CHECKING:
    import jax


@dataclass(frozen=True)
class MuonConfig(OptimizerConfig):
    """Muon, for the kernels of linear maps; embeddings, output head, positions, biases and scales are AdamW's.

    An update of a matrix has the size of one of AdamW's (arXiv 2502.16982), so both share the learning rate.

    Attributes:
      momentum: decay of the average of the gradients that is orthogonalized.
      iterations: steps of the Newton–Schulz iteration.
      update_rms: root mean square of an update of a matrix, before the learning rate.
      beta1: AdamW's decay of the first moment.
      beta2: AdamW's decay of the second moment.
      epsilon: AdamW's, added to the root of the second moment.
      momentum_dtype: type of the momentum and of AdamW's first moment; bfloat16 saves two bytes per parameter.
    """

    momentum: Fraction = 0.95
    iterations: PositiveInt = 5
    update_rms: PositiveFloat = 0.2
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    epsilon: PositiveFloat = 1e-8
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"


@OPTIMIZERS.register("muon", config=MuonConfig)
def muon(config: MuonConfig) -> Any:
    """Return Muon's update rule as an optax transformation."""
    # They import JAX, which the section has to do without.
    import jax
    from optax.contrib import MuonDimensionNumbers
    from optax.contrib import muon as rule

    def dimensions(params: Any) -> Any:
        def of(keys: Any, leaf: jax.Array) -> MuonDimensionNumbers | None:
            sides = matrix_axes(tuple(key.key for key in keys), leaf.ndim)
            return sides and MuonDimensionNumbers(*sides)

        return jax.tree.map_with_path(of, params)

    # Its learning rate is that of a descent; what surrounds every rule multiplies by the schedule and turns the sign.
    return rule(
        -1.0,
        ns_steps=config.iterations,
        beta=config.momentum,
        eps=config.epsilon,
        mu_dtype=config.momentum_dtype,
        adam_b1=config.beta1,
        adam_b2=config.beta2,
        muon_weight_dimension_numbers=dimensions,
        consistent_rms=config.update_rms,
    )


def matrix_axes(path: tuple[str | int, ...], ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the axes that a kernel sums over and those of its result; None for what is no linear map.

    Args:
      path: of the parameter.
      ndim: its axes; in stacked ``layers`` the first one is the layer, and attention's kernels have one for the heads
        beside the width of a head.
    """
    stacked = "layers" in path[:-1]
    axes = tuple(range(int(stacked), ndim))
    if path[-1] != "kernel" or len(axes) < 2:
        return None
    # Attention's output kernel [H, h, D] sums over the heads; the heads are the result of the others [D, H, h].
    # A convolution's [h, w, in, out] sums over all but the last.
    inner = len(axes) - 1 if path[-2] == "output" or len(axes) > 3 else 1
    return axes[:inner], axes[inner:]
