"""The config of each run of a study: its arm's experiment, with the seed and with shared data, towers and features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_collections

from unihetero_jax.config import TOWER_NAMES, Config, loading, resolve, towers_in_use, user_files
from unihetero_jax.config.components import TOWERS
from unihetero_jax.data.sources.shards import ShardsConfig
from unihetero_jax.errors import UsageError, nearest
from unihetero_jax.study.definition import Arm, Scale, Study
from unihetero_jax.study.workdir import Workdir, stored_towers


@dataclass(frozen=True)
class Run:
    """A run of a study.

    Attributes:
      arm: its arm.
      seed: its seed.
    """

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """The name that ``--only`` matches and messages use."""
        return f"{self.arm.name}/seed-{self.seed}"


def run_config(study: Study, run: Run, workdir: Workdir) -> Config:
    """Return the config of a run.

    Args:
      study: the study.
      run: one of its runs.
      workdir: the workdir with the shared parts, and with the paths of the user's data and weights.

    Raises:
      UsageError: the experiment is no valid config, or it needs data or weights that were not given.
    """
    if workdir.scale not in study.scales:
        raise UsageError(f"study {study.name} has no scale {workdir.scale}: expected {' or '.join(study.scales)}")
    values = _experiment(study, run.arm, workdir.scale)
    values.train.seed = run.seed
    for name, source in values.data.sources.items():
        source.root = _given(study, "data", name, workdir)
    if not values.data.sources:
        values.data.root = str(workdir.dataset(values.data.image_size, values.data.smart_watch.to_dict()))
    if values.init.path:
        values.init.path = _given(study, "weights", values.init.path, workdir)
    elif workdir.scale == "paper":
        values.init.path = _given(study, "weights", "decoder", workdir)
        values.init.tokenizer = True
    try:
        config = resolve(values)
    except UsageError as error:
        raise UsageError(f"{study.file or study.name}, arm {run.arm.name}: {error}") from error
    for name, section in towers_in_use(config).items():
        if not section.cacheable:
            continue
        if workdir.scale == "paper":
            values.init[name] = _given(study, "weights", section.kind, workdir)
        elif section.kind in study.towers:
            values.init[name] = str(workdir.tower(section.kind))
    generation = values.evaluators.get("generation")
    if generation is not None and generation.attribute_classifier in study.towers:
        generation.attribute_classifier = str(workdir.tower(generation.attribute_classifier))
    values.evaluate.at_end = True
    values.logging.tensorboard = False
    config = resolve(values)
    # At full size features would fill a disk.
    stores = study.stores_features and workdir.scale != "paper" and not values.data.sources
    if stores and (stored := stored_towers(config)):
        values.data.features = str(workdir.features(config))
        for name in stored:
            getattr(values.model, name).cached = True
        config = resolve(values)
    return config


def _experiment(study: Study, arm: Arm, scale: Scale) -> ml_collections.ConfigDict:
    """Call the study's ``experiment``; an error in a user's study becomes one line about its file."""

    def call() -> ml_collections.ConfigDict:
        values = study.experiment(arm.levels, scale)
        if not isinstance(values, ml_collections.ConfigDict):
            raise UsageError(
                f"experiment() returned {type(values).__name__}: expected unihetero_jax.config.defaults(), changed"
            )
        return values

    return user_files.in_file(Path(study.file), call, loading.explain_key) if study.file else call()


def _given(study: Study, flag: str, name: str, workdir: Workdir) -> str:
    given: Mapping[str, str] = getattr(workdir, flag)
    if name not in given:
        hints = study.datasets if flag == "data" else study.weights
        hint = f", {hints[name]}" if name in hints else ""
        raise UsageError(f"study {study.name} needs {name!r}: expected --{flag}={name}=DIR{hint}")
    return given[name]


def check_given(asked: Workdir, studies: Sequence[Study]) -> None:
    """Check that data and weights of the command line exist, and that a study can use them.

    Args:
      asked: the workdir with the data and weights given now; those stored before are checked where they are used.
      studies: the studies whose names of data and weights are valid.

    Raises:
      UsageError: names the option, and the nearest valid name.
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


def check_used(workdir: Workdir, config: Config) -> None:
    """Check that a run's data and weights, given before, still exist.

    Raises:
      UsageError: names the option to give their new path with.
    """
    paths = {config.init.path, *(getattr(config.init, name) for name in TOWER_NAMES)}
    sources = config.data.sources.items()
    used = [(f"--data={name}", source.root) for name, source in sources if isinstance(source, ShardsConfig)]
    used += [(f"--weights={kind}", path) for kind, path in workdir.weights.items() if path in paths]
    for option, path in used:
        if not Path(path).exists():
            raise UsageError(f"{path}: no such file or directory; expected {option}=DIR")
