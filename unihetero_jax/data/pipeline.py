"""The mixture that a config describes: which records of which datasets, in which shares."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from unihetero_jax.config import Config, SourceConfig, mode_weights, reads_pixels, visual_tokens
from unihetero_jax.config.data import GENERATION
from unihetero_jax.data.features import Features
from unihetero_jax.data.mixture import Entry, Mixture, Records, with_generation_share
from unihetero_jax.data.packing.batch_stream import BatchStream
from unihetero_jax.data.packing.packed_batch import Role, RowShape
from unihetero_jax.data.packing.processes import share_of_cores
from unihetero_jax.data.packing.row_stream import DataState
from unihetero_jax.data.packing.rows import Samples
from unihetero_jax.data.records.manifest import load_manifest
from unihetero_jax.data.records.shards import Dataset, OpenShards
from unihetero_jax.errors import UsageError
from unihetero_jax.tokenizer.sentencepiece import Tokenizer
from unihetero_jax.tokenizer.tokenizer_json import JsonTokenizer

log = logging.getLogger(__name__)


def datasets(config: Config, root: Path) -> dict[str, Path]:
    """Directories of a config's datasets, by the names of its sources; of a single one, ``root`` by no name."""
    sources = config.data.sources
    return {name: Path(source.root).expanduser() for name, source in sources.items()} if sources else {"": root}


def open_mixture(config: Config, root: Path, split: str, seed: int, features: Features | None = None) -> Mixture:
    """The records of a config's tasks.

    Args:
      config: which sources and tasks, in which shares.
      root: the dataset's directory, where the config names no sources.
      split: ``train`` or ``test``.
      seed: of the order.
      features: of the images, computed before.

    Raises:
      UsageError: a dataset is missing or broken, or there are no records of the config's tasks.
    """
    entries = open_entries(config, root, split, features)
    if not entries:
        counts = {place: load_manifest(place).counts for place in datasets(config, root).values()}
        raise UsageError(
            f"no {split} records of the tasks of config.data.mode={config.data.mode!r} with a weight above 0; there "
            "are: " + "; ".join(f"{place}: {', '.join(sorted(found))}" for place, found in counts.items())
        )
    return Mixture(entries, seed)


def open_entries(config: Config, root: Path, split: str, features: Features | None = None) -> list[Entry]:
    """What a config learns of its datasets, and in which shares; none where there are no records of its tasks.

    Shares go by number of records, times epochs, to the power of 1 / temperature, unless the sources have weights;
    within a source by number of records; times the weights of the tasks.

    Args:
      config: which sources and tasks, in which shares.
      root: the dataset's directory, where the config names no sources.
      split: ``train`` or ``test``; sources that have no records of it are left out.
      features: of the images, computed before.

    Raises:
      UsageError: a dataset is missing or broken, or nothing to train on is there to give ``generation_share`` to.
    """
    data, shards = config.data, OpenShards(config.data.open_shards)
    entries: list[Entry] = []
    for name, place in datasets(config, root).items():
        dataset = Dataset(place, shards)
        found = {
            task: dataset.split(f"{split}_{task}")
            for task in dataclasses.asdict(data.task_weights)
            if f"{split}_{task}" in dataset.manifest.counts
        }
        records: dict[str, Records] = dict(found)
        if features is not None:
            records = features.attach(found, split)
        source = data.sources.get(name, SourceConfig())
        entries += _entries(config, name, source, records, random=split == "train")
    # A test set may have one kind only.
    if data.generation_share and entries and (split == "train" or len({entry.generation for entry in entries}) > 1):
        entries = with_generation_share(entries, data.generation_share)
    return entries


def _entries(config: Config, name: str, source: SourceConfig, records: dict[str, Records], random: bool) -> list[Entry]:
    """The entries of one source; the weights of those of sources that go by size add up to their sizes' power."""
    data = config.data
    of_source = dataclasses.asdict(source.task_weights)
    kept = {task: weight * of_source[task] for task, weight in mode_weights(config).items()}
    # A caption is read, or turned round and drawn; a run of one mode has the one or the other.
    captions = data.task_weights.caption * of_source["caption"]
    shares = {
        "understanding": (1.0, 0.0),
        "generation": (0.0, source.turn_round),
        "mixed": (1.0 - source.turn_round, source.turn_round),
    }
    shown, turned = shares[data.mode]
    kept["caption"] = captions * shown
    sizes = {(task, False): len(part) * kept[task] for task, part in records.items()}
    if "caption" in records:
        sizes["caption", True] = len(records["caption"]) * captions * turned
    total = sum(sizes.values())
    if not total:
        return []
    share = source.weight or (source.epochs * total) ** (1.0 / data.temperature)
    prefix = f"{name}/" if name else ""
    return [
        Entry(
            f"{prefix}{task}{'/turned' if turn else ''}",
            records[task],
            share * size / total,
            generation=turn or task in GENERATION,
            turned=turn,
            fit=source.fit,
            share=source.crop_share,
            random=random and (source.fit == "crop" or source.flip),
            flip=source.flip,
        )
        for (task, turn), size in sizes.items()
        if size
    ]


