"""Where the parts of a study are, and which config each of its runs has.

    WORKDIR/study.json                     the scale, and where the user's own data and weights are
    WORKDIR/shared/data/NAME               a dataset: images, pixels a side, digest of what else makes it
    WORKDIR/shared/towers/KIND             a small tower (``unihetero towers train``)
    WORKDIR/shared/features/NAME           what frozen towers make of a dataset (``unihetero towers features``)
    WORKDIR/shared/compilation_cache       compiled programs: arms that differ in data or seed share them
    WORKDIR/runs/KEY/seed-N/run            the workdir of an ordinary training
    WORKDIR/runs/KEY/seed-N/result-E.json  what an evaluation of it gave; written last, whole or not at all
    WORKDIR/runs/KEY/seed-N/log            what it said
    WORKDIR/STUDY/arms/ARM                 a link to the runs of an arm
    WORKDIR/STUDY/report.html, report.json

KEY is the digest of what is learned, E that of how it is evaluated: arms of several studies that are the same run are
run once, and one that is to be evaluated in another way is not trained again. Both are digests of what differs from the
defaults, so that a new setting leaves old runs as they are. Paths within the workdir count as relative, so that it may
be moved.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import ml_collections

from unihetero_jax.config import TOWER_NAMES, Config, difference, frozen_towers, resolve, towers_in_use, user_files
from unihetero_jax.config.components import TOWERS
from unihetero_jax.config.resolving import FREE_ON_RESUME
from unihetero_jax.errors import UsageError, nearest
from unihetero_jax.files import write_atomic
from unihetero_jax.study.declaration import Arm, Scale, Study

STUDY = "study.json"
_SHARED = "shared"
# How long a run is is free when it goes on, and here a part of what it is. The seed has a directory of its own.
_LEARNED_TOO = "train.steps"
_SEED = "train.seed"
# Is counted up when evaluation measures something else by the same name: runs are then evaluated again.
MEASURES = 2
# What a report reads of a result.
_OF_A_RESULT = ("config", "evaluation", "machine", "seconds")


@dataclass(frozen=True)
class Job:
    """A run of a study: an arm with a seed."""

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """As ``--only`` matches it and messages say it."""
        return f"{self.arm.name}/seed-{self.seed}"


@dataclass(frozen=True)
class Place:
    """A study's workdir.

    ``scale``: of all runs in it. ``data``: directories of datasets that studies name and do not build. ``weights``:
    published weights by kind of tower, and of the ``decoder``.
    """

    workdir: Path
    scale: Scale
    data: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)

    @property
    def shared(self) -> Path:
        """What runs have in common."""
        return self.workdir.absolute() / _SHARED

    @property
    def compilation_cache(self) -> Path:
        """Compiled programs."""
        return self.shared / "compilation_cache"

    def tower(self, kind: str) -> Path:
        """A small tower."""
        return self.shared / "towers" / kind

    def dataset(self, image_size: int, made_of: Mapping[str, Any]) -> Path:
        """The Smart Watch dataset of these settings, for all arms that have the same."""
        own = dict(_changed(made_of, Config().to_dict()["data"]["smart_watch"]))
        return self.shared / "data" / f"{made_of['num_images']}-{image_size}px-{_digest(own)}"

    def features(self, config: Config) -> Path:
        """What the frozen towers of a config make of its dataset; their distortion comes behind it."""
        values, usual = portable(config, self.workdir), Config().to_dict()
        own = {"root": values["data"]["root"], "init": dict(_changed(values["init"], usual["init"]))}
        for name in _stored_towers(config):
            section = values["model"][name] | {"cached": False}
            own[name] = dict(_changed(section, usual["model"][name] or {}))
        kinds = "-".join(values["model"][name]["kind"] for name in _stored_towers(config))
        return self.shared / "features" / f"{kinds}-{_digest(own)}"

    def runs(self, config: Config) -> Path:
        """The runs of a config, whatever their seed."""
        return self.workdir / "runs" / _digest(_learned(config, self.workdir), 12)

    def run(self, config: Config) -> Path:
        """The directory of a run."""
        return self.runs(config) / f"seed-{config.train.seed}"

    def seeds(self, config: Config) -> list[int]:
        """Of a config's runs that were begun, ascending."""
        return _seeds(self.runs(config).glob("seed-*"))

    def all_seeds(self) -> list[int]:
        """Of all runs that were begun, ascending."""
        return _seeds(self.workdir.glob("runs/*/seed-*"))

    def result(self, config: Config) -> Path:
        """The file that says what a run gave, evaluated as its config says."""
        wanted = _changed(portable(config, self.workdir)["evaluate"], Config().to_dict()["evaluate"])
        return self.run(config) / f"result-{_digest(dict(wanted, measures=MEASURES))}.json"

    def own(self, study: Study) -> Path:
        """Links and reports of one study."""
        return self.workdir / study.name

    def link(self, study: Study, arm: Arm, config: Config) -> None:
        """Makes the runs of an arm findable by its name."""
        path = self.own(study) / "arms" / arm.name
        target = os.path.relpath(self.runs(config), path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (path.is_symlink() and os.readlink(path) == target):
            # In one step: tasks of a job array come here at the same time.
            part = self.own(study) / f".{arm.name}.{uuid.uuid4().hex}"
            part.symlink_to(target)
            os.replace(part, path)


def claim(place: Place) -> Place:
    """Makes a workdir that of a scale, and remembers the user's data and weights; what was said before still holds.

    Raises:
      UsageError: the workdir has runs of another scale, or cannot be written.
    """
    path = place.workdir / STUDY
    try:
        place.workdir.mkdir(parents=True, exist_ok=True)
        place = remembered(place)
        values = {"scale": place.scale, "data": dict(place.data), "weights": dict(place.weights)}
        text = json.dumps(values, indent=1) + "\n"
        if not (path.exists() and path.read_text(encoding="utf-8") == text):
            write_atomic(path, text)
    except OSError as error:
        raise UsageError(f"--workdir={place.workdir}: cannot be written: {error.strerror}") from error
    return place


def remembered(place: Place) -> Place:
    """With the data and weights that were given for its workdir before; those that are given now come first.

    Raises:
      UsageError: the workdir has runs of another scale.
    """
    if not (place.workdir / STUDY).exists():
        return place
    before = opened(place.workdir)
    if before.scale != place.scale:
        raise UsageError(
            f"{place.workdir} has runs at scale {before.scale}; expected --scale={before.scale}, or another --workdir"
        )
    return Place(place.workdir, place.scale, {**before.data, **place.data}, {**before.weights, **place.weights})


def opened(workdir: Path) -> Place:
    """The place of a workdir.

    Raises:
      UsageError: it is none of studies.
    """
    try:
        values = json.loads((workdir / STUDY).read_text(encoding="utf-8"))
        if values["scale"] not in get_args(Scale):
            raise ValueError(f"no scale {values['scale']!r}")
        return Place(workdir, values["scale"], dict(values["data"]), dict(values["weights"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{workdir}: no workdir of `unihetero study run` ({STUDY}: {error})") from error


def experiment(study: Study, job: Job, place: Place) -> Config:
    """The config of a run: that of its arm, with the seed and with the shared data, towers and features.

    Raises:
      UsageError: the study's experiment is no valid config, or it names a dataset that nobody gave.
    """
    if place.scale not in study.scales:
        raise UsageError(f"study {study.name} has no scale {place.scale}: expected {' or '.join(study.scales)}")
    values = _values(study, job, place.scale)
    values.train.seed = job.seed
    for name, source in values.data.sources.items():
        source.root = _given(study, "data", name, place.data, study.datasets)
    if not values.data.sources:
        values.data.root = str(place.dataset(values.data.image_size, values.data.smart_watch.to_dict()))
    if values.init.path:
        values.init.path = _given(study, "weights", values.init.path, place.weights, study.weights)
    elif place.scale == "paper":
        values.init.path = _given(study, "weights", "decoder", place.weights, study.weights)
        values.init.tokenizer = True
    try:
        config = resolve(values)
    except UsageError as error:
        raise UsageError(f"{study.file or study.name}, arm {job.arm.name}: {error}") from error
    for name, section in towers_in_use(config).items():
        if not section.cacheable:
            continue
        if place.scale == "paper":
            values.init[name] = _given(study, "weights", section.kind, place.weights, study.weights)
        elif section.kind in study.towers:
            values.init[name] = str(place.tower(section.kind))
    if values.evaluate.reader in study.towers:
        values.evaluate.reader = str(place.tower(values.evaluate.reader))
    values.evaluate.at_end = True
    values.logging.tensorboard = False
    config = resolve(values)
    own = place.scale != "paper" and not values.data.sources  # at full size features fill a disk
    if study.stores_features and own and (stored := _stored_towers(config)):
        values.data.features = str(place.features(config))
        for name in stored:
            getattr(values.model, name).cached = True
        config = resolve(values)
    return config


def check_given(asked: Place, studies: Sequence[Study]) -> None:
    """Refuses data and weights on the command line that are not there, or that no study asks for.

    Args:
      asked: what was given now; what a workdir remembers is looked at where it is used.
      studies: all whose names are no mistakes.

    Raises:
      UsageError: naming the option, and the nearest name that would be right.
    """
    weights = [*TOWERS.kinds(), "decoder", *(name for study in studies for name in study.weights)]
    datasets = [name for study in studies for name in study.datasets]
    for flag, given, known in (("data", asked.data, datasets), ("weights", asked.weights, weights)):
        for name, path in given.items():
            if name not in known:
                raise UsageError(
                    f"--{flag}={name}={path}: expected {', '.join(dict.fromkeys(known))}{nearest(name, known)}"
                )
            if not Path(path).exists():
                raise UsageError(f"--{flag}={name}={path}: no such file or directory")


def check_used(place: Place, config: Config) -> None:
    """Refuses a run whose data or weights, given before, have gone.

    Raises:
      UsageError: naming the option that says where they are now.
    """
    theirs = {config.init.path, *(getattr(config.init, name) for name in TOWER_NAMES)}
    used = [(f"--data={name}", source.root) for name, source in (config.data.sources or {}).items()]
    used += [(f"--weights={kind}", path) for kind, path in place.weights.items() if path in theirs]
    for option, path in used:
        if not Path(path).exists():
            raise UsageError(f"{path}: no such file or directory; expected {option}=DIR")


def _values(study: Study, job: Job, scale: Scale) -> ml_collections.ConfigDict:
    """What a study's ``experiment`` returns; whatever goes wrong in a user's is a line about its file."""

    def call() -> ml_collections.ConfigDict:
        values = study.experiment(job.arm.levels, scale)
        if not isinstance(values, ml_collections.ConfigDict):
            raise UsageError(
                f"experiment() returned {type(values).__name__}: expected unihetero_jax.config.defaults(), changed"
            )
        return values

    return user_files.in_file(Path(study.file), call) if study.file else call()


def _given(study: Study, flag: str, name: str, given: Mapping[str, str], hints: Mapping[str, str]) -> str:
    if name not in given:
        hint = f", {hints[name]}" if name in hints else ""
        raise UsageError(f"study {study.name} needs {name!r}: expected --{flag}={name}=DIR{hint}")
    return given[name]


def result(place: Place, config: Config) -> dict[str, Any] | None:
    """What a run gave; None if it has not ended, or was not evaluated in this way.

    Raises:
      UsageError: it was made by a version with other defaults, or the file is damaged.
    """
    path = place.result(config)
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if missing := [key for key in _OF_A_RESULT if key not in found]:
            raise ValueError(f"has no {missing[0]!r}")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error}); remove it to have the run evaluated again") from error
    old, new = dict(_leaves(found["config"])), dict(_leaves(portable(config, place.workdir)))
    if changed := [key for key in old if key in new and old[key] != new[key] and not _free(key)]:
        raise UsageError(
            f"{path} was made by a version with other defaults (differing: {', '.join(changed[:5])}); remove "
            f"{path.parent} to run it again, or use another --workdir"
        )
    return found


def portable(config: Config, workdir: Path) -> dict[str, Any]:
    """A config's values, with paths within the workdir relative to it."""
    values: dict[str, Any] = _portable(config.to_dict(), workdir)
    return values


def _portable(values: Any, workdir: Path) -> Any:
    if isinstance(values, Mapping):
        return {key: _portable(value, workdir) for key, value in values.items()}
    prefix = f"{workdir.absolute()}/"
    return values.removeprefix(prefix) if isinstance(values, str) else values


def _stored_towers(config: Config) -> list[str]:
    """The towers whose features a study stores: frozen ones that were trained before."""
    frozen = frozen_towers(config)
    return [
        name
        for name, section in towers_in_use(config).items()
        if name in frozen and section.cacheable and getattr(config.init, name)
    ]


def _learned(config: Config, workdir: Path) -> dict[str, Any]:
    """Dotted key → value of what a run learns from and how, where that is not as the defaults have it; no seed."""
    values = _changed(portable(config, workdir), Config().to_dict())
    return {key: value for key, value in values if not _free(key) and key != _SEED}


def _free(key: str) -> bool:
    return key != _LEARNED_TOO and any(key == free or key.startswith(f"{free}.") for free in FREE_ON_RESUME)


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of the leaves that differ from the defaults."""
    given, usual = dict(_leaves(values)), dict(_leaves(defaults))
    for key in difference(usual, given):
        yield key, given.get(key)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _seeds(runs: Iterable[Path]) -> list[int]:
    # A user's copy of a run, such as seed-0.bak, is none.
    found = (re.fullmatch(r"seed-(\d+)", path.name) for path in runs)
    return sorted({int(seed[1]) for seed in found if seed})


def _digest(values: Any, length: int = 8) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:length]
