"""Evaluate the checkpoints of a run, by ``unihetero eval``, from Python, or at the end of training."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from unihetero_jax.checkpoint.restore import CHECKPOINTS, CONFIG, DamagedError, steps
from unihetero_jax.config import Config
from unihetero_jax.config.changed_keys import flatten
from unihetero_jax.config.components import EVALUATORS
from unihetero_jax.config.loading import EVALUATION, change
from unihetero_jax.errors import UsageError
from unihetero_jax.evaluate.base import Context
from unihetero_jax.evaluate.common import figures
from unihetero_jax.evaluate.common.report import (
    CURVES,
    EVAL,
    EVALS,
    Findings,
    append_findings,
    write_file,
    write_findings,
)
from unihetero_jax.files import json_object, json_rows, write_atomic
from unihetero_jax.generate.predict import Predictor
from unihetero_jax.model.trained_model import Trained
from unihetero_jax.parallel.startup import cache_compilations, set_up_logging
from unihetero_jax.run.load_model import load_trained
from unihetero_jax.train.hooks import Evaluated

METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations"
_POLL_SECONDS = 3.0


def run(
    workdir: Path,
    step: int | None = None,
    follow: bool = False,
    out: Path | None = None,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Evaluate one checkpoint of a run, or each one as it is written; arguments and errors of ``run.evaluate``.

    Returns:
      The numbers of the last evaluation.
    """
    set_up_logging()
    cache_compilations(workdir)
    try:
        if follow:
            _follow(workdir, out, changes=changes)
        else:
            trained = with_changes(load_trained(workdir, step), changes)
            write(run_evaluators(trained), workdir, trained.config.losses, out)
    except OSError as error:
        if error.filename is None:
            raise
        raise UsageError(f"{error.filename}: {error.strerror}") from error
    return json_object(workdir / EVAL, "what an evaluation found")


def finish(trained: Trained, workdir: Path) -> None:
    """Evaluate a model whose training has just ended: a table on the screen, and files in its workdir."""
    findings = run_evaluators(trained)
    write(findings, workdir, trained.config.losses)
    if trained.config.evaluate.every_steps:
        _add(findings, workdir / EVALS)


def during(trained: Trained, workdir: Path) -> Evaluated:
    """Evaluate a model in the middle of its training: a table, a line of ``evals.jsonl``, pictures of the step.

    Returns:
      Its numbers and pictures.
    """
    findings = run_evaluators(trained)
    folder = workdir / EVALUATIONS / str(trained.step)
    folder.mkdir(parents=True, exist_ok=True)
    print(findings.table(), flush=True)
    write_findings(findings, workdir / EVAL)
    files = findings.files()
    for name, content in files.items():
        write_file(content, folder / name)
    # Last: a step that has a line here is not evaluated again.
    _add(findings, workdir / EVALS)
    numbers = {
        name.replace(".", "/"): float(value)
        for name, value in flatten(findings.to_json()).items()
        if isinstance(value, int | float) and name != "step"
    }
    return Evaluated(numbers, {name: (folder / name).read_bytes() for name in files if name.endswith(".png")})


def _add(findings: Findings, path: Path) -> None:
    """Add a line to those of earlier steps; later ones are of steps that a rollback has undone."""
    rows = [row for row in json_rows(path) if row.get("step", 0) < findings.step]
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in (*rows, findings.to_json())))


def run_evaluators(trained: Trained) -> Findings:
    """Run each entry of the config's evaluators.

    Args:
      trained: the model, whose config names the evaluators.

    Raises:
      UsageError: a dataset or another file is missing or broken.
    """
    context = Context(Predictor(trained), trained.config, trained.data_root, trained.step)
    sections = trained.config.evaluators.items()
    return Findings(trained.step, {name: EVALUATORS.find(section.kind)(section, context) for name, section in sections})


def write(findings: Findings, workdir: Path, losses: Iterable[str], out: Path | None = None) -> None:
    """Print the table, and write the numbers, the learning curves and the evaluators' files.

    Args:
      findings: of an evaluation.
      workdir: directory of the run.
      losses: names in its ``config.losses``, which have curves.
      out: another file for the numbers.
    """
    print(findings.table(), flush=True)
    written = [workdir / EVAL]
    if out is not None and out.absolute() != written[0].absolute():
        written.append(out)
    for path in written:
        write_findings(findings, path)
    files = findings.files()
    if rows := [row for row in json_rows(workdir / METRICS) if "step" in row]:
        files = {CURVES: figures.curves(rows, losses), **files}
    for name, content in files.items():
        write_file(content, workdir / name)
        written.append(workdir / name)
    print("\nwrote " + ", ".join(map(str, written)), flush=True)


def check(config: Config) -> None:
    """Refuse an evaluation whose files are missing, before a training that ends with it.

    Raises:
      UsageError: naming the key.
    """
    for name, section in config.evaluators.items():
        section.check_files(f"config.evaluators.{name}")


def with_changes(trained: Trained, changes: Mapping[str, Any]) -> Trained:
    """The model with other values below ``config.evaluate`` and ``config.evaluators``.

    Raises:
      UsageError: a key of another section, a wrong value, or a missing file.
    """
    if not changes:
        return trained
    config = change(trained.config, changes, EVALUATION)
    check(config)
    return replace(trained, config=config)


def _follow(
    workdir: Path,
    out: Path | None,
    sleep: Callable[[float], None] = time.sleep,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Evaluate checkpoints in the order they appear, until the one of the run's last step is done.

    A damaged one is skipped, unless the run writes that step again.

    Raises:
      UsageError: the last step's checkpoint is damaged.
    """
    done = {row.get("step") for row in json_rows(workdir / EVALS)}
    # For each damaged step, its folder's number and what is wrong with it.
    damaged: dict[int, tuple[int | None, str]] = {}
    waiting = False
    while True:
        last = _last_step(workdir)
        if last in done:
            print(f"step {last:,} is evaluated: the run is complete")
            return
        present = [step for step in steps(workdir) if step not in done]
        step = next((s for s in present if s not in damaged or damaged[s][0] != _folder(workdir, s)), None)
        if step is None:
            if last in damaged and last in present:
                raise UsageError(f"the last step's checkpoint cannot be evaluated: {damaged[last][1]}")
            if not waiting:
                print(f"waiting for a checkpoint in {workdir}", flush=True)
            waiting = True
            sleep(_POLL_SECONDS)
            continue
        waiting = False
        try:
            trained = load_trained(workdir, step)
        except DamagedError as error:
            print(f"not evaluated: {error}", flush=True)
            damaged[step] = _folder(workdir, step), str(error)
            continue
        except Exception:
            if step in steps(workdir):
                raise
            # Training keeps the newest only: this one was removed while it was read.
            done.add(step)
            continue
        findings = run_evaluators(with_changes(trained, changes))
        write(findings, workdir, trained.config.losses, out)
        append_findings(findings, workdir / EVALS)
        done.add(step)


def _folder(workdir: Path, step: int) -> int | None:
    """The number of a checkpoint's folder in the file system; None if it was removed."""
    try:
        return (workdir / CHECKPOINTS / str(step)).stat().st_ino
    except FileNotFoundError:
        return None


def _last_step(workdir: Path) -> int | None:
    """The step that the run ends with, which changes when a run is continued; None while there is no run."""
    try:
        return int(json.loads((workdir / CONFIG).read_text(encoding="utf-8"))["train"]["steps"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{workdir / CONFIG}: no config of a run: {error}") from error
