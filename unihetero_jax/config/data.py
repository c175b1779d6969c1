"""The sections that say what data a run learns from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from unihetero_jax.config.components import SOURCES, SourceConfig, TaskWeights
from unihetero_jax.config.constraints import (
    FilePath,
    Fraction,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from unihetero_jax.config.tree import Table
from unihetero_jax.errors import UsageError

Mode = Literal["understanding", "generation", "mixed"]
# Tasks of stored records, as ``data.records.record`` names them: those that are read, and those that ask for pictures.
UNDERSTANDING = ("vqa", "caption", "text")
GENERATION = ("generation", "interleaved")
# No machine has as many cores as more of them would need.
_MOST_WORKERS = 512


@dataclass(frozen=True)
class SmartWatchConfig:
    """What is built when the dataset of ``data.root`` is not there yet.

    ``withheld``: ``weather``, ``battery``, ``weather_pos`` or ``battery_pos`` (its corner), or several with commas:
    training images are not asked about it, and their captions leave it out; requests for images and the test set do
    not. ``told``: the share of the training images that are asked all the same.
    """

    num_images: PositiveInt = 2000
    test_images: PositiveInt = 200
    seed: NonNegativeInt = 0
    questions: Literal["paper", "all"] = "all"
    vocabulary_size: PositiveInt = 1024
    withheld: str = ""
    told: float = 0.0


@dataclass(frozen=True)
class DataConfig:
    """Where samples come from and how they are packed into rows.

    ``root``: the dataset's directory; empty means ``WORKDIR/data``. ``sources``: several datasets by names of your
    choice, instead of ``root``; shares go by number of records, unless all have a ``weight``. ``temperature``: with T,
    shares go by size to the power of 1/T; above 1 small sources gain. ``generation_share``: the share of the samples
    that ask for a picture; 0: as it comes of the sources. ``tokenizer``: a SentencePiece model or ``tokenizer.json``;
    empty means that of the dataset, or of the first source that has one. ``image_size``: pixels a side of the batch's
    images (others are resized) and of a dataset that is built. ``max_pixels``: of a picture before it is resized;
    larger ones are skipped. ``slots``: T, slots a row. ``images_per_row``: K. ``packing_window``: samples that a row's
    stream may hold back for a later row. ``workers``: processes that make rows; 0: by the number of usable cores and
    ``memory_mb`` (none where there are fewer than 4); -1: none, the threads of the training process do. ``threads``:
    threads that read and decode rows, in each process that does; 0: by the number of usable cores. ``read_ahead``:
    batches made before they are asked for; 0: as many as fit ``memory_mb``, from 1 to 8. None of them changes what is
    learned. ``open_shards``: files that such a process holds open. ``max_bad_records``: records that may be skipped
    among one host's rows, over the whole run, before it stops; ``max_bad_share``: and this share of those drawn.
    ``input_role``: ``both`` also predicts the images that are shown, by the tower that reads them (UniHetero).
    ``request_dropout``: the share of generation samples whose request is left out, so that there is an unconditional
    model to guide away from. ``features``: the folder made by ``unihetero towers features`` that towers with
    ``cached`` are replaced by.
    """

    root: FilePath = ""
    mode: Mode = "mixed"
    sources: dict[str, Annotated[SourceConfig, SOURCES]] = field(default_factory=Table)
    temperature: PositiveFloat = 1.0
    generation_share: Fraction = 0.0
    tokenizer: FilePath = ""
    image_size: int = 64
    max_pixels: PositiveInt = 50_000_000
    slots: PositiveInt = 256
    images_per_row: PositiveInt = 4
    packing_window: PositiveInt = 8
    workers: int = 0
    threads: NonNegativeInt = 0
    read_ahead: NonNegativeInt = 0
    memory_mb: PositiveInt = 1024
    open_shards: PositiveInt = 256
    max_bad_records: NonNegativeInt = 100
    max_bad_share: Fraction = 0.001
    input_role: Literal["input", "both"] = "input"
    request_dropout: Fraction = 0.0
    features: FilePath = ""
    task_weights: TaskWeights = field(default_factory=TaskWeights)
    smart_watch: SmartWatchConfig = field(default_factory=SmartWatchConfig)

    def check(self, key: str) -> None:
        """Refuse what a row stream cannot do, and sources that contradict each other."""
        if self.packing_window > 32:
            raise UsageError(f"{key}.packing_window={self.packing_window}: expected 1 to 32")
        if self.image_size < 16:
            raise UsageError(f"{key}.image_size={self.image_size}: expected 16 or more")
        check_workers(self.workers, f"{key}.workers")
        if self.generation_share and self.mode != "mixed":
            raise UsageError(
                f"{key}.generation_share={self.generation_share} with {key}.mode={self.mode!r}: expected "
                "mode='mixed', or generation_share=0"
            )
        for name in ("root", "features"):
            if self.sources and getattr(self, name):
                raise UsageError(f"{key}.{name}={getattr(self, name)!r} with {key}.sources: expected one or the other")
        weighted = [name for name, source in self.sources.items() if source.weight]
        if weighted and len(weighted) < len(self.sources):
            other = next(name for name in self.sources if name not in weighted)
            raise UsageError(
                f"{key}.sources.{other}.weight=0 beside {weighted[0]}'s {self.sources[weighted[0]].weight}: expected "
                "a weight for all sources, or for none (then shares go by size)"
            )


def check_workers(workers: int, key: str) -> None:
    """Refuse more worker processes than any machine has a use for.

    Raises:
      UsageError: naming the key.
    """
    if not -1 <= workers <= _MOST_WORKERS:
        raise UsageError(
            f"{key}={workers}: expected at most {_MOST_WORKERS} processes, 0 (as many as suit the machine) or -1 (none)"
        )
