"""The workdir of studies: where each part lies, and the results of runs.

    WORKDIR/study.json                     the scale, and the paths of the user's own data and weights
    WORKDIR/shared/data/NAME               a dataset: images, pixels per side, digest of its other settings
    WORKDIR/shared/towers/KIND             a small tower (``unihetero towers train``)
    WORKDIR/shared/features/NAME           features of a dataset from frozen towers (``unihetero towers features``)
    WORKDIR/shared/compilation_cache       compiled programs: arms that differ in data or seed share them
    WORKDIR/runs/KEY/seed-N/run            the workdir of an ordinary training
    WORKDIR/runs/KEY/seed-N/result-E.json  the result of an evaluation; written last, whole or not at all
    WORKDIR/runs/KEY/seed-N/log            the run's output
    WORKDIR/STUDY/arms/ARM                 a link to the runs of an arm
    WORKDIR/STUDY/report.html, report.json

KEY is the digest of the training's config, E that of the evaluation's: arms of several studies with the same config are
run once, and a changed evaluation does not train again. Both are digests of what differs from the defaults, so that a
new setting does not change the keys of old runs. Paths within the workdir count as relative, so that it can be moved.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from unihetero_jax.config import Config, frozen_towers, towers_in_use
from unihetero_jax.config.changed_keys import changed_values, flatten
from unihetero_jax.config.constraints import FREE_ON_RESUME
from unihetero_jax.config.tree import is_below, marked_keys
from unihetero_jax.errors import UsageError
from unihetero_jax.files import write_atomic
from unihetero_jax.study.definition import Arm, Scale, Study

STUDY_JSON = "study.json"
# Increased when an evaluation measures something else by the same name: runs are then evaluated again.
MEASURES = 2

_SHARED = "shared"
# A resumed training may change its number of steps; here it is part of a run's key. The seed has its own directory.
_STEPS, _SEED = "train.steps", "train.seed"
# Keys of a result that a report reads.
_RESULT_KEYS = ("config", "evaluation", "machine", "seconds")


@dataclass(frozen=True)
class Workdir:
    """The workdir of one or several studies.

    Attributes:
      path: the directory.
      scale: the scale of all runs in it.
      data: directories of datasets that studies name and do not build, by name.
      weights: directories of published weights, by kind of tower; ``decoder`` for the decoder.
    """

    path: Path
    scale: Scale
    data: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Workdir:
        """Open an existing workdir.

        Raises:
          UsageError: the directory is no workdir of studies.
        """
        try:
            values = json.loads((path / STUDY_JSON).read_text(encoding="utf-8"))
            if values["scale"] not in get_args(Scale):
                raise ValueError(f"no scale {values['scale']!r}")
            return cls(path, values["scale"], dict(values["data"]), dict(values["weights"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}: no workdir of `unihetero study run` ({STUDY_JSON}: {error})") from error

    def with_stored(self) -> Workdir:
        """Add the data and weights that the workdir was given before; those given now take precedence.

        Raises:
          UsageError: the workdir has runs of another scale.
        """
        if not (self.path / STUDY_JSON).exists():
            return self
        stored = Workdir.open(self.path)
        if stored.scale != self.scale:
            raise UsageError(
                f"{self.path} has runs at scale {stored.scale}; expected --scale={stored.scale}, or another --workdir"
            )
        return Workdir(self.path, self.scale, {**stored.data, **self.data}, {**stored.weights, **self.weights})

    def save(self) -> Workdir:
        """Create the workdir, and store its scale, data and weights together with those given before.

        Raises:
          UsageError: the workdir has runs of another scale, or cannot be written.
        """
        path = self.path / STUDY_JSON
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            merged = self.with_stored()
            values = {"scale": merged.scale, "data": dict(merged.data), "weights": dict(merged.weights)}
            text = json.dumps(values, indent=1) + "\n"
            if not (path.exists() and path.read_text(encoding="utf-8") == text):
                write_atomic(path, text)
        except OSError as error:
            raise UsageError(f"--workdir={self.path}: cannot be written: {error.strerror}") from error
        return merged

    @property
    def shared(self) -> Path:
        """The directory of what runs share."""
        return self.path.absolute() / _SHARED

    @property
    def compilation_cache(self) -> Path:
        """The directory of compiled programs."""
        return self.shared / "compilation_cache"

    def tower(self, kind: str) -> Path:
        """Return the directory of a small tower."""
        return self.shared / "towers" / kind

    def dataset(self, image_size: int, settings: Mapping[str, Any]) -> Path:
        """Return the directory of the Smart Watch dataset with these settings, the same for all arms that have them."""
        own = changed_values({"data": {"smart_watch": settings}})
        return self.shared / "data" / f"{settings['num_images']}-{image_size}px-{_digest(own)}"

    def features(self, config: Config) -> Path:
        """Return the directory of the features of a config's frozen towers, before any distortion of them."""
        towers = stored_towers(config)
        used = re.compile(rf"data\.root|init\..*|model\.({'|'.join(towers)})\.(?!cached).*")
        own = {key: value for key, value in changed_values(self.portable(config)).items() if used.fullmatch(key)}
        kinds = "-".join(getattr(config.model, name).kind for name in towers)
        return self.shared / "features" / f"{kinds}-{_digest(own)}"

    def runs(self, config: Config) -> Path:
        """Return the directory of all seeds' runs of a config."""
        values = changed_values(self.portable(config))
        learned = {key: value for key, value in values.items() if not _is_free(key) and key != _SEED}
        return self.path / "runs" / _digest(learned, 12)

    def run(self, config: Config) -> Path:
        """Return the directory of a run."""
        return self.runs(config) / f"seed-{config.train.seed}"

    def seeds(self, config: Config) -> list[int]:
        """Return the seeds of a config's runs that were begun, ascending."""
        return _seeds(self.runs(config).glob("seed-*"))

    def all_seeds(self) -> list[int]:
        """Return the seeds of all runs that were begun, ascending."""
        return _seeds(self.path.glob("runs/*/seed-*"))

    def result_path(self, config: Config) -> Path:
        """Return the file of a run's result, evaluated as the config says."""
        values = self.portable(config)
        evaluation = changed_values({name: values[name] for name in ("evaluate", "evaluators")})
        return self.run(config) / f"result-{_digest(evaluation | {'measures': MEASURES})}.json"

    def result(self, config: Config) -> dict[str, Any] | None:
        """Read a run's result; None if it has not ended, or was not evaluated as the config says.

        Raises:
          UsageError: a version with other defaults made the result, or the file is damaged.
        """
        path = self.result_path(config)
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if missing := [key for key in _RESULT_KEYS if key not in found]:
                raise ValueError(f"has no {missing[0]!r}")
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise UsageError(f"{path} is damaged ({error}); remove it to have the run evaluated again") from error
        old, new = flatten(found["config"]), flatten(self.portable(config))
        if changed := [key for key in old if key in new and old[key] != new[key] and not _is_free(key)]:
            raise UsageError(
                f"{path} was made by a version with other defaults (differing: {', '.join(changed[:5])}); remove "
                f"{path.parent} to run it again, or use another --workdir"
            )
        return found

    def study(self, study: Study) -> Path:
        """Return the directory of a study's links and reports."""
        return self.path / study.name

    def link(self, study: Study, arm: Arm, config: Config) -> None:
        """Link an arm's name to its runs."""
        path = self.study(study) / "arms" / arm.name
        target = os.path.relpath(self.runs(config), path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (path.is_symlink() and os.readlink(path) == target):
            # In one step, because tasks of a job array do it at the same time.
            part = self.study(study) / f".{arm.name}.{uuid.uuid4().hex}"
            part.symlink_to(target)
            os.replace(part, path)

    def portable(self, config: Config) -> dict[str, Any]:
        """Return a config's values, with paths within the workdir relative to it."""
        prefix = f"{self.path.absolute()}/"

        def relative(values: Any) -> Any:
            if isinstance(values, Mapping):
                return {key: relative(value) for key, value in values.items()}
            return values.removeprefix(prefix) if isinstance(values, str) else values

        values: dict[str, Any] = relative(config.to_dict())
        return values


def stored_towers(config: Config) -> list[str]:
    """Return the towers whose features a study stores: frozen ones with weights, unless they are cheap."""
    frozen = frozen_towers(config)
    return [
        name
        for name, section in towers_in_use(config).items()
        if name in frozen and section.cacheable and getattr(config.init, name)
    ]


def _is_free(key: str) -> bool:
    return key != _STEPS and is_below(key, marked_keys(Config, FREE_ON_RESUME))


def _seeds(runs: Iterable[Path]) -> list[int]:
    # A user's copy of a run, such as seed-0.bak, does not count.
    found = (re.fullmatch(r"seed-(\d+)", path.name) for path in runs)
    return sorted({int(seed[1]) for seed in found if seed})


def _digest(values: Any, length: int = 8) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:length]
