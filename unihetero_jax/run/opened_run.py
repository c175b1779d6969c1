"""A training run as a notebook reads it: its config, metrics, evaluations, parameters and predict functions.

    import unihetero_jax

    run = unihetero_jax.open_run("runs/quickstart")
    run.metrics()["loss"].plot()
    run.predictor().answer(images, ["What time is it?"] * len(images))

JAX is imported where a run's arrays are asked for; config, metrics and evaluations are read without it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unihetero_jax.errors import UsageError
from unihetero_jax.files import json_object, json_rows

if TYPE_CHECKING:
    import pandas as pd

    from unihetero_jax.config import Config
    from unihetero_jax.generate.predict import Predictor
    from unihetero_jax.model.trained_model import Trained
    from unihetero_jax.train.towers.base import TowerRunConfig


@dataclass(frozen=True)
class Run:
    """A workdir of ``unihetero train`` or ``unihetero towers train``, whose run may still continue.

    Everything is read from the files when it is asked for, so that it is as new as they are.

    Attributes:
      workdir: the run's directory.
    """

    workdir: Path

    @functools.cached_property
    def config(self) -> Config | TowerRunConfig:
        """The config that the run was last started with.

        Raises:
          UsageError: it cannot be read, an earlier version wrote it, or one of its components cannot be imported.
        """
        from unihetero_jax.run.workdir import resolve_stored  # imports JAX

        return resolve_stored(json_object(self.workdir / "config.json", "the config of a run"), self.workdir)

    @property
    def data_root(self) -> Path:
        """The directory of the run's dataset; of no meaning where the config names sources. Raises as ``config``."""
        from unihetero_jax.run.load_model import data_root  # imports JAX

        return data_root(self.config, self.workdir)

    @property
    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        from unihetero_jax.checkpoint import restore as checkpoint  # imports JAX

        return checkpoint.steps(self.workdir)

    def metrics(self) -> pd.DataFrame:
        """``metrics.jsonl``: a row per step, indexed by ``step``; what comes from the clock is ``timing.NAME``.

        Raises:
          UsageError: pandas is missing, or there are no metrics yet.
        """
        path = self.workdir / "metrics.jsonl"
        return _frame(path, json_rows(path))

    def evaluations(self) -> pd.DataFrame:
        """``evals.jsonl`` of ``unihetero eval --follow``, a row per checkpoint; without it, ``eval.json`` alone.

        Columns are dotted names, such as ``vqa.time.score``; lists are left out. Raises as ``metrics``.
        """
        path = self.workdir / "evals.jsonl"
        if path.is_file():
            return _frame(path, json_rows(path))
        return _frame(self.workdir / "eval.json", [self.evaluation()])

    def evaluation(self) -> dict[str, Any]:
        """``eval.json``: results of the newest evaluation, lists included.

        Raises:
          UsageError: the run has not been evaluated.
        """
        path = self.workdir / "eval.json"
        if not path.exists():
            raise UsageError(f"{path}: no such file: run `unihetero eval --workdir={self.workdir}`")
        return json_object(path, "results of an evaluation")

    def params(self, step: int | None = None) -> dict[str, Any]:
        """The parameters of a checkpoint, as nested dicts of NumPy arrays.

        Args:
          step: the checkpoint's step; the newest by default.

        Raises:
          UsageError: no such checkpoint.
        """
        from unihetero_jax.checkpoint import restore as checkpoint  # imports JAX

        found = checkpoint.find_step(self.workdir, step)
        params: dict[str, Any] = checkpoint.restore_numpy(self.workdir / checkpoint.CHECKPOINTS / str(found) / "state")[
            "params"
        ]
        return params

    def trained(self, step: int | None = None) -> Trained:
        """The model of a checkpoint, on the devices that are here. Arguments and errors as of ``params``."""
        from unihetero_jax.run.load_model import load_trained  # imports JAX

        return load_trained(self.workdir, step)

    def predictor(self, step: int | None = None) -> Predictor:
        """Its predict functions: ``answer``, ``draw``, ``generate`` and more. Arguments and errors as of ``params``."""
        from unihetero_jax.generate.predict import Predictor  # imports JAX

        return Predictor(self.trained(step))


def open_run(workdir: str | Path) -> Run:
    """Open the workdir of a training run, finished or not.

    Args:
      workdir: the run's directory.

    Raises:
      UsageError: there is no run.
    """
    place = Path(workdir).expanduser()
    if not (place / "config.json").is_file():
        what = "no such directory" if not place.exists() else "has no config.json" if place.is_dir() else "no directory"
        raise UsageError(f"{place}: {what}; expected the --workdir of a training run")
    return Run(place)


def _frame(path: Path, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A row per step, the last one written about it."""
    try:
        import pandas as pd  # optional
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
