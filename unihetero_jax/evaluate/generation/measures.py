"""Measures of images generated from held-out requests: embeddings, pixels, and what needs no classifier to be seen.

n requests, N visual tokens per image, F width of a semantic prediction.

Every number stands beside the same number for another held-out image (``_other``), which is what a model gets that
generates some image whatever was requested. Corners and colors are measured on watches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from unihetero_jax.data.smart_watch import POSITIONS, Attributes, color_name
from unihetero_jax.data.smart_watch.face import REFERENCE_SIZE, corner
from unihetero_jax.evaluate.common.attributes import scores, stated_kinds
from unihetero_jax.evaluate.common.held_out import Requests
from unihetero_jax.evaluate.generation import collapse, frechet


class Predicted(Protocol):
    """Predictions for n requests."""

    @property
    def embeddings(self) -> np.ndarray:
        """Semantic predictions, [n, N, F]."""

    @property
    def images(self) -> np.ndarray | None:
        """Images, [n, H, W, 3] uint8, if there is a pixel head."""


class Generated(Predicted, Protocol):
    """Free-running predictions."""

    @property
    def forced(self) -> np.ndarray:
        """Requests for which the model did not begin an image by itself, [n] bool."""


# Half of the disc's radius (0.4 of the side) on, hands cover little; the last tenth may be blurred into the white.
_DISC_INNER, _DISC_OUTER = 0.2, 0.36
_CORNER_WIDTH, _CORNER_HEIGHT = 30, 20
# Of 255, the mean darkness of a corner. The emptiest battery has twice as much, an empty corner none.
_OCCUPIED = 8.0


@dataclass(frozen=True)
class Instruments:
    """What images and embeddings are measured with, besides comparing them with the true ones.

    Attributes:
      classify: images of watches → their attributes.
      reconstruct: true images → what they would be if they were generated without an error.
      probe: embeddings [n, N, F] of watches → their attributes.
      features: images → features [n, F] for the Fréchet distance.
      reference: features of real images, summarized.
    """

    classify: Callable[[np.ndarray], Sequence[Attributes]] | None = None
    reconstruct: Callable[[np.ndarray], np.ndarray | None] | None = None
    probe: Callable[[np.ndarray], Sequence[Attributes]] | None = None
    features: Callable[[np.ndarray], np.ndarray] | None = None
    reference: frechet.Gaussian | None = None


def measure(
    generated: Generated, teacher_forced: Predicted, truth: np.ndarray, requests: Requests, instruments: Instruments
) -> dict[str, Any]:
    """Compare predictions with the true image of each request, and with that of the next request.

    Args:
      generated: free-running predictions, each token after the predicted ones.
      teacher_forced: predictions of each token after the true ones.
      truth: true embeddings, [n, N, F].
      requests: the requests.
      instruments: what else to measure with.

    Returns:
      Of embeddings, ``free`` running and teacher-forced (``taught``): cosine and squared error (relative to the true
      one's square), also by position; ``drift``: how much further free-running falls behind teacher forcing in the last
      quarter of the positions than in the first, in cosine; and ``collapse`` (``collapse.statistics``) of ``true``,
      ``free`` and ``taught`` ones.

      ``probe``, ``read`` (scores of ``common.attributes``, of the attributes that each request states) and ``frechet``
      have an entry for each of ``drawn`` (generated), ``another`` (generated, against the next request), ``taught``,
      ``reconstructed`` (the upper limit) and ``real`` (true images or embeddings: the instrument's own).
    """
    results: dict[str, Any] = {"count": len(requests.requests), "forced": float(np.mean(generated.forced))}
    for name, predicted in (("free", generated), ("taught", teacher_forced)):
        results |= {f"{name}_{key}": value for key, value in _against(predicted, truth, requests.images).items()}
    results["drift"] = drift(results["taught_cosine_by_position"], results["free_cosine_by_position"])
    embedded = {"true": truth, "free": generated.embeddings, "taught": teacher_forced.embeddings}
    results["collapse"] = {name: collapse.statistics(vectors) for name, vectors in embedded.items()}
    if instruments.probe is not None and requests.truths:
        vectors = {"drawn": generated.embeddings, "taught": teacher_forced.embeddings, "real": truth}
        results["probe"] = _attribute_scores(instruments.probe, requests, vectors)
    if generated.images is not None:
        results |= _image_scores(generated.images, teacher_forced.images, requests, instruments)
        if requests.truths:
            results |= face_scores(generated.images, requests.truths)
        if len(requests.truths) > 1:
            others = face_scores(generated.images, [requests.truths[-1], *requests.truths[:-1]])
            results |= {f"{name}_other": value for name, value in others.items()}
    return results


def _against(predicted: Predicted, truth: np.ndarray, images: np.ndarray) -> dict[str, Any]:
    """Cosines, squared errors and pixel errors, against the true embeddings and images and those of the next one."""
    cosines, errors = cosine(predicted.embeddings, truth), squared_error(predicted.embeddings, truth)
    found: dict[str, Any] = {}
    by_position = {"cosine": cosines.mean(axis=0), "error": errors.mean(axis=0)}
    if len(truth) > 1:
        # The order is random, so the next request is a random one, and never the same.
        by_position["cosine_other"] = cosine(predicted.embeddings, np.roll(truth, 1, axis=0)).mean(axis=0)
    for name, values in by_position.items():
        found[name], found[f"{name}_by_position"] = float(values.mean()), values.tolist()
    if predicted.images is not None:
        found["pixel_error"] = pixel_error(predicted.images, images)
        if len(truth) > 1:
            found["pixel_error_other"] = pixel_error(predicted.images, np.roll(images, 1, axis=0))
    return found


def _image_scores(
    generated: np.ndarray, teacher_forced: np.ndarray | None, requests: Requests, instruments: Instruments
) -> dict[str, dict[str, dict[str, float]]]:
    """Attributes of each kind of image, and the distance of each kind from real ones."""
    if instruments.classify is None and instruments.features is None:
        return {}
    ideal = None if instruments.reconstruct is None else instruments.reconstruct(requests.images)
    kinds = {"drawn": generated, "taught": teacher_forced, "reconstructed": ideal, "real": requests.images}
    present = {name: images for name, images in kinds.items() if images is not None}
    results = {}
    if instruments.classify is not None and requests.truths:
        results["read"] = _attribute_scores(instruments.classify, requests, present)
    if instruments.features is not None and instruments.reference is not None and len(requests.images) > 1:
        features, reference = instruments.features, instruments.reference
        results["frechet"] = {name: frechet.compare(features(images), reference) for name, images in present.items()}
    return results


def _attribute_scores(
    predict: Callable[[np.ndarray], Sequence[Attributes]], requests: Requests, kinds: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Scores of each kind of image or embedding; of generated ones, against the next request too."""
    truths = requests.truths
    stated = [stated_kinds(text, truth) for text, truth in zip(requests.requests, truths, strict=True)]
    found = {}
    for name, array in kinds.items():
        predicted = predict(array)
        found[name] = scores(predicted, truths, stated)
        if name == "drawn" and len(truths) > 1:
            found["another"] = scores(predicted, [*truths[1:], truths[0]], [*stated[1:], stated[0]])
    return found


def cosine(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosine of the angle between vectors on the last axis; 0 where one of them vanishes."""
    left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
    norms = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return np.sum(left * right, axis=-1) / np.maximum(norms, 1e-12)


def squared_error(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Squared distance of vectors on the last axis, relative to the true one's square."""
    predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    return np.sum(np.square(predicted - truth), axis=-1) / np.maximum(np.sum(np.square(truth), axis=-1), 1e-12)


def drift(teacher_forced: Sequence[float], free: Sequence[float]) -> float:
    """How much further ``free`` is below ``teacher_forced`` in the last quarter of the positions than in the first."""
    behind = np.subtract(teacher_forced, free)
    quarter = max(len(behind) // 4, 1)
    return float(behind[-quarter:].mean() - behind[:quarter].mean())


def pixel_error(images: np.ndarray, truth: np.ndarray) -> float:
    """Mean absolute difference of pixels, of 255."""
    return float(np.mean(np.abs(images.astype(np.float64) - truth)))


def face_scores(images: np.ndarray, truths: Sequence[Attributes]) -> dict[str, float]:
    """Compare the discs and corners of watches with the true attributes.

    Args:
      images: [n, H, W, 3] uint8.
      truths: their true attributes.

    Returns:
      ``color_error``: mean absolute difference of the disc's RGB, of 255. ``color_name``: share of discs with the true
      basic color name. ``corners``: share of images in which exactly the two true corners are occupied.
    """
    colors = np.stack([disc_color(image) for image in images])
    wanted = np.asarray([truth.color for truth in truths], np.float64)
    names = [
        color_name(color.round().astype(int).tolist()) == color_name(truth.color)
        for color, truth in zip(colors, truths, strict=True)
    ]
    corners = [
        occupied_corners(image) == {truth.weather_position, truth.battery_position}
        for image, truth in zip(images, truths, strict=True)
    ]
    return {
        "color_error": float(np.mean(np.abs(colors - wanted))),
        "color_name": float(np.mean(names)),
        "corners": float(np.mean(corners)),
    }


def disc_color(image: np.ndarray) -> np.ndarray:
    """RGB of the watch's disc, [3] float64: the median, which the few pixels of the hands do not move.

    Args:
      image: [H, W, 3] uint8, square.
    """
    side = image.shape[0]
    along = np.arange(side) + 0.5 - side / 2
    distance = np.hypot(along[:, None], along)
    return np.median(image[(distance >= _DISC_INNER * side) & (distance <= _DISC_OUTER * side)], axis=0)


def occupied_corners(image: np.ndarray) -> set[str]:
    """The corners of an image, [H, W, 3] uint8, that are not white."""
    scale = image.shape[0] / REFERENCE_SIZE
    found = set()
    for position in POSITIONS:
        x, y = corner(position)
        rows = slice(int(y * scale), int(np.ceil((y + _CORNER_HEIGHT) * scale)))
        columns = slice(int(x * scale), int(np.ceil((x + _CORNER_WIDTH) * scale)))
        if np.mean(255.0 - image[rows, columns].min(axis=-1)) > _OCCUPIED:
            found.add(position)
    return found