def report(mixture: Mixture) -> None:
    """Says what the mixture consists of."""
    for entry in mixture.entries:
        log.info("%s: %s records, %.1f%%", entry.name, f"{len(entry.records):,}", 100 * mixture.shares[entry.name])


def find_tokenizer(config: Config, root: Path) -> Path:
    """The tokenizer that a new run takes.

    That of the weights that it starts from, if ``init.tokenizer`` says so; else the one that the config names, or that
    of the first dataset that has one.

    Raises:
      UsageError: there is none.
    """
    from unihetero_jax.data.records.manifest import TOKENIZER_FILE
    from unihetero_jax.tokenizer import tokenizer_json

    if config.init.tokenizer:
        folder = Path(config.init.path).expanduser()
        found = [folder / name for name in (tokenizer_json.FILE, TOKENIZER_FILE) if (folder / name).is_file()]
        if not found:
            raise UsageError(
                f"config.init.tokenizer=True: {folder} has neither {tokenizer_json.FILE} nor {TOKENIZER_FILE}"
            )
        return found[0]
    if config.data.tokenizer:
        path = Path(config.data.tokenizer).expanduser()
        if not path.is_file():
            raise UsageError(f"config.data.tokenizer={path}: no such file")
        return path
    places = list(datasets(config, root).values())
    for place in places:
        for name in (TOKENIZER_FILE, tokenizer_json.FILE):
            if (place / name).is_file():
                return place / name
    raise UsageError(
        f"no tokenizer in {', '.join(map(str, places))}: expected config.data.tokenizer, a SentencePiece model or a "
        "tokenizer.json"
    )


def load_tokenizer(config: Config, root: Path) -> Tokenizer:
    """The tokenizer that a new run takes, as ``find_tokenizer``.

    Raises:
      UsageError: there is none, or it cannot be read.
    """
    path = find_tokenizer(config, root)
    return JsonTokenizer.load(path) if path.suffix == ".json" else Tokenizer.load(path)


def built_root(config: Config) -> Path:
    """The directory of a config's dataset, which is there; of no meaning where there are several.

    Raises:
      UsageError: there is none; the message says how it is made.
    """
    data = config.data
    root = Path(data.root)
    if not data.sources and (not data.root or not root.exists()):
        built = dataclasses.asdict(data.smart_watch) | {"image_size": data.image_size}
        flags = " ".join(f"--{name}={value}" for name, value in built.items() if value != "")
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
    rows: list[int],
    batch_size: int,
    state: DataState | None = None,
    features: Features | None = None,
    with_pixels: bool = False,
) -> BatchStream:
    """The stream of some rows of the global batch of a config's data.

    Args:
      config: of the rows' shape.
      samples: what they are packed of.
      tokenizer: of the model.
      rows: the rows to make here.
      batch_size: rows of the global batch.
      state: of all rows, to go on from.
      features: of the images, computed before.
      with_pixels: bring the images also where features stand for every tower.
    """
    memory_bytes = config.data.memory_mb * 10**6
    workers, threads = share_of_cores(config.data.workers, config.data.threads, len(rows), memory_bytes)
    return BatchStream(
        samples,
        tokenizer,
        tokens_per_image(config),
        row_shape(config, features, with_pixels or reads_pixels(config)),
        batch_size=batch_size,
        rows=rows,
        window=config.data.packing_window,
        workers=workers,
        threads=threads,
        read_ahead=config.data.read_ahead,
        memory_bytes=memory_bytes,
        max_bad_records=config.data.max_bad_records,
        max_bad_share=config.data.max_bad_share,
        state=state,
        input_role=Role.BOTH if config.data.input_role == "both" else Role.INPUT,
        request_dropout=config.data.request_dropout,
        max_pixels=config.data.max_pixels,
    )


def row_shape(config: Config, features: Features | None, pixels: bool = True) -> RowShape:
    """Shape of a packed row; ``pixels``: whether it brings its images."""
    data = config.data
    shapes = () if features is None else features.shapes
    return RowShape(data.slots, data.images_per_row, data.image_size, shapes, pixels)


def tokens_per_image(config: Config) -> dict[Role, int]:
    """Slots of an image of each role."""
    shown, drawn = visual_tokens(config)
    return {Role.INPUT: shown, Role.TARGET: drawn, Role.BOTH: drawn}
