"""Store the tower of a finished training, and measure it.

n images, H and W pixels, N tokens, E latent width, V codes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.data.packing.packed_batch import PackedBatch, RowShape, pack
from unihetero_jax.data.packing.sample import record_sample
from unihetero_jax.data.packing.slots import Slots
from unihetero_jax.data.records.images import decode
from unihetero_jax.data.records.invalid import InvalidRecord
from unihetero_jax.data.records.shards import Dataset
from unihetero_jax.data.smart_watch import Attributes
from unihetero_jax.errors import UsageError
from unihetero_jax.evaluate.common.agreement import Agreement, agreement
from unihetero_jax.evaluate.common.attribute_classifier import TrainedClassifier, accuracy
from unihetero_jax.files import write_atomic
from unihetero_jax.generate.pictures import save_picture
from unihetero_jax.parallel.mesh import evaluation_mesh, sharding
from unihetero_jax.parallel.module_definition import ModelDefinition, Params
from unihetero_jax.run.load_model import data_root
from unihetero_jax.tokenizer.loading import load_tokenizer
from unihetero_jax.tokenizer.sentencepiece import Tokenizer
from unihetero_jax.towers.common.autoencoder.images import to_signed, to_uint8
from unihetero_jax.towers.common.autoencoder.losses import codebook_use
from unihetero_jax.towers.common.stored import save_tower
from unihetero_jax.train.towers.attribute_classifier.config import AttributeClassifierRunConfig
from unihetero_jax.train.towers.base import TowerRunConfig
from unihetero_jax.train.towers.common import NO_SLOTS, make_learner
from unihetero_jax.train.towers.kl16.config import KL16RunConfig
from unihetero_jax.train.towers.siglip.config import SigLIPRunConfig
from unihetero_jax.train.towers.siglip.learner import pair_weight
from unihetero_jax.train.towers.siglip.pair import image_tower
from unihetero_jax.train.towers.vq16.config import VQ16RunConfig

EVAL = "eval.json"
PICTURE = "reconstructions.png"

Batches = Iterator[tuple[PackedBatch, np.ndarray]]


def finish(config: TowerRunConfig, workdir: Path) -> None:
    """Store the tower of a finished run and, if configured, measure it: a table, ``eval.json``, a picture.

    Args:
      config: the run's configuration.
      workdir: gets ``tower.json``, ``params``, ``eval.json`` and ``reconstructions.png``.

    Raises:
      UsageError: the checkpoint is missing or another model's, or there are no records to measure on.
    """
    step = checkpoint.find_step(workdir, config.train.steps)
    tokenizer = load_tokenizer(workdir / checkpoint.TOKENIZER)
    model = make_learner(config, tokenizer.vocabulary_size).model
    mesh = evaluation_mesh(config.evaluate.batch_size)
    path = workdir / checkpoint.CHECKPOINTS / str(step) / "state"
    shapes, places = ({"params": tree} for tree in (model.shapes(), model.shardings(mesh)))
    params: Params = checkpoint.restore_tree(path, shapes, places, alone=True)["params"]

    def rows(split: str) -> Batches:
        return held_out(config, data_root(config, workdir), tokenizer, split)

    written = [workdir / "tower.json", workdir / "params"]
    found: dict[str, Any] = {}
    pictures: np.ndarray | None = None
    if isinstance(config, SigLIPRunConfig):
        save_tower(workdir, config.kind, config.tower, image_tower(params))
        if config.evaluate.at_end:
            watches = attributes(config, data_root(config, workdir), tokenizer, "test")
            found = retrieval(model, params, rows("test"), config.evaluate.candidates, mesh, watches)
    elif isinstance(config, KL16RunConfig):
        std = latent_std(model, params, rows("train"), mesh)
        scaled = dataclasses.replace(config.tower, latent_scale=1.0 / std)
        save_tower(workdir, config.kind, scaled, params)
        if config.evaluate.at_end:
            found, pictures = reconstruction(model, params, rows("test"), config.evaluate.pictures, mesh)
            found = {**found, "latent_std": std, "latent_scale": scaled.latent_scale}
    elif isinstance(config, VQ16RunConfig):
        save_tower(workdir, config.kind, config.tower, params)
        if config.evaluate.at_end:
            found, pictures = reconstruction(model, params, rows("test"), config.evaluate.pictures, mesh)
    elif isinstance(config, AttributeClassifierRunConfig):
        save_tower(workdir, config.kind, config.tower, params)
        if config.evaluate.at_end:
            found = classification(config, data_root(config, workdir), TrainedClassifier(config.tower, params))
    if found:
        print(table({"step": step, **found}), flush=True)
        write_atomic(workdir / EVAL, json.dumps({"step": step, **found}, indent=2) + "\n")
        written.append(workdir / EVAL)
    if pictures is not None:
        save_picture(pictures, workdir / PICTURE)
        written.append(workdir / PICTURE)
    print("\nwrote " + ", ".join(map(str, written)), flush=True)


def held_out(config: TowerRunConfig, root: Path, tokenizer: Tokenizer, split: str) -> Batches:
    """The first ``evaluate.images`` samples of a split, one per row; batches of ``evaluate.batch_size``.

    Yields:
      A packed batch, padded with empty rows; and which rows have a sample.

    Raises:
      UsageError: the directory holds no such split.
    """
    data, size = config.data, config.evaluate.batch_size
    shape = RowShape(data.seq_len, 1, data.image_size)
    rows = [[sample] for sample, _ in _samples(config, root, tokenizer, split)]
    if not rows:
        raise UsageError(f"{root}: {split}_{data.task} has no sample with one image and {data.seq_len} slots at most")
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield pack([*part, *([] for _ in range(size - len(part)))], shape), np.arange(size) < len(part)


def attributes(config: TowerRunConfig, root: Path, tokenizer: Tokenizer, split: str) -> list[Attributes]:
    """Attributes of the images of ``held_out``, in their order; empty where a record has none."""
    records = [record for _, record in _samples(config, root, tokenizer, split)]
    if any("attributes" not in record for record in records):
        return []
    return [Attributes.from_json(record["attributes"]) for record in records]


def _samples(
    config: TowerRunConfig, root: Path, tokenizer: Tokenizer, split: str
) -> Iterator[tuple[Slots, Mapping[str, Any]]]:
    data = config.data
    source = Dataset(root).split(f"{split}_{data.task}")
    for number in range(min(config.evaluate.images, len(source))):
        record = source[number]
        try:
            sample = record_sample(record, tokenizer, NO_SLOTS, data.image_size)
        except InvalidRecord:
            continue
        if len(sample) <= data.seq_len and len(sample.images) == 1:
            yield sample, record


def reconstruction(
    model: ModelDefinition, params: Params, rows: Batches, pictures: int, mesh: Mesh
) -> tuple[dict[str, float], np.ndarray | None]:
    """Measure an autoencoder's reconstructions.

    Args:
      model: a VQ or KL autoencoder.
      params: its parameters.
      rows: held-out images.
      pictures: images in the picture.
      mesh: the parameters' mesh.

    Returns:
      ``images``, ``psnr`` (mean over images, dB, of 8-bit pixels) and, with a codebook, its use over all of them:
      ``code_perplexity`` and ``codes_used``; and the picture, [2·H, n·W, 3] uint8, truth above, or None.
    """
    codes = getattr(model.bind(params).config, "codes", 0)

    @jax.jit
    def decode(params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        tower = model.bind(params)
        signed = to_signed(images, tower.config.image_size)
        if codes:
            latent, indices = tower.encode(signed)
            return to_uint8(signed), to_uint8(tower.decode_latent(latent)), indices
        return to_uint8(signed), to_uint8(tower.decode(tower.posterior(signed)[0])), jnp.zeros(())

    counts, ratios, pairs = np.zeros(codes), [], []
    for batch, present in rows:
        truth, decoded, indices = jax.device_get(decode(params, _placed(batch, mesh)["images"]))
        error = np.mean(np.square(truth[present].astype(float) - decoded[present]), axis=(1, 2, 3))
        ratios.append(10 * np.log10(255**2 / np.maximum(error, 1e-12)))
        pairs.append(np.concatenate([truth[present], decoded[present]], axis=1)[: max(pictures, 1)])
        if codes:
            counts += np.bincount(indices[present].ravel(), minlength=codes)
    ratio = np.concatenate(ratios)
    found = {"images": len(ratio), "psnr": float(ratio.mean())}
    if codes:
        use = codebook_use(jnp.asarray(counts))
        found |= {"code_perplexity": float(use["perplexity"]), "codes_used": float(use["used"])}
    if not pictures:
        return found, None
    return found, np.concatenate(np.concatenate(pairs)[:pictures], axis=1)


def latent_std(model: ModelDefinition, params: Params, rows: Batches, mesh: Mesh) -> float:
    """Standard deviation of all latents, sampled from their posteriors (arXiv 2112.10752, appendix G).

    Args:
      model: a KL autoencoder.
      params: its parameters.
      rows: training images.
      mesh: the parameters' mesh.
    """

    @jax.jit
    def moments(params: Params, images: jax.Array, present: jax.Array) -> jax.Array:
        tower = model.bind(params)
        mean, logvar = tower.posterior(to_signed(images, tower.config.image_size))
        weight = jnp.broadcast_to(present[:, None, None, None], mean.shape)
        return jnp.stack(
            [jnp.sum(weight), jnp.sum(mean * weight), jnp.sum((jnp.square(mean) + jnp.exp(logvar)) * weight)]
        )

    total = np.zeros(3)
    for batch, present in rows:
        total += np.asarray(moments(params, _placed(batch, mesh)["images"], present), np.float64)
    count, first, second = total
    return float(np.sqrt(second / count - (first / count) ** 2))


def retrieval(
    model: ModelDefinition,
    params: Params,
    rows: Batches,
    candidates: int,
    mesh: Mesh,
    watches: Sequence[Attributes] = (),
) -> dict[str, Any]:
    """Measure how often the nearest caption is the image's own, and the nearest image the caption's.

    Args:
      model: an image-text pair.
      params: its parameters.
      rows: held-out images with captions.
      candidates: images and captions in a set in which one is retrieved; images beyond the last full set are left out.
      mesh: the parameters' mesh.
      watches: attributes of the images, where they are known.

    Returns:
      ``images``, ``candidates``, and the share retrieved: ``image_to_text`` and ``text_to_image``; with ``watches``
      also ``agreement`` of the retrieved captions, a mean over the sets.

    Raises:
      UsageError: fewer images than one set of candidates.
    """
    image_XE, text_XE, present_X = _embeddings(model, params, rows, mesh)
    watches = [watch for watch, kept in zip(watches, present_X, strict=False) if kept]
    sets = len(image_XE) // candidates
    if not sets:
        raise UsageError(
            f"config.evaluate.candidates={candidates}: there are {len(image_XE)} held-out images with a caption"
        )
    hits = np.zeros(2)
    agreements: list[Agreement] = []
    for number in range(sets):
        part = slice(number * candidates, (number + 1) * candidates)
        product = image_XE[part] @ text_XE[part].T
        own, nearest = np.arange(candidates), product.argmax(axis=1)
        hits += (np.mean(nearest == own), np.mean(product.argmax(axis=0) == own))
        if watches:
            agreements.append(agreement(watches[part], nearest))
    to_text, to_image = (hits / sets).tolist()
    found: dict[str, Any] = {"images": sets * candidates, "candidates": candidates}
    found |= {"image_to_text": to_text, "text_to_image": to_image}
    if agreements:
        found["agreement"] = jax.tree.map(lambda *shares: float(np.mean(shares)), *agreements)
    return found


def _embeddings(
    model: ModelDefinition, params: Params, rows: Batches, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of images and of captions, and for each sample whether it has both."""

    @jax.jit
    def embed(params: Params, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
        pairs = model.bind(params)(batch["images"][:, 0], batch["tokens"], batch["text_weight"] > 0, mesh)
        return pairs.images, pairs.texts, pair_weight(batch)

    images, texts, complete = [], [], []
    for batch, present in rows:
        image, text, weight = jax.device_get(embed(params, _placed(batch, mesh)))
        images.append(image[weight > 0])
        texts.append(text[weight > 0])
        complete.append(weight[present] > 0)
    return np.concatenate(images), np.concatenate(texts), np.concatenate(complete)


def classification(config: AttributeClassifierRunConfig, root: Path, classifier: TrainedClassifier) -> dict[str, Any]:
    """Score an attribute classifier on held-out images, by the ``scores`` of ``evaluate.common.attributes``.

    Args:
      config: the run's configuration.
      root: directory of the dataset.
      classifier: the trained classifier.

    Returns:
      ``images``, and the scores of these images, ``real``, and of the same under a blur of 1 pixel, ``blurred``.
    """
    source = Dataset(root).split(f"test_{config.data.task}")
    records = [source[number] for number in range(min(config.evaluate.images, len(source)))]
    images = np.stack([decode(record["image"], config.data.image_size) for record in records])
    truths = [Attributes.from_json(record["attributes"]) for record in records]
    return {
        "images": len(records),
        "real": accuracy(classifier, images, truths),
        "blurred": accuracy(classifier, images, truths, blur=1.0),
    }


def table(found: Mapping[str, Any]) -> str:
    """Lines of names and numbers, for the screen."""
    lines: dict[str, str] = {}
    for name, value in found.items():
        if isinstance(value, Mapping):
            for part, shares in value.items():
                if not isinstance(shares, Mapping):
                    lines[f"{name} {part}"] = f"{shares:10.3f}"
                    continue
                text = "   ".join(f"{kind} {share:.3f}" for kind, share in shares.items())
                lines[f"{name} {part}"] = f"{text:>10}"
        else:
            lines[name] = f"{value:10.3f}" if isinstance(value, float) else f"{value:10,}"
    width = max(map(len, lines))
    return "\n".join(f"{name.replace('_', ' '):{width}}  {text}" for name, text in lines.items())


def _placed(batch: PackedBatch, mesh: Mesh) -> dict[str, jax.Array]:
    return {name: jax.device_put(array, sharding(mesh, "batch")) for name, array in batch.items()}
