"""``unihetero train``: dataset, training and what is made at the end, in a workdir."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.config import TOWER_NAMES, Config, RunConfig, refused_on_resume, to_json
from unihetero_jax.config.tree import Table
from unihetero_jax.data.opening import batches, datasets, find_tokenizer, open_mixture, report
from unihetero_jax.data.packing.batch_stream import BatchStream
from unihetero_jax.data.packing.row_stream import DataState
from unihetero_jax.data.packing.worker_rows import WorkerLost
from unihetero_jax.data.records.manifest import load_manifest
from unihetero_jax.errors import UsageError
from unihetero_jax.files import write_atomic
from unihetero_jax.model.build import define
from unihetero_jax.model.trained import Trained
from unihetero_jax.parallel import processes
from unihetero_jax.parallel.mesh import make_mesh
from unihetero_jax.parallel.startup import cache_compilations, speak
from unihetero_jax.run.load import data_root, load_trained
from unihetero_jax.tokenizer import tokenizer_json
from unihetero_jax.tokenizer.sentencepiece import Tokenizer
from unihetero_jax.train import hosts
from unihetero_jax.train.learner import Learner
from unihetero_jax.train.loop import NonFiniteLoss, OpenStream, train
from unihetero_jax.train.monitor.goodput import Goodput, in_words
from unihetero_jax.train.monitor.host_log import HostLog
from unihetero_jax.train.stored_features import open_features
from unihetero_jax.train.towers.config import TowerRunConfig
from unihetero_jax.train.unified import UnifiedLearner

log = logging.getLogger(__name__)

Finish = Callable[[Trained, Path], None]

NON_FINITE = 1
USAGE = 2

# Of XLA's errors those that another start would meet again.
_OUR_FAULT = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")


def run(config: Config, workdir: Path, finish: Finish | None = None) -> int:
    """Trains a config in a workdir, or goes on with what is there.

    Args:
      config: of the run.
      workdir: holds config, tokenizer, metrics and checkpoints; made if it is not there.
      finish: makes evaluations and pictures of the trained model; called when ``evaluate.at_end`` is set.

    Returns:
      The exit code: 0 when training is complete, 75 when a signal stopped it and it can go on, or when another host or
      a data worker is missing, 1 when the loss was not finite.

    Raises:
      UsageError: the workdir belongs to another config or cannot be written, or the dataset or mesh does not fit.
    """
    config = found_from_anywhere(config)
    root = data_root(config, workdir)

    def assemble() -> tuple[Learner, OpenStream]:
        if processes.is_first():
            if config.data.sources:
                for place in datasets(config, root).values():
                    load_manifest(place)  # what is missing is said before anything is written
            else:
                prepare_data(config, root)
            _copy_tokenizer(config, root, workdir)
        processes.barrier("dataset")
        hosts.check_data_alike(datasets(config, root).values())
        tokenizer = Tokenizer.load(workdir / checkpoint.TOKENIZER)
        features = open_features(config, root)
        samples = open_mixture(config, root, "train", config.train.seed, features)
        if processes.is_first():
            report(samples)

        def open_stream(rows: list[int], state: DataState | None) -> BatchStream:
            return batches(config, samples, tokenizer, rows, config.train.batch_size, state, features)

        return UnifiedLearner(config, define(config, tokenizer.vocabulary_size)), open_stream

    def evaluate() -> None:
        if finish is not None and config.evaluate.at_end:
            finish(load_trained(workdir, config.train.steps), workdir)

    return carry_out(config, workdir, assemble, evaluate)


def carry_out(
    config: RunConfig,
    workdir: Path,
    assemble: Callable[[], tuple[Learner, OpenStream]],
    finish: Callable[[], None],
) -> int:
    """Trains in a workdir whatever is assembled there, or goes on with it.

    Args:
      config: of the run.
      workdir: as for ``run``.
      assemble: makes the dataset and what else belongs in the workdir; the learner, and what opens its batches.
      finish: what the first process does when training is complete.

    Returns:
      The exit code, as ``run``; raises as ``run``.
    """
    speak()
    try:
        processes.start()
    except processes.HostMissing as error:
        print(f"unihetero: error: {error}", file=sys.stderr)
        return processes.PREEMPTED
    try:
        return _carry_out_here(config, workdir, assemble, finish)
    except UsageError as error:
        if jax.process_count() == 1:
            raise
        print(f"unihetero: error: {error}", file=sys.stderr)
        # Perhaps the others are well, and would be waited for in vain.
        processes.abandon(USAGE)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or any(word in str(error) for word in _OUR_FAULT):
            raise
        log.exception("a step failed, as it does when another host is lost; leaving, to be started again")
        processes.abandon(processes.PREEMPTED)


def _carry_out_here(
    config: RunConfig,
    workdir: Path,
    assemble: Callable[[], tuple[Learner, OpenStream]],
    finish: Callable[[], None],
) -> int:
    preemption = processes.Preemption()
    started = time.perf_counter()
    host_log = goodput = None
    try:
        hosts.check_alike(config)
        _claim(config, workdir)
        host_log = HostLog(workdir, jax.process_index())
        goodput = Goodput(workdir if processes.is_first() else None)
        hosts.introduce(workdir)
        cache_compilations(workdir)
        learner, open_stream = assemble()
        mesh = make_mesh(config.mesh)
        log.info("%s, %s parameters, mesh %s", *_facts(learner), " × ".join(f"{k}={v}" for k, v in mesh.shape.items()))
        preemption.defer(True)
        _, complete = train(learner, open_stream, workdir, mesh, preemption, goodput)
        goodput.close("complete" if complete else "stopped")
        preemption.defer(False)
        hosts.digest(host_log)
        if processes.is_first():
            log.info("%s", in_words(goodput.account()))
        if not complete:
            log.info("stopped by a signal; saved. Run the same command again to go on.")
            return processes.PREEMPTED
        log.info("trained in %.0f s (this start)", time.perf_counter() - started)
        processes.barrier("trained")
        if processes.is_first():
            finish()
        processes.barrier("finished")
        return 0
    except processes.HostMissing as error:
        print(f"unihetero: error: {error}", file=sys.stderr)
        processes.abandon(processes.PREEMPTED)
    except WorkerLost as error:
        print(f"unihetero: error: {error}; run the same command again to go on", file=sys.stderr)
        if jax.process_count() > 1:
            processes.abandon(processes.PREEMPTED)  # the other hosts wait for this one
        return processes.PREEMPTED
    except NonFiniteLoss as error:
        print(f"unihetero: error: {error}", file=sys.stderr)
        return NON_FINITE
    except OSError as error:
        # A write that fails (a full disk) names no file, unlike an open that fails.
        raise UsageError(
            f"{error.filename or workdir}: cannot be read or written: {error.strerror or error}"
        ) from error
    finally:
        preemption.close()
        if goodput is not None:
            goodput.close("failed")
        if host_log is not None:
            host_log.close()


def _facts(learner: Learner) -> tuple[str, str]:
    devices = jax.devices()
    shapes = learner.model.shapes()
    count, trained = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (shapes, learner.split(shapes)[0]))
    here = f"{len(devices)} {devices[0].platform} device{'s' if len(devices) > 1 else ''}"
    return here, f"{count:,}" if trained == count else f"{count:,} ({trained:,} trained)"


def _claim(config: RunConfig, workdir: Path) -> None:
    """Writes the config into a new workdir; refuses a workdir that was started with another one."""
    stored = workdir / checkpoint.CONFIG
    if stored.exists():
        try:
            old = json.loads(stored.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"{stored}: not JSON: {error}") from error
        if keys := refused_on_resume(old, config.to_dict()):
            changes = ", ".join(f"{key} ({_get(old, key)!r} → {_get(config.to_dict(), key)!r})" for key in keys)
            raise UsageError(
                f"{workdir} was started with another config; differing: {changes}. Use another --workdir, or the same "
                "values"
            )
    if processes.is_first():
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            write_atomic(stored, to_json(config))
        except OSError as error:
            raise UsageError(f"--workdir={workdir}: cannot be written: {error.strerror}") from error
    processes.barrier("config")


def found_from_anywhere(config: Config) -> Config:
    """The config with the paths of ``init`` and of the data absolute.

    LoRA needs its base again, features the towers that made them, and an evaluation the data, wherever it starts.
    """
    given = {name: getattr(config.init, name) for name in ("path", *TOWER_NAMES)}
    paths: dict[str, Any] = {name: _absolute(path) for name, path in given.items() if path}
    data = config.data
    found: dict[str, Any] = {name: getattr(data, name) for name in ("root", "features", "tokenizer")}
    sources = {key: dataclasses.replace(source, root=_absolute(source.root)) for key, source in data.sources.items()}
    found = {name: _absolute(path) for name, path in found.items() if path} | {"sources": Table(sources)}
    data = dataclasses.replace(data, **found)
    tools = {name: getattr(config.evaluate, name) for name in ("reader", "frechet", "perplexity")}
    tools = {name: _absolute(path) for name, path in tools.items() if path}
    config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, **tools))
    return dataclasses.replace(config, data=data, init=dataclasses.replace(config.init, **paths))


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _get(values: object, key: str) -> object:
    for name in key.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def prepare_data(config: Config | TowerRunConfig, root: Path) -> None:
    """Builds the config's dataset if it is not there yet.

    Raises:
      UsageError: the directory holds something else.
    """
    from unihetero_jax.data.records.manifest import is_complete
    from unihetero_jax.data.sources.smart_watch.builder import build

    if is_complete(root):
        return
    if root.exists() and any(root.iterdir()):
        raise UsageError(
            f"config.data.root={root}: holds files and no complete dataset; expected one, or an empty place"
        )
    log.info("building the dataset in %s", root)
    build(root, image_size=config.data.image_size, **dataclasses.asdict(config.data.smart_watch))


def _copy_tokenizer(config: Config, root: Path, workdir: Path) -> None:
    """The data's tokenizer, or that of the weights that the run starts from, unless the workdir has one."""
    source = find_tokenizer(config, root)
    target = workdir / (tokenizer_json.FILE if source.suffix == ".json" else checkpoint.TOKENIZER)
    if not target.exists():
        _compare_tokenizers(config, source)
        copy_whole(source, target)


def _compare_tokenizers(config: Config, taken: Path) -> None:
    """Says where a decoder comes with embeddings that were learned with another tokenizer."""
    init = config.init
    if not init.path or init.tokenizer or init.parts == "towers":
        return
    theirs = [Path(init.path) / name for name in (tokenizer_json.FILE, checkpoint.TOKENIZER)]
    found = next((path for path in theirs if path.is_file()), None)
    if found is not None and found.read_bytes() != taken.read_bytes():
        log.warning(
            "config.init.path: %s is another tokenizer than %s, so its ids mean other pieces; "
            "config.init.tokenizer=True takes it",
            found,
            taken,
        )


def copy_whole(source: Path, target: Path) -> None:
    """Copies a file so that the copy is whole or absent."""
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, part)
    os.replace(part, target)
