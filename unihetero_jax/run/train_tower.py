"""``unihetero towers train``: a tower of our own, by the ordinary loop, in a workdir."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.data.mixture import Entry, Mixture
from unihetero_jax.data.packing.batch_stream import BatchStream
from unihetero_jax.data.packing.row_stream import DataState, RowShape
from unihetero_jax.data.packing.rows import share_of_cores
from unihetero_jax.data.packing.sample import Role
from unihetero_jax.data.records.shards import Dataset
from unihetero_jax.parallel import processes
from unihetero_jax.run.load import data_root
from unihetero_jax.run.train import carry_out, copy_whole, prepare_data
from unihetero_jax.tokenizer.sentencepiece import Tokenizer
from unihetero_jax.train import hosts
from unihetero_jax.train.learner import Learner
from unihetero_jax.train.loop import OpenStream, Stream
from unihetero_jax.train.towers.attribute_classifier import WatchStream
from unihetero_jax.train.towers.config import AttributeClassifierRunConfig, TowerRunConfig
from unihetero_jax.train.towers.learners import make_learner

Finish = Callable[[TowerRunConfig, Path], None]

# Of batches made ahead, and of workers, where their number is not given.
_MEMORY_BYTES = 10**9
# An image takes no slots but those of its markers: towers see pixels.
NO_SLOTS = dict.fromkeys((Role.INPUT, Role.TARGET, Role.BOTH), 0)


def run(config: TowerRunConfig, workdir: Path, finish: Finish | None = None) -> int:
    """Trains a tower in a workdir, or goes on with what is there.

    Args:
      config: of the run.
      workdir: holds config, tokenizer, metrics and checkpoints; made if it is not there.
      finish: stores the trained tower in the workdir, and measures it.

    Returns:
      The exit code, and raises, as ``unihetero train``.
    """
    root = data_root(config, workdir)

    def assemble() -> tuple[Learner, OpenStream]:
        if processes.is_first():
            prepare_data(config, root)
            if not (workdir / checkpoint.TOKENIZER).exists():
                copy_whole(root / checkpoint.TOKENIZER, workdir / checkpoint.TOKENIZER)
        processes.barrier("dataset")
        hosts.check_data_alike([root])
        tokenizer = Tokenizer.load(workdir / checkpoint.TOKENIZER)

        def open_stream(rows: list[int], state: DataState | None) -> Stream:
            if isinstance(config, AttributeClassifierRunConfig):
                return WatchStream(config, root, rows, state)
            return batches(config, root, tokenizer, rows, state)

        return make_learner(config, tokenizer.vocabulary_size), open_stream

    return carry_out(config, workdir, assemble, lambda: finish(config, workdir) if finish is not None else None)


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
    return BatchStream(
        Mixture([Entry(data.task, records, 1.0)], config.train.seed),
        tokenizer,
        NO_SLOTS,
        RowShape(data.slots, 1, data.image_size),
        batch_size=config.train.batch_size,
        rows=rows,
        # The sample that is drawn behind the one of a row is the next row's.
        window=1,
        workers=workers,
        threads=threads,
        read_ahead=data.read_ahead,
        memory_bytes=_MEMORY_BYTES,
        max_bad_records=data.max_bad_records,
        state=state,
    )
