"""What ``unihetero train``, ``eval`` and ``generate`` do, as functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from unihetero_jax.config import Config
from unihetero_jax.generate.requests import Generated
from unihetero_jax.run import evaluate_tower, evaluation, generation
from unihetero_jax.run.train_model import train_model
from unihetero_jax.run.train_tower import train_tower
from unihetero_jax.train.towers.base import TowerRunConfig


def train(config: Config | TowerRunConfig, workdir: str | Path, *, accept_changed_imports: bool = False) -> int:
    """Train in a workdir, or continue the run that is there, and evaluate it at its end.

    Args:
      config: the run's configuration, as ``unihetero_jax.config.load`` returns it.
      workdir: the directory of the run; made if it is not there. ``open_run`` reads it.
      accept_changed_imports: continue with components of ``config.imports`` that have changed since the run began.

    Returns:
      0 when the run is complete; 75 when a signal stopped it, or another host or a data worker was lost, and the same
      call continues it; 1 when the loss was not finite.

    Raises:
      UsageError: the workdir belongs to another run or cannot be written, or the dataset, the mesh or an evaluation
        does not fit.
    """
    if isinstance(config, TowerRunConfig):
        return train_tower(config, Path(workdir), evaluate_tower.finish)
    evaluation.check(config)
    return train_model(config, Path(workdir), evaluation.finish, accept_changed_imports, evaluation.during)


def evaluate(
    workdir: str | Path,
    *,
    step: int | None = None,
    follow: bool = False,
    out: str | Path | None = None,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Evaluate a checkpoint of a run, or each one as it is written; print the scores and store them in the workdir.

    Args:
      workdir: the run's directory; gets ``eval.json`` and pictures.
      step: the checkpoint's step; the newest by default.
      follow: evaluate every checkpoint, append each result to ``evals.jsonl``, and return after the run's last step.
      out: a JSON file that gets the scores as well.
      changes: values that replace the run's own, by dotted keys below ``config.evaluate`` and ``config.evaluators``,
        such as ``{"evaluate.images": 50, "evaluators.probes.kind": "probes"}``.

    Returns:
      The scores of the last evaluation, as ``eval.json`` stores them.

    Raises:
      UsageError: no such checkpoint or dataset, a wrong value, or a file that cannot be written.
    """
    return evaluation.run(Path(workdir), step, follow, None if out is None else Path(out), changes)


def generate(
    workdir: str | Path,
    prompt: str,
    *,
    image: str | Path | None = None,
    out: str | Path | None = None,
    step: int | None = None,
    **settings: Any,
) -> Generated:
    """Answer a prompt with text, pictures, or both; print the text and write the pictures.

    Args:
      workdir: the run's directory.
      prompt: a question, or a request for a picture.
      image: the file of a picture to ask about.
      out: the file of the first picture, by default ``WORKDIR/generated.png``, or of the text. A model that answers
        with text generates a picture only if this names one.
      step: the checkpoint's step; the newest by default.
      **settings: the flags of ``unihetero generate``, such as ``temperature``, ``guidance``, ``seed``, ``max_tokens``.

    Returns:
      The texts and pictures, in reading order.

    Raises:
      UsageError: no such checkpoint, a prompt that is too long, a wrong setting, or a file that cannot be read or
        written.
    """
    asked_about, written = (None if path is None else Path(path) for path in (image, out))
    return generation.run(Path(workdir), prompt, asked_about, written, step, settings)
