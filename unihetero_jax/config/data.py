"""The sections of the data that a run learns from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from unihetero_jax.config.components import SOURCES, SourceConfig, TaskWeights
from unihetero_jax.config.constraints import (
    FREE_ON_RESUME,
    PER_HOST,
    SHAPES_STEP,
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
    """The Smart Watch dataset that is built where ``data.root`` has no dataset yet.

    Attributes:
      num_images: training images.
      test_images: test images.
      seed: random seed of the images and their texts.
      questions: ``paper``: the question mixture of arXiv 2505.23043; ``all``: every attribute is asked about;
        ``exact``: besides, requests for images give the shade of the disc.
      vocabulary_size: pieces of the SentencePiece model that is trained on the texts.
      withheld: attributes that are held out: ``weather``, ``battery``, ``weather_pos`` or ``battery_pos`` (their
        corners), separated by commas. No question or caption of a training image mentions them; requests for images
        and the test set do. Empty: none.
      told: share of the training images that are supervised on the held-out attributes anyway.
    """

    num_images: PositiveInt = 2000
    test_images: PositiveInt = 200
    seed: NonNegativeInt = 0
    questions: Literal["paper", "all", "exact"] = "all"
    vocabulary_size: PositiveInt = 1024
    withheld: str = ""
    told: float = 0.0


@dataclass(frozen=True)
class DataConfig:
    """Where samples come from, and how they are packed into rows of ``seq_len`` slots.

    ``workers``, ``threads``, ``read_ahead`` and ``memory_mb`` change the speed only, never the batches.

    Attributes:
      root: directory of the dataset; empty: ``WORKDIR/data``.
      mode: tasks to learn: ``understanding`` (vqa, caption, text), ``generation`` (generation, interleaved) or both,
        ``mixed``.
      sources: several datasets by names of your choice, instead of ``root``. Their shares follow their sizes, unless
        all have a ``weight``.
      temperature: T: where shares follow sizes, they are size to the power of 1/T; above 1, small sources get more.
      generation_share: share of the samples that request an image; 0: whatever the sources' shares result in.
      tokenizer: a SentencePiece model or ``tokenizer.json``; empty: that of the dataset, or of the first source that
        has one.
      image_size: pixels per side of the batch's images (others are resized), and of a dataset that is built.
      max_pixels: pixels of the largest image that is decoded; larger ones are skipped.
      seq_len: T, the sequence length: slots per row, for text and visual tokens.
      images_per_row: K, the most images of a row.
      packing_window: samples that the stream of one row may hold back for a later row, at most 32.
      workers: processes that make rows; 0: chosen from the usable cores and ``memory_mb`` (none below 4 cores); -1:
        none, threads of the training process do.
      threads: threads that read and decode, in each process that makes rows; 0: chosen from the usable cores.
      read_ahead: batches made in advance; 0: as many as fit ``memory_mb``, from 1 to 8.
      memory_mb: megabytes that workers and batches made in advance may take per host, where their number is chosen
        automatically.
      open_shards: files that each process that makes rows may have open.
      max_bad_records: records of one host's rows that may be skipped over the whole run before it stops.
      max_bad_share: share of the records read that may be skipped besides.
      input_role: ``both``: input images are predicted too, by the tower that encodes them (UniHetero); ``input``:
        they are not.
      request_dropout: share of the generation samples whose request is left out, which trains the unconditional model
        that guidance needs.
      features: folder made by ``unihetero towers features``, which replaces the towers with ``cached``; empty: none.
      task_weights: factors on the tasks' shares.
      smart_watch: the dataset that is built where there is none.
    """

    root: Annotated[FilePath, FREE_ON_RESUME] = ""
    mode: Mode = "mixed"
    sources: dict[str, Annotated[SourceConfig, SOURCES]] = field(default_factory=Table)
    temperature: PositiveFloat = 1.0
    generation_share: Fraction = 0.0
    tokenizer: FilePath = ""
    image_size: Annotated[int, SHAPES_STEP] = 64
    max_pixels: PositiveInt = 50_000_000
    seq_len: Annotated[PositiveInt, SHAPES_STEP] = 256
    images_per_row: Annotated[PositiveInt, SHAPES_STEP] = 4
    packing_window: PositiveInt = 8
    workers: Annotated[int, PER_HOST] = 0
    threads: Annotated[NonNegativeInt, PER_HOST] = 0
    read_ahead: Annotated[NonNegativeInt, PER_HOST] = 0
    memory_mb: Annotated[PositiveInt, PER_HOST] = 1024
    open_shards: Annotated[PositiveInt, PER_HOST] = 256
    max_bad_records: Annotated[NonNegativeInt, FREE_ON_RESUME] = 100
    max_bad_share: Annotated[Fraction, FREE_ON_RESUME] = 0.001
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
