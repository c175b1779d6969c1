"""The sections that say what data a run learns from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from unihetero_jax.config.tree import Table

Mode = Literal["understanding", "generation", "mixed"]
# Tasks of stored records, as ``data.records.record`` names them: those that are read, and those that ask for pictures.
UNDERSTANDING = ("vqa", "caption", "text")
GENERATION = ("generation", "interleaved")


@dataclass(frozen=True)
class SmartWatchConfig:
    """What is built when the dataset of ``data.root`` is not there yet.

    ``withheld``: ``weather``, ``battery``, ``weather_pos`` or ``battery_pos`` (its corner), or several with commas:
    training images are not asked about it, and their captions leave it out; requests for images and the test set do
    not. ``told``: the share of the training images that are asked all the same.
    """

    num_images: int = 2000
    test_images: int = 200
    seed: int = 0
    questions: Literal["paper", "all"] = "all"
    vocabulary_size: int = 1024
    withheld: str = ""
    told: float = 0.0


@dataclass(frozen=True)
class TaskWeights:
    """Factors on the share of each task's samples; ``data.mode`` sets those of the filtered ones to zero."""

    vqa: float = 1.0
    caption: float = 1.0
    generation: float = 1.0
    text: float = 1.0
    interleaved: float = 1.0


@dataclass(frozen=True)
class SourceConfig:
    """One dataset of a mixture.

    ``root``: its directory. ``weight``: its relative share of the samples; 0: by its size (``data.temperature``).
    ``epochs``: how often it counts, where shares go by size: with 3, as if it had three times the records.
    ``turn_round``: the share of its captions that are learned the other way, as requests for their pictures. ``fit``:
    how a picture becomes square: ``stretch`` changes its aspect, ``crop`` cuts what is outside the shorter side's
    square, at a random place in training, ``pad`` puts grey around it. ``crop_share``: the side of a crop, as a part of
    the shorter side; 0.875 cuts 224 pixels out of 256. ``flip``: mirror half of the pictures; not where text is in
    them, or where left and right are spoken of. ``task_weights``: factors as ``data.task_weights``, for this source.
    """

    root: str = ""
    weight: float = 0.0
    epochs: float = 1.0
    turn_round: float = 0.0
    fit: Literal["stretch", "crop", "pad"] = "stretch"
    crop_share: float = 1.0
    flip: bool = False
    task_weights: TaskWeights = field(default_factory=TaskWeights)


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

    root: str = ""
    mode: Mode = "mixed"
    sources: dict[str, SourceConfig] = field(default_factory=Table)
    temperature: float = 1.0
    generation_share: float = 0.0
    tokenizer: str = ""
    image_size: int = 64
    max_pixels: int = 50_000_000
    slots: int = 256
    images_per_row: int = 4
    packing_window: int = 8
    workers: int = 0
    threads: int = 0
    read_ahead: int = 0
    memory_mb: int = 1024
    open_shards: int = 256
    max_bad_records: int = 100
    max_bad_share: float = 0.001
    input_role: Literal["input", "both"] = "input"
    request_dropout: float = 0.0
    features: str = ""
    task_weights: TaskWeights = field(default_factory=TaskWeights)
    smart_watch: SmartWatchConfig = field(default_factory=SmartWatchConfig)
