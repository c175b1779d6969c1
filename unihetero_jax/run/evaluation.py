"""``unihetero eval``: evaluates the checkpoints of a run; and what training does at its end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np

from unihetero_jax.checkpoint.restore import CHECKPOINTS, CONFIG, DamagedError, steps
from unihetero_jax.config import Config, mode_weights, resolve
from unihetero_jax.data.smart_watch import Attributes
from unihetero_jax.errors import UsageError
from unihetero_jax.evaluate import (
    answers,
    captions,
    frechet,
    generation,
    held_out,
    losses,
    perplexity,
    probes,
    records,
    report,
    vqa,
)
from unihetero_jax.evaluate.features import of_tower
from unihetero_jax.evaluate.readback import Reader
from unihetero_jax.files import json_rows
from unihetero_jax.generate.pooling import pooled
from unihetero_jax.generate.predict import Predictor
from unihetero_jax.model.trained import Trained
from unihetero_jax.parallel.startup import cache_compilations, set_up_logging
from unihetero_jax.run.load import load_trained
from unihetero_jax.towers.attribute_classifier.config import ReaderConfig
from unihetero_jax.towers.trained import read_tower

METRICS = "metrics.jsonl"
_POLL_SECONDS = 3.0


@dataclass(frozen=True)
class Pictures:
    """Some requests, what they should have given, and what they gave: [n, H, W, 3] uint8."""

    requests: list[str]
    truth: np.ndarray
    drawn: np.ndarray


@dataclass(frozen=True)
class Read:
    """Some pictures, [n, H, W, 3] uint8, the true answers about them, and the given ones."""

    images: np.ndarray
    truths: list[str]
    answers: list[str]


@dataclass(frozen=True)
class Grids:
    """What pictures are made of: what the model drew, if it draws any, and its answers, if they are scored.

    ``kept``: everything that it drew, where that is to be kept.
    """

    drawn: Pictures | None = None
    read: Read | None = None
    kept: Pictures | None = None


def run(
    workdir: Path, step: int | None, follow: bool, out: Path | None, changes: Mapping[str, Any] = MappingProxyType({})
) -> int:
    """Evaluates one checkpoint, or each one as it is written.

    Args:
      workdir: of a training run; ``eval.json``, ``curves.png``, ``samples.png`` and ``captions.png`` are written there.
      step: the checkpoint; the newest by default.
      follow: evaluate every checkpoint once, add each result to ``evals.jsonl``, and end with the run's last step.
      out: where the scores are written as well.
      changes: values in place of those that the run has in ``config.evaluate``.

    Returns:
      The exit code, 0.

    Raises:
      UsageError: no such checkpoint, no dataset, something cannot be written, or a wrong value.
    """
    set_up_logging()
    cache_compilations(workdir)
    try:
        if follow:
            _follow(workdir, out, changes=changes)
        else:
            _write(*evaluate(measured_by(load_trained(workdir, step), changes)), workdir, out)
    except OSError as error:
        if error.filename is None:
            raise
        raise UsageError(f"{error.filename}: {error.strerror}") from error
    return 0


def finish(trained: Trained, workdir: Path) -> None:
    """Evaluates a model whose training has just ended: a table on the screen, and files in its workdir."""
    _write(*evaluate(trained), workdir, None)


def evaluate(trained: Trained) -> tuple[report.Findings, Grids]:
    """Everything that the model's config asks for, of what its datasets have test records for.

    Smart Watch has scores of its own, for answers and for drawings. Those of other datasets are compared with the true
    ones, and drawings are made for the first of them that asks for pictures, if there is no Smart Watch.

    Args:
      trained: the model.

    Returns:
      The numbers, and what to make pictures of.

    Raises:
      UsageError: there is no dataset.
    """
    config, root = trained.config, trained.data_root
    wanted, size = config.evaluate, config.data.image_size
    predictor = Predictor(trained)
    watch = next(iter(held_out.smart_watches(config, root).values()), None)
    scores: dict[str, vqa.Score] = {}
    answered: dict[str, answers.AnswerScore] = {}
    read = None
    if wanted.vqa:
        if watch is not None:
            scores = vqa.evaluate(predictor.answer, *records.questions(watch, size, wanted.questions))
        answered, read = _answer(predictor, root)
    told: dict[str, Any] = {}
    known = None
    if watch is not None and (wanted.probes or wanted.frechet):
        known = records.watches(watch, held_out.TRAIN, size, wanted.probe_images)
    if watch is not None and wanted.probes:
        assert known is not None
        images, truths = records.watches(watch, held_out.TEST, size, max(wanted.images, wanted.questions))
        told["probes"] = probes.evaluate(predictor.states(known[0]), known[1], predictor.states(images), truths)
    if watch is not None and wanted.captions:
        shown = records.requests(watch, size, wanted.questions, "caption")
        longest = max(len(predictor.tokenizer.encode(caption)) for caption in shown.phrases)
        given = predictor.answer(shown.images, shown.requests, min(longest + 1, config.data.slots))
        told["captions"] = captions.score(given, shown.phrases, shown.truths)
    if wanted.perplexity:
        texts = perplexity.documents(Path(wanted.perplexity))
        settings = predictor.tokenizer, config.data.slots, size, wanted.batch_size
        told["perplexity"] = perplexity.evaluate(predictor.text, texts, *settings)
    rows: dict[str, dict[str, Any]] = {}
    if wanted.losses:
        rows = losses.evaluate(predictor.held_out, records.packed_rows(config, root, trained.tokenizer))
    found: dict[str, Any] = {}
    pictures = kept = None
    # A model that never learned to draw says nothing about drawing.
    asked = _requests(config, root, watch) if wanted.generation and predictor.draws else None
    if asked is not None:
        instruments = _instruments(predictor, asked, known)
        found, drawn = generation.evaluate(predictor.draw, predictor.teach, predictor.embed, asked, instruments)
        if drawn is not None and wanted.pictures:
            some = slice(wanted.pictures)
            pictures = Pictures(list(asked.requests[some]), asked.images[some], drawn[some])
        if drawn is not None and wanted.keep_drawn:
            kept = Pictures(list(asked.requests), asked.images, drawn)
    return report.Findings(trained.step, scores, rows, found, answered, told), Grids(pictures, read, kept)


def _instruments(
    predictor: Predictor, asked: generation.Requests, known: tuple[np.ndarray, list[Attributes]] | None
) -> generation.Instruments:
    """What drawn pictures are measured with.

    Args:
      predictor: of the model.
      asked: the requests.
      known: training pictures of watches and what they show, where they are needed.
    """
    wanted = predictor.config.evaluate
    read = Reader.load(Path(wanted.reader), wanted.batch_size).read if wanted.reader and asked.truths else None
    probe = features = reference = None
    if wanted.probes and asked.truths and known is not None:
        fitted = probes.fit(_vectors(predictor.embed(known[0])), known[1])

        def probe(embeddings: np.ndarray) -> list[Attributes]:
            return fitted.read(_vectors(embeddings))

    if wanted.frechet and predictor.has_pixels:
        features = of_tower(Path(wanted.frechet), wanted.batch_size)
        # Of other data the requests' own pictures, whose distance from themselves is then 0.
        reference = frechet.gaussian(features(asked.images if known is None else known[0]))
    return generation.Instruments(read, predictor.reconstruct, probe, features, reference)


def _vectors(embeddings: np.ndarray) -> np.ndarray:
    return np.asarray(pooled(jnp.asarray(probes.directions(embeddings))))


def _answer(predictor: Predictor, root: Path) -> tuple[dict[str, answers.AnswerScore], Read | None]:
    """Scores of answers by dataset and task; and the first answers to the first of them."""
    config, coder = predictor.config, predictor.tokenizer
    learned = {entry.name: entry for entry in held_out.entries(config, root, held_out.TRAIN)}
    known: dict[str, list[str]] = {}
    questions: dict[str, held_out.Asked] = {}
    for entry in held_out.entries(config, root, held_out.TEST):
        asked = held_out.questions(config, entry)
        if asked is not None and entry.name in learned and (found := held_out.training_answers(learned[entry.name])):
            known[entry.name], questions[entry.name] = found, asked
    # As long as any that it learned; what fits no row was not. One limit, because each is a program to compile.
    longest = max((len(coder.encode(answer)) for found in known.values() for answer in found), default=0)
    limit = min(longest + 1, config.data.slots)
    scores: dict[str, answers.AnswerScore] = {}
    read = None
    for name, asked in questions.items():
        given = predictor.answer(asked.images, asked.questions, limit)
        scores[name] = answers.score(given, asked.truths, answers.best_constant(known[name]))
        if read is None and config.evaluate.pictures:
            some = slice(config.evaluate.pictures)
            read = Read(asked.images[some], asked.truths[some], given[some])
    return scores, read


def _requests(config: Config, root: Path, watch: Path | None) -> generation.Requests | None:
    """Requests for pictures: of Smart Watch, else of the first dataset that has some; None without any."""
    if watch is not None and mode_weights(config)["generation"]:
        return records.requests(watch, config.data.image_size, config.evaluate.images)
    for entry in held_out.entries(config, root, held_out.TEST):
        if (asked := held_out.requests(config, entry)) is not None:
            return asked
    return None


def _write(findings: report.Findings, grids: Grids, workdir: Path, out: Path | None) -> None:
    print(report.table(findings), flush=True)
    written = [workdir / report.EVAL]
    if out is not None and out.absolute() != written[0].absolute():
        written.append(out)
    for path in written:
        report.write_findings(findings, path)
    rows = [row for row in json_rows(workdir / METRICS) if "step" in row]
    if rows:
        report.draw_curves(rows, workdir / report.CURVES)
        written.append(workdir / report.CURVES)
    if (drawn := grids.drawn) is not None:
        path = workdir / report.SAMPLES
        report.draw_samples(drawn.requests, drawn.truth, drawn.drawn, findings.step, path)
        written.append(path)
    if (read := grids.read) is not None:
        path = workdir / report.CAPTIONS
        report.draw_captions(read.images, read.truths, read.answers, findings.step, path)
        written.append(path)
    if (kept := grids.kept) is not None:
        path = workdir / report.DRAWN
        report.keep_drawn(kept.requests, kept.truth, kept.drawn, path)
        written.append(path)
    print("\nwrote " + ", ".join(map(str, written)), flush=True)


def check(config: Config) -> None:
    """Refuses an evaluation that lacks its reader, tower or text, before a training that ends with it.

    Raises:
      UsageError: naming the key.
    """
    wanted = config.evaluate
    for key in ("reader", "frechet"):
        if place := getattr(wanted, key):
            try:
                found = read_tower(Path(place))
            except UsageError as error:
                raise UsageError(f"config.evaluate.{key}: {error}") from None
            if key == "reader" and not isinstance(found, ReaderConfig):
                raise UsageError(
                    f"config.evaluate.reader={place}: holds another tower; expected `unihetero towers train "
                    "attribute_classifier`"
                )
    if wanted.perplexity:
        perplexity.documents(Path(wanted.perplexity))


def measured_by(trained: Trained, changes: Mapping[str, Any]) -> Trained:
    """The model, but that other things are measured."""
    if not changes:
        return trained
    values = trained.config.to_dict()
    config = resolve({**values, "evaluate": {**values["evaluate"], **changes}})
    check(config)
    return replace(trained, config=config)


def _follow(
    workdir: Path,
    out: Path | None,
    sleep: Callable[[float], None] = time.sleep,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Evaluates checkpoints in the order they appear, until the one of the run's last step is done.

    A damaged one is left out; should the run write it anew, that is another one.

    Raises:
      UsageError: the last step's checkpoint is damaged.
    """
    done = {row.get("step") for row in json_rows(workdir / report.EVALS)}
    # Of each damaged step, which folder it was, and what is wrong with it.
    damaged: dict[int, tuple[int | None, str]] = {}
    waiting = False
    while True:
        last = _last_step(workdir)
        if last in done:
            print(f"step {last:,} is evaluated: the run is complete")
            return
        there = [step for step in steps(workdir) if step not in done]
        step = next((s for s in there if s not in damaged or damaged[s][0] != _folder(workdir, s)), None)
        if step is None:
            if last in damaged and last in there:
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
            # Training keeps the newest only: this one went away while it was read.
            done.add(step)
            continue
        findings, grids = evaluate(measured_by(trained, changes))
        _write(findings, grids, workdir, out)
        report.append_findings(findings, workdir / report.EVALS)
        done.add(step)


def _folder(workdir: Path, step: int) -> int | None:
    """Which folder a step's checkpoint is, by its number in the file system; None where it went away."""
    try:
        return (workdir / CHECKPOINTS / str(step)).stat().st_ino
    except FileNotFoundError:
        return None


def _last_step(workdir: Path) -> int | None:
    """The step that the run ends with; None while there is no run. It may change when a run is continued."""
    try:
        return int(json.loads((workdir / CONFIG).read_text(encoding="utf-8"))["train"]["steps"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{workdir / CONFIG}: no config of a run: {error}") from error
