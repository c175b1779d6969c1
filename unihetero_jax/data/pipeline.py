"""From a config to its records, mixture and packed batches."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain

from unihetero_jax.config import Config, mode_weights, reads_pixels, visual_tokens
from unihetero_jax.config.components import SOURCES, SourceConfig
from unihetero_jax.config.data import GENERATION
from unihetero_jax.data.features import Features
from unihetero_jax.data.mixing import Mixture, Records, Source, entry_name, with_generation_share
from unihetero_jax.data.packing.batch_dataset import PackedBatches
from unihetero_jax.data.packing.batch_stream import BatchStream, StreamOptions
from unihetero_jax.data.packing.packed_batch import RowShape
from unihetero_jax.data.packing.processes import share_of_cores
from unihetero_jax.data.packing.row_stream import DataState
from unihetero_jax.data.packing.rows import Recipe, Samples
from unihetero_jax.data.packing.slots import Role
from unihetero_jax.data.records.record import TASKS
from unihetero_jax.data.records.shards import OpenShards
from unihetero_jax.data.sources import base
from unihetero_jax.data.sources.shards import ShardsConfig
from unihetero_jax.errors import UsageError
from unihetero_jax.tokenizer.loading import load_tokenizer, tokenizer_files
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

log = logging.getLogger(__name__)


def source_sections(config: Config, root: Path) -> dict[str, SourceConfig]:
    """Return the sections of a config's sources by name; of a single dataset in ``root``, by no name."""
    return dict(config.data.sources) or {"": ShardsConfig(root=str(root))}


def stored_datasets(config: Config, root: Path) -> dict[str, Path]:
    """Return the directories of a config's stored datasets by the names of its sources."""
    sections = source_sections(config, root).items()
    return {name: Path(section.root).expanduser() for name, section in sections if isinstance(section, ShardsConfig)}


def open_sources(config: Config, root: Path) -> dict[str, base.Source]:
    """Open the sources of a config, by name.

    Args:
        config: The run's configuration.
        root: Directory of the dataset, where the config names no sources.

    Raises:
        UsageError: A source is missing or broken.
    """
    shards = OpenShards(config.data.open_shards)
    sources = {}
    for name, section in source_sections(config, root).items():
        kind = section.kind  # type: ignore[attr-defined]  # every registered section has one
        sources[name] = SOURCES.find(kind)(section, shards)
    return sources


def open_mixture(
    config: Config,
    root: Path | None = None,
    split: str = "train",
    seed: int | None = None,
    features: Features | None = None,
) -> Mixture:
    """Open the mixture of the records of a config's tasks: a ``grain.MapDataset`` in the order of a training run.

    Args:
        config: The run's configuration.
        root: Directory of the dataset, where the config names no sources; by default ``config.data.root``.
        split: ``train`` or ``test``.
        seed: Seed of the order; by default ``config.train.seed``.
        features: Precomputed features of the images.

    Raises:
        UsageError: A source is missing or broken, or there are no records of the config's tasks.
    """
    root = root or built_root(config)
    entries = open_entries(config, root, split, features)
    if not entries:
        there = "; ".join(
            f"{source.config.location()}: {', '.join(sorted(source.counts()))}"
            for source in open_sources(config, root).values()
        )
        raise UsageError(
            f"no {split} records of the tasks of config.data.mode={config.data.mode!r} with a weight above 0; there "
            f"are: {there}"
        )
    return Mixture(entries, config.train.seed if seed is None else seed)


def open_entries(config: Config, root: Path, split: str, features: Features | None = None) -> list[Source]:
    """Open the entries of a config's mixture; none where there are no records of its tasks.

    Shares are proportional to (records × epochs) to the power of 1 / temperature, unless the sources have weights;
    within a source they are proportional to records; all are multiplied by the weights of the tasks.

    Args:
        config: The run's configuration.
        root: Directory of the dataset, where the config names no sources.
        split: ``train`` or ``test``; sources without records of it are left out.
        features: Precomputed features of the images.

    Raises:
        UsageError: A source is missing or broken, or has no training records to give ``generation_share`` to.
    """
    entries: list[Source] = []
    for name, source in open_sources(config, root).items():
        splits = {task: f"{split}_{task}" for task in TASKS if f"{split}_{task}" in source.counts()}
        records: dict[str, Any] = {task: Records(source.records(name)) for task, name in splits.items()}
        if features is not None:
            records = features.attach(records, split)
        entries += _entries(config, name, source.config, records, random=split == "train")
    share = config.data.generation_share
    # A test set may have one kind only.
    if share and entries and (split == "train" or len({entry.generation for entry in entries}) > 1):
        entries = with_generation_share(entries, share)
    return entries


