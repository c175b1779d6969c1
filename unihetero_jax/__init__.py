"""unihetero_jax: a pretraining stack for unified vision-language models, in JAX and Flax NNX."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unihetero_jax.run.opened import Run

__version__ = "0.1.0"


def open_run(workdir: str | Path) -> Run:
    """Open a run's workdir: config, metrics as a table, parameters, predict functions (``unihetero_jax.run.opened``).

    Args:
      workdir: of ``unihetero train`` or ``unihetero towers train``.

    Raises:
      UsageError: there is no run.
    """
    # Imported here, so that ``import unihetero_jax`` costs nothing.
    from unihetero_jax.run import opened as run

    return run.open_run(workdir)
