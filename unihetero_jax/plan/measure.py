"""The step that a plan is of, run on the devices that are here."""

from __future__ import annotations

import time
from typing import Any

from unihetero_jax.config import Config
from unihetero_jax.errors import UsageError
from unihetero_jax.plan.hardware import Hardware

_WARM, _TIMED = 2, 5


def check_devices(hardware: Hardware) -> None:
    """Refuses hardware that is not here.

    Raises:
      UsageError: there are not as many devices here as the plan is for.
    """
    import jax

    from unihetero_jax.model.attention.base import platform

    here = jax.devices()
    if platform(None) != hardware.chip.platform or len(here) < hardware.chips:
        raise UsageError(
            f"--measure: {hardware.chips} {hardware.chip.platform} devices are needed for --topology={hardware.name}, "
            f"here are {len(here)} {here[0].platform}"
        )


def measured_seconds(config: Config, vocabulary: int, hardware: Hardware) -> float:
    """The median of a few steps on a batch of empty rows, whose cost is that of full ones.

    Raises:
      UsageError: there are not as many devices here as the plan is for.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    check_devices(hardware)
    from unihetero_jax.model.build import define
    from unihetero_jax.parallel.mesh import make_mesh, sharding
    from unihetero_jax.plan.compiling import batch_shapes
    from unihetero_jax.train.state import initial_state, state_shardings
    from unihetero_jax.train.step import compile_step, make_step
    from unihetero_jax.train.unified import UnifiedLearner

    mesh = make_mesh(config.mesh, jax.devices()[: hardware.chips])
    learner = UnifiedLearner(config, define(config, vocabulary))
    optimizer = learner.optimizer()
    _, places = state_shardings(learner, optimizer, mesh)
    state = jax.jit(lambda: initial_state(learner, optimizer), out_shardings=places)()
    shapes = batch_shapes(config, sharding(mesh, "batch"))

    def filled(name: str, shape: Any) -> Any:
        value = {"segment": 1, "role": 3, "image": -1, "patch": -1, "text_weight": 1}.get(name, 0)
        return jax.device_put(jnp.full(shape.shape, value, shape.dtype), shape.sharding)

    batch = {name: filled(name, shape) for name, shape in shapes.items()}
    step = compile_step(make_step(learner, optimizer, mesh), places, mesh).lower(state, batch).compile()
    seconds = []
    for _ in range(_WARM + _TIMED):
        started = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[_WARM:]))