def _entries(config: Config, name: str, source: SourceConfig, records: Mapping[str, Any], random: bool) -> list[Source]:
    """Return the entries of one source; without weights of sources, theirs add up to a power of the source's size."""
    data = config.data
    of_source = dataclasses.asdict(source.task_weights)
    weights = {task: weight * of_source[task] for task, weight in mode_weights(config).items()}
    # A caption is read, or reversed and its image predicted; the modes of one side have only one of these.
    captions = data.task_weights.caption * of_source["caption"]
    read, reverse = {
        "understanding": (1.0, 0.0),
        "generation": (0.0, source.reverse),
        "mixed": (1.0 - source.reverse, source.reverse),
    }[data.mode]
    weights["caption"] = captions * read
    sizes = {(task, False): len(part) * weights[task] for task, part in records.items()}
    if "caption" in records:
        sizes["caption", True] = len(records["caption"]) * captions * reverse
    total = sum(sizes.values())
    if not total:
        return []
    share = source.weight or (source.epochs * total) ** (1.0 / data.temperature)
    return [
        Source(
            entry_name(name, task, reverse),
            records[task],
            share * size / total,
            generation=reverse or task in GENERATION,
            reverse=reverse,
            fit=source.fit,
            share=source.crop_share,
            random=random and (source.fit == "crop" or source.flip),
            flip=source.flip,
        )
        for (task, reverse), size in sizes.items()
        if size
    ]


def report(mixture: Mixture) -> None:
    """Log the entries of a mixture."""
    for entry in mixture.entries:
        log.info("%s: %s records, %.1f%%", entry.name, f"{len(entry.records):,}", 100 * mixture.shares[entry.name])


def find_tokenizer(config: Config, root: Path | None = None) -> Path:
    """Find the tokenizer of a new run.

    It is that of the weights from which the run starts, if ``init.tokenizer`` is set; otherwise the one that the config
    names, or that of the first source that has one. ``root`` is as for ``open_mixture``.

    Raises:
        UsageError: There is none.
    """
    if config.init.tokenizer:
        folder = Path(config.init.path).expanduser()
        found = tokenizer_files(folder)
        if not found:
            raise UsageError(f"config.init.tokenizer=True: {folder} has neither tokenizer.json nor tokenizer.model")
        return found[-1]
    if config.data.tokenizer:
        path = Path(config.data.tokenizer).expanduser()
        if not path.is_file():
            raise UsageError(f"config.data.tokenizer={path}: no such file")
        return path
    sources = open_sources(config, root or built_root(config)).values()
    for source in sources:
        if (file := source.tokenizer()) is not None:
            return file
    places = ", ".join(source.config.location() for source in sources)
    raise UsageError(
        f"no tokenizer in {places}: expected config.data.tokenizer, a SentencePiece model or a tokenizer.json"
    )


def open_tokenizer(config: Config, root: Path | None = None) -> Tokenizer:
    """Load the tokenizer of a new run, see ``find_tokenizer``.

    Raises:
        UsageError: There is none, or it cannot be read.
    """
    return load_tokenizer(find_tokenizer(config, root))


