"""The training of a small tower in a workdir, by the loop that trains models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.data.mixture import Entry, Mixture
from unihetero_jax.data.packing.batch_stream import BatchStream, StreamOptions
from unihetero_jax.data.packing.packed_batch import RowShape
from unihetero_jax.data.packing.processes import share_of_cores
from unihetero_jax.data.packing.row_stream import DataState
from unihetero_jax.data.packing.rows import Recipe
from unihetero_jax.data.packing.slots import Role
from unihetero_jax.data.records.manifest import fingerprint, load_manifest
from unihetero_jax.data.records.shards import Dataset
from unihetero_jax.parallel import processes
from unihetero_jax.run.load import data_root
from unihetero_jax.run.supervise import Job, carry_out
from unihetero_jax.run.workdir import copy_whole, prepare_data
from unihetero_jax.tokenizer.loading import load_tokenizer
from unihetero_jax.tokenizer.sentencepiece import Tokenizer
from unihetero_jax.train import hosts
from unihetero_jax.train.learner import Learner
from unihetero_jax.train.loop import OpenStream, Stream
from unihetero_jax.train.towers.attribute_classifier import WatchStream
from unihetero_jax.train.towers.config import ReaderRunConfig, TowerRunConfig
from unihetero_jax.train.towers.learners import make_learner

Finish = Callable[[TowerRunConfig, Path], None]

# Of batches made ahead, and of workers, where their number is not given.
_MEMORY_BYTES = 10**9
# An image takes no slots but those of its markers: towers see pixels.
NO_SLOTS = dict.fromkeys((Role.INPUT, Role.TARGET, Role.BOTH), 0)


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
        processes.barrier("dataset")
        hosts.check_data_alike([fingerprint(load_manifest(root))])
        tokenizer = load_tokenizer(workdir / checkpoint.TOKENIZER)

        def open_stream(rows: list[int], state: DataState | None) -> Stream:
            if isinstance(config, ReaderRunConfig):
                return WatchStream(config, root, rows, state)
            return batches(config, root, tokenizer, rows, state)

        return make_learner(config, tokenizer.vocabulary_size), open_stream

    def evaluate() -> None:
        if finish is not None:
            finish(config, workdir)

    return carry_out(Job(config, workdir, assemble, evaluate))


def batches(
    config: TowerRunConfig, root: Path, tokenizer: Tokenizer, rows: list[int], state: DataState | None = None
) -> BatchStream:
    """The stream of some rows of the global batch: one sample a row, with one image.

    Args:
      config: which task's records.
      root: the dataset's directory.
      tokenizer: its tokenizer.
      rows: the rows to make here.
      state: of all rows, to go on from.
    """
    data = config.data
    workers, threads = share_of_cores(data.workers, data.threads, len(rows), _MEMORY_BYTES)
    records = Dataset(root).split(f"train_{data.task}")
    recipe = Recipe(
        Mixture([Entry(data.task, records, 1.0)], config.train.seed),
        tokenizer,
        NO_SLOTS,
        RowShape(data.slots, 1, data.image_size),
        config.train.batch_size,
        # The sample that is drawn after that of a row is the next row's.
        window=1,
    )
    options = StreamOptions(workers, threads, data.read_ahead, _MEMORY_BYTES, data.max_bad_records)
    return BatchStream(recipe, rows, options, state)
