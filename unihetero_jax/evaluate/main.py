"""``unihetero eval``: evaluates the checkpoints of a run; and what training does at its end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unihetero_jax.checkpoint import CONFIG, Trained, load_trained, steps
from unihetero_jax.config import mode_weights
from unihetero_jax.errors import UsageError
from unihetero_jax.evaluate import generation, losses, records, report, vqa
from unihetero_jax.generate.predict import Predictor
from unihetero_jax.startup import cache_compilations, speak

METRICS = "metrics.jsonl"
_POLL_SECONDS = 3.0


@dataclass(frozen=True)
class Pictures:
    """Some requests, what they should have given, and what they gave: [n, H, W, 3] uint8."""

    requests: list[str]
    truth: np.ndarray
    drawn: np.ndarray


def run(workdir: Path, step: int | None, follow: bool, out: Path | None) -> int:
    """Evaluates one checkpoint, or each one as it is written.

    Args:
      workdir: of a training run; ``eval.json``, ``curves.png`` and ``samples.png`` are written there.
      step: the checkpoint; the newest by default.
      follow: evaluate every checkpoint once, add each result to ``evals.jsonl``, and end with the run's last step.
      out: where the scores are written as well.

    Returns:
      The exit code, 0.

    Raises:
      UsageError: no such checkpoint, no dataset, or something cannot be written.
    """
    speak()
    cache_compilations(workdir)
    try:
        if follow:
            _follow(workdir, out)
        else:
            _write(*evaluate(load_trained(workdir, step)), workdir, out)
    except OSError as error:
        if error.filename is None:
            raise
        raise UsageError(f"{error.filename}: {error.strerror}") from error
    return 0


def finish(trained: Trained, workdir: Path) -> None:
    """Evaluates a model whose training has just ended: a table on the screen, and files in its workdir."""
    _write(*evaluate(trained), workdir, None)


def evaluate(trained: Trained) -> tuple[report.Findings, Pictures | None]:
    """Everything that the model's config asks for.

    Args:
      trained: the model.

    Returns:
      The numbers, and some pictures if the model draws any.

    Raises:
      UsageError: there is no dataset.
    """
    config, root = trained.config, trained.data_root
    wanted, size = config.evaluate, config.data.image_size
    predictor = Predictor(trained)
    scores: dict[str, vqa.Score] = {}
    if wanted.vqa:
        scores = vqa.evaluate(predictor.answer, *records.questions(root, size, wanted.questions))
    held_out = {}
    if wanted.losses:
        held_out = losses.evaluate(predictor.held_out, records.packed_rows(config, root, trained.tokenizer))
    found: dict[str, Any] = {}
    pictures = None
    # A model that never learned to draw says nothing about drawing.
    if wanted.generation and predictor.draws and mode_weights(config)["generation"]:
        asked = records.requests(root, size, wanted.images)
        found, drawn = generation.evaluate(predictor.draw, predictor.teach, predictor.embed, asked)
        if drawn is not None and wanted.pictures:
            some = slice(wanted.pictures)
            pictures = Pictures(list(asked.requests[some]), asked.images[some], drawn[some])
    return report.Findings(trained.step, scores, held_out, found), pictures


def _write(findings: report.Findings, pictures: Pictures | None, workdir: Path, out: Path | None) -> None:
    print(report.table(findings), flush=True)
    written = [workdir / report.EVAL]
    if out is not None and out.absolute() != written[0].absolute():
        written.append(out)
    for path in written:
        report.write_findings(findings, path)
    rows = [row for row in report.read_lines(workdir / METRICS) if "step" in row]
    if rows:
        report.draw_curves(rows, workdir / report.CURVES)
        written.append(workdir / report.CURVES)
    if pictures is not None:
        path = workdir / report.SAMPLES
        report.draw_samples(pictures.requests, pictures.truth, pictures.drawn, findings.step, path)
        written.append(path)
    print("\nwrote " + ", ".join(map(str, written)), flush=True)


def _follow(workdir: Path, out: Path | None, sleep: Callable[[float], None] = time.sleep) -> None:
    """Evaluates checkpoints in the order they appear, until the one of the run's last step is done."""
    done = {row.get("step") for row in report.read_lines(workdir / report.EVALS)}
    waiting = False
    while True:
        last = _last_step(workdir)
        if last in done:
            print(f"step {last:,} is evaluated: the run is complete")
            return
        step = next((step for step in steps(workdir) if step not in done), None)
        if step is None:
            if not waiting:
                print(f"waiting for a checkpoint in {workdir}", flush=True)
            waiting = True
            sleep(_POLL_SECONDS)
            continue
        waiting = False
        try:
            trained = load_trained(workdir, step)
        except Exception:
            if step in steps(workdir):
                raise
            # Training keeps the newest only: this one went away while it was read.
            done.add(step)
            continue
        findings, pictures = evaluate(trained)
        _write(findings, pictures, workdir, out)
        report.append_findings(findings, workdir / report.EVALS)
        done.add(step)


def _last_step(workdir: Path) -> int | None:
    """The step that the run ends with; None while there is no run. It may change when a run is continued."""
    try:
        return int(json.loads((workdir / CONFIG).read_text(encoding="utf-8"))["train"]["steps"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{workdir / CONFIG}: no config of a run: {error}") from error
