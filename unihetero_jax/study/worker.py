"""The process of one run of a study, or of one part that its runs share; ``study.runner`` starts it.

python -m unihetero_jax.study.worker run STUDY WORKDIR ARM SEED
python -m unihetero_jax.study.worker data STUDY WORKDIR ARM
python -m unihetero_jax.study.worker features STUDY WORKDIR ARM
python -m unihetero_jax.study.worker tower STUDY WORKDIR KIND
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
from typing import Any

import jax

from unihetero_jax import __version__
from unihetero_jax.config import Config, TaskWeights
from unihetero_jax.data.packing.processes import usable_cores
from unihetero_jax.errors import UsageError
from unihetero_jax.files import write_atomic
from unihetero_jax.parallel import processes
from unihetero_jax.parallel.startup import end_with_parent
from unihetero_jax.run import compute_features, train
from unihetero_jax.run.workdir import prepare_data
from unihetero_jax.study import registry
from unihetero_jax.study.definition import Study
from unihetero_jax.study.run_config import Run, run_config
from unihetero_jax.study.workdir import Workdir
from unihetero_jax.train.towers import base as tower_config

# What reports and later evaluations read of a run; the rest is removed.
_RETAINED = {"checkpoints", "tokenizer.model", "tokenizer.json", "eval.json", "metrics.jsonl", "config.json", "logs"}
_RETAINED |= {"samples.png", "curves.png", "captions.png"}
_FEATURES_BATCH = 64


def main(arguments: list[str]) -> int:
    """Do what the arguments say; return the exit code of the training."""
    end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    what, name, path, *rest = arguments
    study, workdir = registry.find(name), Workdir.open(Path(path))
    try:
        if what == "tower":
            return _train_tower(study, rest[0], workdir)
        seed = int(rest[1]) if what == "run" else 0
        config = run_config(study, Run(study.arm(rest[0]), seed), workdir)
        if what == "run":
            return _run(config, workdir)
        return _build_data(config) if what == "data" else _store_features(config)
    except UsageError as error:
        print(f"unihetero: error: {error}", file=sys.stderr)
        return 2


def _run(config: Config, workdir: Workdir) -> int:
    directory = workdir.run(config) / "run"
    started = time.time()
    code = train(config, directory)
    if code or not processes.is_first():
        return code
    found = {
        "seed": config.train.seed,
        "scale": workdir.scale,
        "evaluation": json.loads((directory / "eval.json").read_text(encoding="utf-8")),
        "seconds": round(time.time() - started, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "machine": {
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "cores": usable_cores(),
            "python": platform.python_version(),
            "jax": jax.__version__,
            "unihetero_jax": __version__,
        },
        "config": workdir.portable(config),
    }
    write_atomic(workdir.result_path(config), json.dumps(found, indent=1) + "\n")
    for path in directory.iterdir():
        if path.name not in _RETAINED:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return 0


def _build_data(config: Config) -> int:
    prepare_data(config, Path(config.data.root))
    return 0


def _store_features(config: Config) -> int:
    # For all tasks, because arms that learn other tasks than this one share the features.
    data = dataclasses.replace(config.data, mode="mixed", task_weights=TaskWeights())
    batches = dataclasses.replace(config.evaluate, batch_size=_FEATURES_BATCH)
    wanted = dataclasses.replace(config, data=data, evaluate=batches)
    compute_features(wanted, Path(config.data.features), splits=("train",))
    return 0


def _train_tower(study: Study, kind: Any, workdir: Workdir) -> int:
    config = tower_config.resolve(kind, study.tower(kind, workdir.scale).to_dict())
    config = dataclasses.replace(config, logging=dataclasses.replace(config.logging, tensorboard=False))
    return train(config, workdir.tower(kind))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
