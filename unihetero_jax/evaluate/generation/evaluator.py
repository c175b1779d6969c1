"""Images generated from held-out requests: free-running and teacher-forced, beside the true images."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from unihetero_jax.config.components import EVALUATORS
from unihetero_jax.data.smart_watch import Attributes
from unihetero_jax.evaluate.base import Context, Result
from unihetero_jax.evaluate.common import figures, held_out, linear_probes, smart_watch
from unihetero_jax.evaluate.common.attribute_classifier import TrainedClassifier
from unihetero_jax.evaluate.common.attributes import attributes_table
from unihetero_jax.evaluate.common.held_out import Requests
from unihetero_jax.evaluate.common.tower_features import tower_features
from unihetero_jax.evaluate.generation import frechet
from unihetero_jax.evaluate.generation.config import GenerationConfig
from unihetero_jax.evaluate.generation.measures import Instruments, measure
from unihetero_jax.generate.pooling import pooled

IMAGES = "drawn.npz"


@EVALUATORS.register("generation")
def evaluate(config: GenerationConfig, context: Context) -> Result:
    """Generate an image for each held-out request; of a model that does not generate images nothing is measured."""
    predictor = context.predictor
    requests = context.requests() if predictor.generates_images else None
    if requests is None:
        return Result()
    generated = predictor.generate_images(requests.requests)
    teacher_forced = predictor.teacher_forced(requests.requests, requests.phrases, requests.images)
    truth = predictor.embed(requests.images)
    found = measure(generated, teacher_forced, truth, requests, _instruments(config, context, requests))
    files: dict[str, Any] = {}
    if generated.images is not None and (some := context.options.pictures):
        grid = requests.requests[:some], requests.images[:some], generated.images[:some]
        files[figures.SAMPLES] = figures.samples(*grid, context.step)
    if generated.images is not None and config.save_images:
        content = io.BytesIO()
        texts = np.asarray(requests.requests)
        np.savez_compressed(content, drawn=generated.images, real=requests.images, requests=texts)
        files[IMAGES] = content.getvalue()
    return Result(found, table(found), files)


def _instruments(config: GenerationConfig, context: Context, requests: Requests) -> Instruments:
    """What the config asks to measure with."""
    predictor, batch_size = context.predictor, context.options.batch_size
    classify = probe = features = reference = None
    if config.attribute_classifier and requests.truths:
        classify = TrainedClassifier.load(Path(config.attribute_classifier), batch_size).predict
    images, watches = requests.images, list(requests.truths)
    if context.smart_watch is not None and (config.probes or config.frechet):
        size = context.config.data.image_size
        images, watches = smart_watch.watches(context.smart_watch, held_out.TRAIN, size, config.training_images)
    if config.probes and requests.truths:
        fitted = linear_probes.fit(_vectors(predictor.embed(images)), watches)

        def probe(embeddings: np.ndarray) -> list[Attributes]:
            return fitted.predict(_vectors(embeddings))

    if config.frechet and predictor.has_pixels:
        features = tower_features(Path(config.frechet), batch_size)
        # Of other data these are the requests' own images, whose distance from themselves is then 0.
        reference = frechet.gaussian(features(images))
    return Instruments(classify, predictor.reconstruct, probe, features, reference)


def _vectors(embeddings: np.ndarray) -> np.ndarray:
    return np.asarray(pooled(jnp.asarray(linear_probes.directions(embeddings))))


def table(found: Mapping[str, Any]) -> list[str]:
    """Lines for the screen."""
    # Label, and the keys of free-running, another image and teacher-forced; "" for what is not measured.
    rows = (
        ("cosine", "free_cosine", "free_cosine_other", "taught_cosine", "9.3f"),
        ("pixel error / 255", "free_pixel_error", "free_pixel_error_other", "taught_pixel_error", "9.1f"),
        ("disc color error / 255", "color_error", "color_error_other", "", "9.1f"),
        ("disc color name", "color_name", "color_name_other", "", "9.3f"),
        ("two right corners", "corners", "corners_other", "", "9.3f"),
    )
    lines = [f"{'generated images':<25}{'free':>9}{'another':>9}{'forced':>9}{'count':>8}"]
    for label, free, other, teacher_forced, style in rows:
        if free in found:
            keys = (free, other, teacher_forced)
            cells = [f"{found[key]:{style}}" if key in found else f"{'–':>9}" for key in keys]
            lines.append(f"  {label:<23}{''.join(cells)}{found['count']:>8,}")
    if found["forced"]:
        lines.append(f"  {found['forced']:.1%} of the requests were not answered with an image until it was forced")
    lines.append(
        "  (another: against another held-out image; forced: each token predicted from the true ones before it)"
    )
    for name, title in (("read", "attributes of images"), ("probe", "of embeddings")):
        if name in found:
            lines += ["", *attributes_table(title, found[name])]
    if "frechet" in found:
        lines += ["", f"{'Fréchet distance':<22}{'of these':>9}{'of infinitely many':>20}"]
        for name, distances in found["frechet"].items():
            lines.append(f"  {name:<20}{distances['distance']:>9.2f}{distances['infinite']:>20.2f}")
    return lines
