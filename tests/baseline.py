"""Runs of this tree against those of a reference commit, to the last digit.

    python tests/baseline.py record [--out=DIR]
    python tests/baseline.py compare [--ref=COMMIT]

For a change that is meant to move code and no numbers. ``record`` trains the quickstart and each small twin for 30
steps, evaluates the quickstart's short run, resolves every config file, and writes it all to ``DIR/baseline.json``.
``compare`` records the reference commit in a git worktree, with that commit's own copy of this file, and then the tree
that this file stands in, and prints every number and every config key that differs. The reference is kept in
``~/.cache/unihetero_jax/baseline/COMMIT``, and recorded again when Python, jax or the number of cores is another.

Exit code 1: a number differs. Keys that one side lacks are listed as well, but may be renamed on purpose.

Runs are started as a user starts them, so that code can be moved freely below the command line. Each takes one device
of the CPU and compiles with XLA's usual optimizations. About 5 minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path.home() / ".cache" / "unihetero_jax" / "baseline"
REFERENCE = "2f95e57e33885c2f313cfff5432afca50088174c"

STEPS = 30
RUNS = ("configs/quickstart.py", "configs/unihetero_small.py", "configs/pairings/*_small.py")
EVALUATED = "configs/quickstart.py"
# A smaller dataset is built faster, and a short run sees little of it anyway.
DATASET = {"data.smart_watch.num_images": "1000", "data.smart_watch.test_images": "100"}
OVERRIDES = {
    **DATASET,
    "train.steps": str(STEPS),
    "logging.tensorboard": "false",
    "evaluate.at_end": "false",
    "evaluate.questions": "20",
    "evaluate.images": "10",
    "evaluate.pictures": "0",
}

Record = dict[str, Any]


def record() -> Record:
    """What this tree computes: ``metrics`` of each run, ``scores`` of one, and every ``config``, by dotted key."""
    started = time.monotonic()
    configs = {name: _config(name) for name in _files("configs/*.py", "configs/pairings/*.py", "configs/towers/*.py")}
    _report(started, f"{len(configs)} configs")
    metrics, scores = {}, {}
    with tempfile.TemporaryDirectory(prefix="baseline-") as place:
        for name in _files(*RUNS):
            workdir = Path(place) / name.replace("/", "-")
            data = Path(place) / f"data-{_dataset(configs[name])}"
            overrides = {**OVERRIDES, "data.root": str(data)}
            arguments = [f"--config.{key}={value}" for key, value in overrides.items()]
            _unihetero("train", f"--config={name}", f"--workdir={workdir}", *arguments)
            rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
            metrics[name] = [_flat(_without_timing(row)) for row in rows[:STEPS]]
            _report(started, f"{name}: {len(metrics[name])} rows")
            if name == EVALUATED:
                out = workdir / "scores.json"
                _unihetero("eval", f"--workdir={workdir}", f"--out={out}")
                scores[name] = _flat(_without_timing(json.loads(out.read_text(encoding="utf-8"))))
                _report(started, f"{name}: {len(scores[name])} scores")
    return {"environment": _environment(), "metrics": metrics, "scores": scores, "configs": configs}


def reference(commit: str) -> Record:
    """The record of a commit, made by its own copy of this file unless this machine has it."""
    folder = CACHE / commit
    stored = folder / "baseline.json"
    if stored.exists():
        found: Record = json.loads(stored.read_text(encoding="utf-8"))
        if found["environment"] == _environment():
            return found
    with _worktree(commit) as tree:
        script = tree / "tests" / "baseline.py"
        if not script.exists():
            sys.exit(f"--ref={commit}: that commit has no tests/baseline.py; expected a later one")
        print(f"recording {commit[:12]}", flush=True)
        subprocess.run([sys.executable, script, "record", f"--out={folder}"], cwd=tree, check=True)
    made: Record = json.loads(stored.read_text(encoding="utf-8"))
    return made


def differences(expected: Record, found: Record) -> tuple[list[str], list[str]]:
    """(numbers and values that differ, keys that only one side has), a line each."""
    changed, missing = [], []
    before, after = _flat(expected), _flat(found)
    for key in dict.fromkeys((*before, *after)):
        if key not in after:
            missing.append(f"only in the reference: {key} = {before[key]!r}")
        elif key not in before:
            missing.append(f"only here: {key} = {after[key]!r}")
        elif before[key] != after[key] and not (before[key] != before[key] and after[key] != after[key]):  # both NaN
            changed.append(f"{key}: {before[key]!r} -> {after[key]!r}")
    return changed, missing


def _config(name: str) -> dict[str, Any]:
    """A config file, resolved, by dotted key."""
    sys.path[:0] = [str(ROOT)]  # before an installed one
    load = _attribute("load", "config", "config.loading", "config_file")
    arguments: list[Any] = [ROOT / name]
    if name.startswith("configs/towers/"):
        tree = _attribute("tree", "train.towers.base", "train.towers.config", "tower_config")
        arguments += [(), tree(Path(name).stem)] if tree else []
    return _flat(json.loads(json.dumps(load(*arguments).to_dict())))


def _attribute(name: str, *modules: str) -> Any:
    """A function of the package, from the first of the places where it has been that has it; None: nowhere."""
    for module in modules:
        with contextlib.suppress(ModuleNotFoundError, AttributeError):
            return getattr(importlib.import_module(f"unihetero_jax.{module}"), name)
    return None


def _dataset(config: Mapping[str, Any]) -> str:
    """A name that runs share which need the same dataset."""
    words = ("image_size", "smart_watch")
    about = {key: value for key, value in config.items() if key.startswith("data.") and any(w in key for w in words)}
    return hashlib.sha256(json.dumps({**about, **DATASET}, sort_keys=True).encode()).hexdigest()[:8]


def _files(*patterns: str) -> list[str]:
    return [str(path.relative_to(ROOT)) for pattern in patterns for path in sorted(ROOT.glob(pattern))]


def _unihetero(*arguments: str) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }
    command = [sys.executable, "-m", "unihetero_jax", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\n{' '.join(command)}: exit code {done.returncode}")


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts and lists by dotted key; what is empty stays as it is."""
    items = enumerate(values) if isinstance(values, list) else values.items()
    flat: dict[str, Any] = {}
    for key, value in items:
        nested = isinstance(value, dict | list) and value
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _without_timing(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "timing"}


