"""The planned step timed on the devices of this process."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unihetero_jax.config import Config
from unihetero_jax.errors import UsageError
from unihetero_jax.model.attention.base import platform
from unihetero_jax.parallel.mesh import make_mesh, sharding
from unihetero_jax.plan.hardware import Hardware
from unihetero_jax.plan.lowering import batch_shapes, lower
from unihetero_jax.train.state import initial_state

_WARMUP_STEPS, _TIMED_STEPS = 2, 5
# Value of each array of the batch, where it is not 0: full rows of one segment, without images.
_BATCH_VALUES = {"segment": 1, "role": 3, "image": -1, "patch": -1, "text_weight": 1}


def check_devices(hardware: Hardware) -> None:
    """Check that the planned devices are available to this process.

    Args:
      hardware: the hardware of the plan.

    Raises:
      UsageError: fewer devices, or others, are available.
    """
    here = jax.devices()
    if platform(None) != hardware.chip.platform or len(here) < hardware.chips:
        raise UsageError(
            f"--measure: {hardware.chips} {hardware.chip.platform} devices are needed for --topology={hardware.name}, "
            f"here are {len(here)} {here[0].platform}"
        )


def median_step_seconds(config: Config, vocabulary: int, hardware: Hardware) -> float:
    """Return the median time of a few steps on a constant batch, which costs as much as a real one.

    Args:
      config: the run's configuration.
      vocabulary: number of token ids.
      hardware: the hardware of the plan.

    Raises:
      UsageError: the planned devices are not available to this process.
    """
    check_devices(hardware)
    mesh = make_mesh(config.mesh, jax.devices()[: hardware.chips])
    lowered, abstract = lower(config, vocabulary, mesh)
    step = lowered.compile()
    state = jax.jit(lambda: initial_state(abstract.learner, abstract.optimizer), out_shardings=abstract.shardings)()

    def filled(name: str, shape: Any) -> jax.Array:
        return jax.device_put(jnp.full(shape.shape, _BATCH_VALUES.get(name, 0), shape.dtype), shape.sharding)

    batch = {name: filled(name, shape) for name, shape in batch_shapes(config, sharding(mesh, "batch")).items()}
    seconds = []
    for _ in range(_WARMUP_STEPS + _TIMED_STEPS):
        started = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[_WARMUP_STEPS:]))
