"""Training as a whole: the run's components are checked, it is trained, and evaluated at its end."""

from __future__ import annotations

from pathlib import Path

from unihetero_jax.config import Config
from unihetero_jax.run import evaluate_tower, evaluation
from unihetero_jax.run.train_model import train_model
from unihetero_jax.run.train_tower import train_tower
from unihetero_jax.train.towers.config import TowerRunConfig


def train(config: Config | TowerRunConfig, workdir: str | Path, accept_changed_imports: bool = False) -> int:
    """Train in a workdir, or continue the run that is there, and evaluate it at its end.

    What happens is that of ``unihetero train``, or of ``unihetero towers train``; the run is opened by ``open_run``.

    Args:
      config: the run's configuration, as ``unihetero_jax.config.load`` returns it.
      workdir: the directory of the run; made if it is not there.
      accept_changed_imports: continue with components of ``config.imports`` that have changed since the run began.

    Returns:
      0 when the run is complete; 75 when a signal stopped it, or another host or a data worker was lost, and the same
      call continues it; 1 when the loss was not finite.

    Raises:
      UsageError: the workdir belongs to another run or cannot be written, or the dataset, the mesh or an evaluator's
        tools do not fit.
    """
    place = Path(workdir)
    if isinstance(config, TowerRunConfig):
        return train_tower(config, place, evaluate_tower.finish)
    evaluation.check(config)
    return train_model(config, place, evaluation.finish, accept_changed_imports)
