"""One run of a study, or one part that its runs share, in a process of its own; started by ``study.runner``.

python -m unihetero_jax.study.job run STUDY WORKDIR SCALE ARM SEED
python -m unihetero_jax.study.job data STUDY WORKDIR SCALE ARM
python -m unihetero_jax.study.job tower STUDY WORKDIR SCALE KIND
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

from unihetero_jax import __version__, tower_config
from unihetero_jax.config import Config
from unihetero_jax.data.workers import usable_cores
from unihetero_jax.errors import UsageError
from unihetero_jax.files import write_atomic
from unihetero_jax.startup import end_with_parent
from unihetero_jax.study import registry, runner
from unihetero_jax.study.declaration import Study

# What a report needs of a run; its checkpoints would fill the disk.
_KEPT = ("eval.json", "metrics.jsonl", "samples.png", "curves.png", "captions.png", "config.json", "logs")


def main(arguments: list[str]) -> int:
    """Does what the arguments say; the exit code is that of the training."""
    end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    what, name, workdir, *rest = arguments
    scale: Any = rest.pop(0)
    study = registry.find(name)
    try:
        if what == "data":
            return _build_data(runner.experiment(study, runner.Job(study.arm(rest[0]), 0), Path(workdir), scale))
        if what == "tower":
            return _train_tower(study, rest[0], Path(workdir), scale)
        return _run(study, runner.Job(study.arm(rest[0]), int(rest[1])), Path(workdir), scale)
    except UsageError as error:
        print(f"unihetero: error: {error}", file=sys.stderr)
        return 2


def _run(study: Study, job: runner.Job, workdir: Path, scale: Any) -> int:
    from unihetero_jax.evaluate import main as evaluate_main
    from unihetero_jax.train import main as train_main

    config = runner.experiment(study, job, workdir, scale)
    place = job.place(workdir)
    started = time.time()
    code = train_main.run(config, place / "run", evaluate_main.finish)
    if code:
        return code
    import jax

    device = jax.devices()[0]
    found = {
        "study": study.name,
        "arm": job.arm.name,
        "levels": dict(job.arm.levels),
        "seed": job.seed,
        "scale": scale,
        "evaluation": json.loads((place / "run" / "eval.json").read_text(encoding="utf-8")),
        "seconds": round(time.time() - started, 1),
        "machine": {
            "device": device.device_kind,
            "devices": jax.device_count(),
            "cores": usable_cores(),
            "python": platform.python_version(),
            "jax": jax.__version__,
            "unihetero_jax": __version__,
        },
        "config": config.to_dict(),
    }
    write_atomic(place / runner.RESULT, json.dumps(found, indent=1) + "\n")
    for path in (place / "run").iterdir():
        if path.name not in _KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return 0


def _build_data(config: Config) -> int:
    from unihetero_jax.train.main import prepare_data

    prepare_data(config, Path(config.data.root))
    return 0


def _train_tower(study: Study, kind: Any, workdir: Path, scale: Any) -> int:
    from unihetero_jax.evaluate import towers
    from unihetero_jax.train import tower_main

    config = tower_config.resolve(kind, study.tower(kind, scale).to_dict())
    config = dataclasses.replace(config, logging=dataclasses.replace(config.logging, tensorboard=False))
    return tower_main.run(config, runner.tower_place(workdir, kind), towers.finish)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
