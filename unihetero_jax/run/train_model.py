"""The training of a unified model in a workdir."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.config import Config
from unihetero_jax.data.packing.batch_stream import BatchStream
from unihetero_jax.data.packing.row_stream import DataState
from unihetero_jax.data.pipeline import batches, open_mixture, open_sources, report
from unihetero_jax.evaluate.common.report import EVALS
from unihetero_jax.files import json_rows
from unihetero_jax.model.build import define
from unihetero_jax.model.stored_features import open_features
from unihetero_jax.model.trained_model import Trained
from unihetero_jax.parallel import processes
from unihetero_jax.run.load_model import data_root, load_trained
from unihetero_jax.run.supervise import Job, carry_out
from unihetero_jax.run.workdir import absolute_paths, copy_tokenizer, identify, prepare_data, tokenizer_digests
from unihetero_jax.tokenizer.loading import load_tokenizer
from unihetero_jax.train import hosts
from unihetero_jax.train.hooks import Evaluated, Hooks
from unihetero_jax.train.learner import Learner
from unihetero_jax.train.loop import OpenStream
from unihetero_jax.train.unified import UnifiedLearner

log = logging.getLogger(__name__)

Finish = Callable[[Trained, Path], None]
During = Callable[[Trained, Path], Evaluated]


def train_model(
    config: Config,
    workdir: Path,
    finish: Finish | None = None,
    accept_changed_imports: bool = False,
    during: During | None = None,
) -> int:
    """Train a model in a workdir, or continue what is there.

    Args:
      config: the run's configuration.
      workdir: holds config, tokenizer, metrics and checkpoints; made if it is not there.
      finish: evaluates the trained model; called when ``evaluate.at_end`` is set.
      accept_changed_imports: continue with components of the user's that have changed since the run began.
      during: evaluates the model in the middle of training, every ``evaluate.every_steps``.

    Returns:
      The exit code of ``carry_out``; raises as that does.
    """
    config = absolute_paths(config)

    def trained(step: int) -> Trained:
        found = load_trained(workdir, step)
        # A run that is started again may ask for another evaluation than its checkpoint's config.
        wanted = dataclasses.replace(found.config, evaluate=config.evaluate, evaluators=config.evaluators)
        return dataclasses.replace(found, config=wanted)

    def evaluate() -> None:
        if finish is not None and config.evaluate.at_end:
            finish(trained(config.train.steps), workdir)

    def look(step: int, continued: bool) -> Evaluated | None:
        done = continued and any(row.get("step") == step for row in json_rows(workdir / EVALS))
        if done or during is None:
            return None
        try:
            return during(trained(step), workdir)
        except OSError as error:
            log.error("the evaluation after step %d cannot be written: %s; training continues", step, error)
            return None

    hooks = Hooks(evaluate=look, evaluate_every=config.evaluate.every_steps)
    return carry_out(Job(config, workdir, lambda: _assemble(config, workdir), evaluate, accept_changed_imports, hooks))


def _assemble(config: Config, workdir: Path) -> tuple[Learner, OpenStream]:
    root = data_root(config, workdir)
    if processes.is_first():
        if not config.data.sources:
            prepare_data(config, root)
        sources = open_sources(config, root)  # a missing source is reported before anything is written
        copy_tokenizer(config, root, workdir)
        data = {f"dataset {name or root.name}": source.contents() for name, source in sources.items()}
        identify(workdir, data | tokenizer_digests(workdir))
    processes.barrier("dataset")
    hosts.check_data_alike(source.fingerprint() for source in open_sources(config, root).values())
    tokenizer = load_tokenizer(workdir / checkpoint.TOKENIZER)
    features = open_features(config, root)
    samples = open_mixture(config, root, "train", config.train.seed, features)
    if processes.is_first():
        report(samples)

    def open_stream(rows: list[int], state: DataState | None) -> BatchStream:
        return batches(config, samples, tokenizer, rows, config.train.batch_size, state, features)

    return UnifiedLearner(config, define(config, tokenizer.vocabulary_size)), open_stream
