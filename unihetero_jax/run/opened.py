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
from unihetero_jax.files import json_rows

if TYPE_CHECKING:
    import pandas as pd

    from unihetero_jax.config import Config
    from unihetero_jax.generate.predict import Predictor
    from unihetero_jax.model.trained import Trained
    from unihetero_jax.train.towers.base import TowerRunConfig


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
        from unihetero_jax import config
        from unihetero_jax.train.towers import base as tower_config

        path = self.workdir / "config.json"
        values = _read(path, "the config of a run")
        kind = values.get("kind")
        return config.resolve(values) if kind is None else tower_config.resolve(kind, values)

    @property
    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        from unihetero_jax.checkpoint import restore as checkpoint

        return checkpoint.steps(self.workdir)

    def metrics(self) -> pd.DataFrame:
        """``metrics.jsonl``: a row a step, indexed by ``step``; ``timing.NAME`` for what comes from the clock.

        Raises:
          UsageError: pandas is missing, or there are no metrics yet.
        """
        path = self.workdir / "metrics.jsonl"
        return _frame(path, json_rows(path))

    def evaluations(self) -> pd.DataFrame:
        """``evals.jsonl`` of ``unihetero eval --follow``, a row a checkpoint; of a run without it, ``eval.json`` alone.

        Columns are dotted names, such as ``vqa.time.score``; lists are left out. Raises as ``metrics``.
        """
        path = self.workdir / "evals.jsonl"
        if path.is_file():
            return _frame(path, json_rows(path))
        return _frame(self.workdir / "eval.json", [self.evaluation()])

    def evaluation(self) -> dict[str, Any]:
        """``eval.json``: what the newest evaluation found, lists included.

        Raises:
          UsageError: the run has not been evaluated.
        """
        path = self.workdir / "eval.json"
        if not path.exists():
            raise UsageError(f"{path}: no such file: run `unihetero eval --workdir={self.workdir}`")
        return _read(path, "what an evaluation found")

    def params(self, step: int | None = None) -> dict[str, Any]:
        """The parameters of a checkpoint, as nested dicts of NumPy arrays.

        Args:
          step: which checkpoint; the newest by default.

        Raises:
          UsageError: no such checkpoint.
        """
        from unihetero_jax.checkpoint import restore as checkpoint

        found = checkpoint.find_step(self.workdir, step)
        params: dict[str, Any] = checkpoint.restore_numpy(self.workdir / checkpoint.CHECKPOINTS / str(found) / "state")[
            "params"
        ]
        return params

    def trained(self, step: int | None = None) -> Trained:
        """The model of a checkpoint, on the devices that are here. Arguments and errors as of ``params``."""
        from unihetero_jax.run.load import load_trained

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
        what = "no such directory" if not place.exists() else "has no config.json" if place.is_dir() else "no directory"
        raise UsageError(f"{place}: {what}; expected the --workdir of a training run")
    return Run(place)


def _read(path: Path, content: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: holds no JSON object: expected {content}")
    return found


def _frame(path: Path, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A row a step, the last one said of it."""
    try:
        import pandas as pd
    except ImportError as error:
        raise UsageError("metrics as a table need pandas: pip install 'unihetero_jax[notebooks]'") from error
    flat = [dict(_flat(row)) for row in rows if "step" in row]
    if not flat:
        raise UsageError(
            f"{path}: {'holds no rows yet' if path.exists() else 'no such file; has the run got that far?'}"
        )
    return pd.DataFrame(flat).drop_duplicates("step", keep="last").set_index("step").sort_index()


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            yield prefix + name, value
