"""One run of a study, or one part that its runs share, in a process of its own; started by ``study.runner``.

python -m unihetero_jax.study.job run STUDY WORKDIR ARM SEED
python -m unihetero_jax.study.job data STUDY WORKDIR ARM
python -m unihetero_jax.study.job features STUDY WORKDIR ARM
python -m unihetero_jax.study.job tower STUDY WORKDIR KIND
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unihetero_jax import __version__
from unihetero_jax.config import Config, TaskWeights
from unihetero_jax.data.packing.process_pool import usable_cores
from unihetero_jax.errors import UsageError
from unihetero_jax.files import write_atomic
from unihetero_jax.parallel.startup import end_with_parent
from unihetero_jax.study import registry
from unihetero_jax.study.declaration import Study
from unihetero_jax.study.places import Job, Place, experiment, opened, portable
from unihetero_jax.train.towers import config as tower_config

if TYPE_CHECKING:
    from unihetero_jax.model.trained import Trained

# What a report needs of a run, and another evaluation of it.
_KEPT = (
    "checkpoints",
    "tokenizer.model",
    "tokenizer.json",
    "eval.json",
    "metrics.jsonl",
    "samples.png",
    "curves.png",
    "captions.png",
    "config.json",
    "logs",
)
_FEATURES_AT_A_TIME = 64


def main(arguments: list[str]) -> int:
    """Does what the arguments say; the exit code is that of the training."""
    end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    what, name, workdir, *rest = arguments
    study, place = registry.find(name), opened(Path(workdir))
    try:
        if what == "tower":
            return _train_tower(study, rest[0], place)
        seed = int(rest[1]) if what == "run" else 0
        config = experiment(study, Job(study.arm(rest[0]), seed), place)
        make = {"run": _run, "data": _build_data, "features": _store_features}[what]
        return make(config, place)
    except UsageError as error:
        print(f"unihetero: error: {error}", file=sys.stderr)
        return 2


def _run(config: Config, place: Place) -> int:
    from unihetero_jax.run import evaluation
    from unihetero_jax.run import train as train_main

    directory = place.run(config)
    started = time.time()

    def finish(trained: Trained, workdir: Path) -> None:
        # A run that was evaluated in another way before has that in its checkpoint.
        evaluation.finish(evaluation.evaluated_as(trained, config), workdir)

    code = train_main.run(config, directory / "run", finish)
    if code:
        return code
    import jax

    from unihetero_jax.parallel import processes

    if not processes.is_first():
        return 0
    device = jax.devices()[0]
    found = {
        "seed": config.train.seed,
        "scale": place.scale,
        "evaluation": json.loads((directory / "run" / "eval.json").read_text(encoding="utf-8")),
        "seconds": round(time.time() - started, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "machine": {
            "device": device.device_kind,
            "devices": jax.device_count(),
            "cores": usable_cores(),
            "python": platform.python_version(),
            "jax": jax.__version__,
            "unihetero_jax": __version__,
        },
        "config": portable(config, place.workdir),
    }
    write_atomic(place.result(config), json.dumps(found, indent=1) + "\n")
    for path in (directory / "run").iterdir():
        if path.name not in _KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return 0


def _build_data(config: Config, place: Place) -> int:
    from unihetero_jax.run.train import prepare_data

    prepare_data(config, Path(config.data.root))
    return 0


def _store_features(config: Config, place: Place) -> int:
    from unihetero_jax.run import compute_features as features

    # Of all tasks, for the arms that learn other ones than this arm.
    data = dataclasses.replace(config.data, mode="mixed", task_weights=TaskWeights())
    evaluate = dataclasses.replace(config.evaluate, batch_size=_FEATURES_AT_A_TIME)
    return features.run(
        dataclasses.replace(config, data=data, evaluate=evaluate), Path(config.data.features), splits=("train",)
    )


def _train_tower(study: Study, kind: Any, place: Place) -> int:
    from unihetero_jax.run import evaluate_tower as towers
    from unihetero_jax.run import train_tower as tower_main

    config = tower_config.resolve(kind, study.tower(kind, place.scale).to_dict())
    config = dataclasses.replace(config, logging=dataclasses.replace(config.logging, tensorboard=False))
    return tower_main.run(config, place.tower(kind), towers.finish)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