def _environment() -> dict[str, Any]:
    """What numbers may depend on besides the code."""
    versions = {
        name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy", "pillow")
    }
    return {"python": platform.python_version(), "cores": os.cpu_count(), **versions}


@contextlib.contextmanager
def _worktree(commit: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="baseline-") as place:
        tree = Path(place) / "tree"
        _git("worktree", "add", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def _report(started: float, text: str) -> None:
    print(f"{time.monotonic() - started:5.0f} s  {text}", flush=True)


def _write(found: Record, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "baseline.json"
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def main() -> int:
    """Reads the command line; 0, or 1 when a number differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording = verbs.add_parser("record", help="record this tree")
    recording.add_argument("--out", type=Path, default=Path("runs/baseline"), help="folder (default: %(default)s)")
    comparing = verbs.add_parser("compare", help="compare this tree with a commit")
    comparing.add_argument("--ref", default=REFERENCE, required=not REFERENCE, help="commit (default: %(default)s)")
    options = parser.parse_args()
    if options.verb == "record":
        _write(record(), options.out)
        return 0
    expected = reference(_git("rev-parse", "--verify", f"{options.ref}^{{commit}}"))
    print("recording this tree", flush=True)
    changed, missing = differences(expected, record())
    print("\n".join([*missing, *changed, f"{len(changed)} values differ; {len(missing)} keys are on one side only"]))
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
