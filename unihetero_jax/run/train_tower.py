"""The training of a small tower in a workdir, by the loop that trains models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.data.records.manifest import fingerprint, load_manifest, sampled_digest
from unihetero_jax.parallel import processes
from unihetero_jax.run.load_model import data_root
from unihetero_jax.run.supervise import Job, carry_out
from unihetero_jax.run.workdir import copy_whole, identify, prepare_data, tokenizer_digests
from unihetero_jax.tokenizer.loading import load_tokenizer
from unihetero_jax.train import hosts
from unihetero_jax.train.learner import Learner, OpenStream
from unihetero_jax.train.towers.base import TowerRunConfig
from unihetero_jax.train.towers.common import make_learner

Finish = Callable[[TowerRunConfig, Path], None]


def train_tower(config: TowerRunConfig, workdir: Path, finish: Finish | None = None) -> int:
    """Train a tower in a workdir, or continue what is there.

    Args:
      config: the run's configuration.
      workdir: holds config, tokenizer, metrics and checkpoints; made if it is not there.
      finish: stores the trained tower in the workdir, and evaluates it.

    Returns:
      The exit code of ``carry_out``; raises as that does.
    """
    root = data_root(config, workdir)

    def assemble() -> tuple[Learner, OpenStream]:
        if processes.is_first():
            prepare_data(config, root)
            if not (workdir / checkpoint.TOKENIZER).exists():
                copy_whole(root / checkpoint.TOKENIZER, workdir / checkpoint.TOKENIZER)
            data = {f"dataset {root.name}": sampled_digest(root, load_manifest(root))}
            identify(workdir, data | tokenizer_digests(workdir))
        processes.barrier("dataset")
        hosts.check_data_alike([fingerprint(load_manifest(root))])
        tokenizer = load_tokenizer(workdir / checkpoint.TOKENIZER)
        learner = make_learner(config, tokenizer.vocabulary_size)
        return learner, partial(learner.open_stream, root, tokenizer)

    def evaluate() -> None:
        if finish is not None:
            finish(config, workdir)

    return carry_out(Job(config, workdir, assemble, evaluate))
