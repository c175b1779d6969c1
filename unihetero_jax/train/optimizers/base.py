"""What surrounds every optimizer's update rule: clipping, weight decay, the learning rate, and factors by group.

A registered optimizer is a function of its config section that returns an ``optax.GradientTransformation`` from
gradients to a direction of ascent; it need not know any of this.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from unihetero_jax.config import OptimizerConfig, ParameterGroupConfig
from unihetero_jax.config.components import OPTIMIZERS
from unihetero_jax.parallel.parameter_paths import Path, map_with_path
from unihetero_jax.train.learning_rate import learning_rate_schedule


def make_optimizer(
    config: OptimizerConfig,
    steps: int,
    group: Callable[[Path], ParameterGroupConfig] = lambda path: ParameterGroupConfig(),
) -> optax.GradientTransformation:
    """Build the optimizer of a run, for its trained parameters.

    Weight decay is decoupled (arXiv 1711.05101, algorithm 2). Scales of norms and biases do not decay, also where
    layers are stacked and they have the shape of a matrix.

    Args:
      config: the section of a registered optimizer.
      steps: length of the run.
      group: settings of a parameter, by its path.
    """

    def decay(path: Path, update: jax.Array, param: jax.Array) -> jax.Array:
        strength = config.weight_decay * group(path).weight_decay_factor
        if not strength or param.ndim < 2 or str(path[-1]).endswith(("scale", "bias")):
            return update
        return update + strength * param

    def scale(path: Path, update: jax.Array) -> jax.Array:
        return update * group(path).learning_rate_factor

    rule = optax.chain(
        OPTIMIZERS.find(config.kind, "config.optimizer")(config),
        optax.stateless(lambda updates, params: map_with_path(decay, updates, params)),
        optax.scale_by_learning_rate(learning_rate_schedule(config, steps)),
        optax.stateless(lambda updates, _: map_with_path(scale, updates)),
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule) if config.clip_norm else rule
