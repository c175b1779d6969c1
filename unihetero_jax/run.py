"""A training run as a notebook sees it: its config, metrics, evaluations, parameters and predict functions.

This is the public Python door, stable across versions:

    import unihetero_jax

    run = unihetero_jax.open_run("runs/quickstart")
    run.metrics()["loss"].plot()
    run.predictor().answer(images, ["What time is it?"] * len(images))
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unihetero_jax.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from unihetero_jax.checkpoint import Trained
    from unihetero_jax.config import Config
    from unihetero_jax.generate.predict import Predictor
    from unihetero_jax.tower_config import TowerRunConfig


@dataclass(frozen=True)
class Run:
    """A workdir of ``unihetero train`` or ``unihetero towers train``, running or ended.

    Everything is read from the files when it is asked for, so that a run that goes on shows what it has so far.
    """

    workdir: Path

    @functools.cached_property
    def config(self) -> Config | TowerRunConfig:
        """The config that the run was started with.

        Raises:
          UsageError: it cannot be read, or this version does not know it.
        """
        from unihetero_jax import config, tower_config

        path = self.workdir / "config.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: cannot be read: {error}") from error
        kind = values.get("kind")
        return config.resolve(values) if kind is None else tower_config.resolve(kind, values)

    @property
    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        from unihetero_jax import checkpoint

        return checkpoint.steps(self.workdir)

    def metrics(self) -> pd.DataFrame:
        """``metrics.jsonl``: a row a step, indexed by ``step``; ``timing.NAME`` for what comes from the clock.

        Raises:
          UsageError: pandas is missing, or there are no metrics yet.
        """
        return _frame(self.workdir / "metrics.jsonl")

    def evaluations(self) -> pd.DataFrame:
        """``evals.jsonl`` of ``unihetero eval --follow``, a row a checkpoint; of a run without it, ``eval.json`` alone.

        Columns are dotted names, such as ``vqa.time.score``; lists are left out. Raises as ``metrics``.
        """
        path = self.workdir / "evals.jsonl"
        return _frame(path if path.is_file() else self.workdir / "eval.json")

    def evaluation(self) -> dict[str, Any]:
        """``eval.json``: what the newest evaluation found, lists included.

        Raises:
          UsageError: the run has not been evaluated.
        """
        path = self.workdir / "eval.json"
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"{path}: no such file: run `unihetero eval --workdir={self.workdir}`") from None
        except ValueError as error:
            raise UsageError(f"{path}: not JSON: {error}") from error
        return found

    def params(self, step: int | None = None) -> dict[str, Any]:
        """The parameters of a checkpoint, as nested dicts of NumPy arrays.

        Args:
          step: which checkpoint; the newest by default.

        Raises:
          UsageError: no such checkpoint.
        """
        from unihetero_jax import checkpoint

        found = checkpoint.find_step(self.workdir, step)
        params: dict[str, Any] = checkpoint.restore_numpy(self.workdir / checkpoint.CHECKPOINTS / str(found) / "state")[
            "params"
        ]
        return params

    def trained(self, step: int | None = None) -> Trained:
        """The model of a checkpoint, on the devices that are here. Arguments and errors as of ``params``."""
        from unihetero_jax.checkpoint import load_trained

        return load_trained(self.workdir, step)

    def predictor(self, step: int | None = None) -> Predictor:
        """Its predict functions: ``answer``, ``draw``, ``generate`` and more. Arguments and errors as of ``params``."""
        from unihetero_jax.generate.predict import Predictor

        return Predictor(self.trained(step))


def open_run(workdir: str | Path) -> Run:
    """Opens a workdir.

    Args:
      workdir: of a training run.

    Raises:
      UsageError: there is no run.
    """
    place = Path(workdir).expanduser()
    if not (place / "config.json").is_file():
        what = "has no config.json" if place.is_dir() else "no such directory"
        raise UsageError(f"{place}: {what}; expected the --workdir of a training run")
    return Run(place)


def _frame(path: Path) -> pd.DataFrame:
    try:
        import pandas as pd
    except ImportError as error:
        raise UsageError("metrics as a table need pandas: pip install 'unihetero_jax[notebooks]'") from error
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; has the run got that far?") from None
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    rows = [dict(_flat(row)) for line in lines if (row := _parsed(line)) is not None]
    if not rows:
        raise UsageError(f"{path}: holds no rows yet")
    return pd.DataFrame(rows).drop_duplicates("step", keep="last").set_index("step").sort_index()


def _parsed(line: str) -> dict[str, Any] | None:
    """A row; None for a line that is being written."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "step" in row else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            yield prefix + name, value
