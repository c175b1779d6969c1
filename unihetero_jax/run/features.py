"""Features of a dataset's images by the frozen towers of a config, stored for many trainings."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from unihetero_jax.checkpoint.restore import TOKENIZER
from unihetero_jax.config import Config, TowerConfig, frozen_towers, mode_weights, towers_in_use, uncached
from unihetero_jax.data.features import About, SplitAbout, SplitWriter, TowerAbout, write_about
from unihetero_jax.data.packing.packed_batch import FeatureShape
from unihetero_jax.data.packing.processes import usable_threads
from unihetero_jax.data.records.images import decode
from unihetero_jax.data.records.invalid import InvalidRecord
from unihetero_jax.data.records.manifest import fingerprint, load_manifest
from unihetero_jax.data.records.shards import Dataset
from unihetero_jax.errors import UsageError
from unihetero_jax.model.stored_features import depends_on, make_towers, tower_digest
from unihetero_jax.model.vision import make_encoder
from unihetero_jax.parallel.mesh import evaluation_mesh, place, sharding
from unihetero_jax.parallel.module_definition import Params, define_module
from unihetero_jax.parallel.startup import set_up_logging
from unihetero_jax.run.workdir import absolute_paths, prepare_data
from unihetero_jax.tokenizer.loading import load_tokenizer
from unihetero_jax.weights.writer import new_folder

log = logging.getLogger(__name__)

SPLITS = ("train", "test")


def compute_features(config: Config, out: Path, dtype: str = "float16", splits: Sequence[str] = SPLITS) -> None:
    """Run the frozen towers of a config over every image of its tasks, on the devices of this process.

    Args:
      config: the configuration of the runs that will use the features; ``data.root`` is set.
      out: the folder to make; it appears when it is complete.
      dtype: the stored type, ``float16`` or ``float32``; codes are integers either way.
      splits: the dataset's splits.

    Raises:
      UsageError: no tower of the config is frozen and has weights, a path is wrong, or a feature is too large for
        ``dtype``.
    """
    set_up_logging()
    config = uncached(absolute_paths(config))
    sections = _sections(config)
    if not config.data.root:
        raise UsageError("config.data.root='': expected the dataset's directory, there is no workdir here")
    root = Path(config.data.root).expanduser()
    with new_folder(out) as part:
        prepare_data(config, root)
        mesh = evaluation_mesh(config.evaluate.batch_size)
        vocabulary = load_tokenizer(root / TOKENIZER).vocabulary_size
        params = make_towers(config, list(sections), vocabulary, mesh)
        towers = _make(config, sections, params, mesh, dtype)
        dataset = Dataset(root)
        names = [f"{split}_{task}" for split in splits for task, weight in mode_weights(config).items() if weight]
        abouts = {
            name: _store(config, dataset.split(name), towers, part, name)
            for name in names
            if name in dataset.manifest.counts
        }
        stored = {
            shape.tower: TowerAbout(
                depends_on(config, shape.tower),
                None if sections[shape.tower].decodes else tower_digest(params, shape.tower),
                shape.tokens,
                shape.width,
                shape.dtype,
            )
            for shape in towers.shapes
        }
        write_about(part, About(fingerprint(load_manifest(root)), stored, abouts))
        size = sum(path.stat().st_size for path in part.iterdir())
    images = sum(about.images for about in abouts.values())
    undecodable = sum(len(about.undecodable) for about in abouts.values())
    lost = f", {undecodable:,} of them undecodable" if undecodable else ""
    print(f"{out}: {images:,} images by {', '.join(sections)}{lost}, {size / 1e6:,.1f} MB")


def _sections(config: Config) -> dict[str, TowerConfig]:
    """The towers whose features can be stored: frozen ones that are slower to run than to read."""
    towers, frozen = towers_in_use(config), frozen_towers(config)
    kept = {name: section for name, section in towers.items() if name in frozen and section.cacheable}
    if not kept:
        found = ", ".join(f"config.model.{name}.kind={section.kind!r}" for name, section in towers.items())
        raise UsageError(f"{found}: expected a frozen tower whose features can be cached")
    return kept


@dataclass(frozen=True)
class _Towers:
    """Towers that encode batches of images.

    Attributes:
      encode: from raw images [n, 1, H, W, 3] to the features of every tower; compiled.
      shapes: the features' shapes.
      size: images per batch, n.
    """

    encode: Callable[[np.ndarray], Mapping[str, jax.Array]]
    shapes: tuple[FeatureShape, ...]
    size: int


def _make(config: Config, sections: Mapping[str, TowerConfig], params: Params, mesh: Mesh, dtype: str) -> _Towers:
    side, where = config.data.image_size, sharding(mesh, "batch")
    # The precision of training.
    precision = "highest" if config.model.decoder.dtype == "float32" else None
    models = {name: define_module(partial(_make_alone, section, side, name)) for name, section in sections.items()}

    def encode(params: Params, images: jax.Array) -> dict[str, jax.Array]:
        with jax.default_matmul_precision(precision):
            bound = {name: model.bind(params[name]) for name, model in models.items()}
            return {name: bound[name].stored(images) for name in sections}

    size = config.evaluate.batch_size
    found = jax.eval_shape(encode, params, jax.ShapeDtypeStruct((size, 1, side, side, 3), np.uint8))
    shapes = tuple(
        FeatureShape(name, found[name].shape[2], found[name].shape[3], "int32" if section.stored_as_integers else dtype)
        for name, section in sections.items()
    )
    compiled = jax.jit(encode)
    return _Towers(lambda images: compiled(params, place(images, where)), shapes, size)


def _make_alone(section: TowerConfig, side: int, name: str, rngs: nnx.Rngs) -> Any:
    return make_encoder(section, side, name, rngs)


def _store(config: Config, source: Any, towers: _Towers, folder: Path, split: str) -> SplitAbout:
    """Write the features of one split, batch by batch."""
    started = time.perf_counter()
    side = config.data.image_size
    with (
        SplitWriter(folder, split, towers.shapes) as writer,
        ThreadPoolExecutor(config.data.threads or usable_threads()) as pool,
    ):

        def read(number: int) -> list[np.ndarray | None]:
            return _images(source, number, side, config.data.max_pixels)

        def images() -> Iterator[np.ndarray | None]:
            for start in range(0, len(source), towers.size):
                for made in pool.map(read, range(start, min(start + towers.size, len(source)))):
                    writer.add_record([image is not None for image in made])
                    yield from made

        stream = images()
        waiting: tuple[Mapping[str, jax.Array], list[bool]] | None = None
        while batch := list(islice(stream, towers.size)):
            padded = np.zeros((towers.size, 1, side, side, 3), np.uint8)
            for place_in_batch, image in enumerate(batch):
                if image is not None:
                    padded[place_in_batch, 0] = image
            # The next batch is read while this one is computed.
            encoded = towers.encode(padded), [image is not None for image in batch]
            if waiting is not None:
                writer.add_features(_stored(*waiting, towers.shapes, split))
            waiting = encoded
        if waiting is not None:
            writer.add_features(_stored(*waiting, towers.shapes, split))
        about = writer.close()
    log.info("%s: %s images in %.0f s", split, f"{about.images:,}", time.perf_counter() - started)
    return about


def _images(source: Any, number: int, side: int, max_pixels: int) -> list[np.ndarray | None]:
    """The images of a record, None for those that cannot be decoded; empty if it cannot be read, as in training."""
    try:
        record = source[number]
        encoded = record["images"] if "images" in record else [record["image"]]
    except (OSError, ValueError, RuntimeError, KeyError):
        return []
    images: list[np.ndarray | None] = []
    for data in encoded:
        try:
            images.append(decode(data, side, max_pixels=max_pixels))
        except InvalidRecord as error:
            log.warning("record %d: %s", number, error)
            images.append(None)
    return images


def _stored(
    encoded: Mapping[str, jax.Array], good: Sequence[bool], shapes: Sequence[FeatureShape], split: str
) -> dict[str, np.ndarray]:
    """Features of a batch as they are written; raises ``UsageError`` if one is too large for the stored type."""
    stored = {}
    for shape in shapes:
        made = np.asarray(encoded[shape.tower])[: len(good), 0]
        with np.errstate(over="ignore"):
            array = np.where(np.asarray(good)[:, None, None], made, 0).astype(shape.dtype)
        if np.isinf(array).any():
            raise UsageError(
                f"{split}: {shape.tower} gives {np.abs(made).max():.3g}, which overflows {shape.dtype}; expected "
                "--dtype=float32"
            )
        stored[shape.tower] = array
    return stored