def built_root(config: Config) -> Path:
    """Return the directory of a config's dataset, which exists; without meaning where the config names sources.

    Raises:
        UsageError: It does not exist; the message has the command that builds it.
    """
    data = config.data
    root = Path(data.root)
    if not data.sources and (not data.root or not root.exists()):
        settings = dataclasses.asdict(data.smart_watch) | {"image_size": data.image_size}
        flags = " ".join(f"--{name}={value}" for name, value in settings.items() if value != "")
        where = "is empty" if not data.root else f"{root}: no such directory"
        raise UsageError(
            f"config.data.root {where}: expected a dataset, such as the one that training would build: "
            f"unihetero data build smart_watch --out={data.root or 'DIR'} {flags}"
            + ("" if data.root else ", and then --config.data.root=DIR")
        )
    return root


def batches(
    config: Config,
    samples: Samples,
    tokenizer: Tokenizer,
    rows: Sequence[int],
    batch_size: int,
    state: DataState | None = None,
    features: Features | None = None,
    with_pixels: bool = False,
) -> BatchStream:
    """Open the stream of some rows of the global batch.

    Args:
        config: The run's configuration.
        samples: Records by position.
        tokenizer: Tokenizer of the model.
        rows: Numbers of the rows to make here.
        batch_size: Rows of the global batch.
        state: Data state of all rows, from which to continue.
        features: Precomputed features of the images.
        with_pixels: Whether to have images also where features replace every tower.
    """
    data = config.data
    memory_bytes = data.memory_mb * 10**6
    workers, threads = share_of_cores(data.workers, data.threads, len(rows), memory_bytes)
    recipe = Recipe(
        samples,
        tokenizer,
        tokens_per_image(config),
        row_shape(config, features, with_pixels or reads_pixels(config)),
        batch_size,
        data.packing_window,
        input_role=Role.BOTH if data.input_role == "both" else Role.INPUT,
        request_dropout=data.request_dropout,
        max_pixels=data.max_pixels,
    )
    options = StreamOptions(workers, threads, data.read_ahead, memory_bytes, data.max_bad_records, data.max_bad_share)
    return BatchStream(recipe, rows, options, state)


def row_shape(config: Config, features: Features | None, pixels: bool = True) -> RowShape:
    """Return the shape of a packed row.

    Args:
        config: The run's configuration.
        features: Precomputed features of the images.
        pixels: Whether a row has its images.
    """
    data = config.data
    shapes = () if features is None else features.shapes
    return RowShape(data.seq_len, data.images_per_row, data.image_size, shapes, pixels)


def tokens_per_image(config: Config) -> dict[Role, int]:
    """Return the slots of an image of each role."""
    understanding, generation = visual_tokens(config)
    return {Role.INPUT: understanding, Role.TARGET: generation, Role.BOTH: generation}


def packed_batches(
    mixture: grain.MapDataset, config: Config, *, rows: Sequence[int] | None = None, workers: int | None = None
) -> PackedBatches:
    """Pack the records of a mixture into batches, in the order of a training run: a ``grain.IterDataset``.

    Example:
        >>> config = unihetero_jax.config.load("quickstart", {"data.root": "data/watch"})
        >>> it = iter(data.packed_batches(data.open_mixture(config), config, workers=2))
        >>> batch = next(it)
        >>> state = it.get_state()  # later: it.set_state(state)
        >>> it.close()

    Args:
        mixture: Records by position: from ``mixture`` or ``open_mixture``, perhaps with transformations of your own.
        config: How they are packed (``config.data``, ``config.model``), and ``config.train.batch_size``.
        rows: Numbers of the rows of the global batch to make; by default all ``config.train.batch_size``.
        workers: Processes that make the rows; 0 uses threads of this process. By default ``config.data.workers``.

    Returns:
        A dataset of mappings of arrays, described in `unihetero_jax.data.packing.packed_batch`. Its iterators have
        ``get_state``, ``set_state`` and ``close``. The arrays may be reused once nothing refers to them.

    Raises:
        UsageError: The tokenizer is missing or broken; or, from ``next``, too many records are bad.
    """
    if workers is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=workers or -1))
    size = config.train.batch_size
    tokenizer = open_tokenizer(config)

    def open_stream(rows: Sequence[int], state: DataState) -> BatchStream:
        return batches(config, mixture, tokenizer, rows, size, state, with_pixels=True)

    return PackedBatches(mixture, open_stream, range(size) if rows is None else rows, size, config.data.packing_window)
