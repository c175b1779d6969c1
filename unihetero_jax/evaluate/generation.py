"""Pictures drawn from held-out requests: embeddings, pixels, and what can be read off a picture without a reader.

n requests, N visual tokens an image, F size of a semantic prediction.

Every number stands beside the same number for another held-out picture (``_other``): what a model would get that draws
some picture, whatever was asked for. What is read back from pictures is of watches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from unihetero_jax.data.smart_watch import POSITIONS, Attributes, color_name
from unihetero_jax.data.smart_watch.face import REFERENCE_SIZE, corner
from unihetero_jax.evaluate import collapse, frechet
from unihetero_jax.evaluate.readback import scores, stated_kinds


class Made(Protocol):
    """Predictions for n requests."""

    @property
    def embeddings(self) -> np.ndarray:
        """Semantic predictions, [n, N, F]."""

    @property
    def images(self) -> np.ndarray | None:
        """Pictures, [n, H, W, 3] uint8, if there is a pixel head."""


class MadeFreely(Made, Protocol):
    """Drawn without seeing the truth."""

    @property
    def forced(self) -> np.ndarray:
        """Where the model did not ask to draw, [n] bool."""


@dataclass(frozen=True)
class Requests:
    """Held-out requests.

    ``requests`` and ``phrases``: n texts of user and model. ``images`` [n, H, W, 3] uint8: the true pictures.
    ``truths``: what they show, of watches; none of other pictures.
    """

    requests: Sequence[str]
    phrases: Sequence[str]
    images: np.ndarray
    truths: Sequence[Attributes] = ()


# Half of the disc's radius (0.4 of the side) on, hands cover little; the last tenth may be blurred into the white.
_DISC_INNER, _DISC_OUTER = 0.2, 0.36
_CORNER_WIDTH, _CORNER_HEIGHT = 30, 20
# Of 255, the mean darkness of a corner. The emptiest battery has twice as much, an empty corner none.
_OCCUPIED = 8.0


@dataclass(frozen=True)
class Instruments:
    """What pictures and embeddings are measured with, besides comparing them with the true ones.

    ``read``: pictures of watches → what they show. ``reconstruct``: true pictures → what would be left of them if they
    were drawn without an error. ``probe``: embeddings [n, N, F] of watches → what they show. ``features``: pictures →
    a feature each, to be compared with those of ``reference``.
    """

    read: Callable[[np.ndarray], Sequence[Attributes]] | None = None
    reconstruct: Callable[[np.ndarray], np.ndarray | None] | None = None
    probe: Callable[[np.ndarray], Sequence[Attributes]] | None = None
    features: Callable[[np.ndarray], np.ndarray] | None = None
    reference: frechet.Gaussian | None = None


def evaluate(
    draw: Callable[[Sequence[str]], MadeFreely],
    teach: Callable[[Sequence[str], Sequence[str], np.ndarray], Made],
    embed: Callable[[np.ndarray], np.ndarray],
    held_out: Requests,
    instruments: Instruments | None = None,
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Draws every request and compares with the true picture, and with that of the next request.

    Args:
      draw: requests → embeddings and pictures, free-running.
      teach: requests, phrases, true pictures → the same, each token predicted after the true ones.
      embed: pictures → true embeddings [n, N, F].
      held_out: the requests.
      instruments: what else to measure with.

    Returns:
      The numbers, and the pictures (None without a pixel head). Of embeddings, free-running and taught: cosine and
      squared error (relative to the true one's square), also by position; ``drift``: how much further free-running
      falls behind teaching in the last quarter of the positions than in the first, in cosine; and ``collapse``
      (``collapse.statistics``) of ``true``, ``free`` and ``taught`` ones.

      ``probe``, ``read`` (scores as of ``readback.scores``, of the attributes that each request states) and ``frechet``
      have one of ``drawn``, ``another`` (the drawn against the next request), ``taught``, ``reconstructed`` (the best
      that could be drawn) and ``real`` (true pictures or embeddings: the instrument's own) each, where there is one.
    """
    instruments = instruments or Instruments()
    truth = embed(held_out.images)
    drawn = draw(held_out.requests)
    taught = teach(held_out.requests, held_out.phrases, held_out.images)
    results: dict[str, Any] = {"count": len(held_out.requests), "forced": float(np.mean(drawn.forced))}
    several = len(held_out.requests) > 1
    for name, made in (("free", drawn), ("taught", taught)):
        by_position = cosine(made.embeddings, truth).mean(axis=0)
        results[f"{name}_cosine"] = float(by_position.mean())
        results[f"{name}_cosine_by_position"] = by_position.tolist()
        errors = squared_error(made.embeddings, truth).mean(axis=0)
        results[f"{name}_error"], results[f"{name}_error_by_position"] = float(errors.mean()), errors.tolist()
        if several:
            # Their order is random, so that the next one is a random one, and never the same.
            other = cosine(made.embeddings, np.roll(truth, 1, axis=0)).mean(axis=0)
            results[f"{name}_cosine_other"] = float(other.mean())
            results[f"{name}_cosine_other_by_position"] = other.tolist()
        if made.images is not None:
            results[f"{name}_pixel_error"] = pixel_error(made.images, held_out.images)
            if several:
                results[f"{name}_pixel_error_other"] = pixel_error(made.images, np.roll(held_out.images, 1, axis=0))
    results["drift"] = drift(results["taught_cosine_by_position"], results["free_cosine_by_position"])
    embedded = {"true": truth, "free": drawn.embeddings, "taught": taught.embeddings}
    results["collapse"] = {name: collapse.statistics(made) for name, made in embedded.items()}
    if instruments.probe is not None and held_out.truths:
        vectors = {"drawn": drawn.embeddings, "taught": taught.embeddings, "real": truth}
        results["probe"] = _scores(instruments.probe, held_out, vectors)
    if drawn.images is not None:
        results |= _pictures(drawn.images, taught.images, held_out, instruments)
    if drawn.images is not None and held_out.truths:
        results |= read_back(drawn.images, held_out.truths)
        if several:
            others = [held_out.truths[-1], *held_out.truths[:-1]]
            results |= {f"{name}_other": value for name, value in read_back(drawn.images, others).items()}
    return results, drawn.images


def _pictures(
    drawn: np.ndarray, taught: np.ndarray | None, held_out: Requests, instruments: Instruments
) -> dict[str, dict[str, dict[str, float]]]:
    """What is read off each kind of picture, and how far each kind is from real ones."""
    if instruments.read is None and instruments.features is None:
        return {}
    kept = None if instruments.reconstruct is None else instruments.reconstruct(held_out.images)
    kinds = {"drawn": drawn, "taught": taught, "reconstructed": kept, "real": held_out.images}
    made = {name: images for name, images in kinds.items() if images is not None}
    results = {}
    if instruments.read is not None and held_out.truths:
        results["read"] = _scores(instruments.read, held_out, made)
    if instruments.features is not None and instruments.reference is not None and len(held_out.images) > 1:
        features, reference = instruments.features, instruments.reference
        results["frechet"] = {name: frechet.compare(features(images), reference) for name, images in made.items()}
    return results


def _scores(
    read: Callable[[np.ndarray], Sequence[Attributes]], held_out: Requests, made: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Scores of what is read off each kind of picture or embedding; of drawn ones, against the next request too."""
    truths = held_out.truths
    stated = [stated_kinds(text, truth) for text, truth in zip(held_out.requests, truths, strict=True)]
    found = {}
    for name, array in made.items():
        shown = read(array)
        found[name] = scores(shown, truths, stated)
        if name == "drawn" and len(truths) > 1:
            found["another"] = scores(shown, [*truths[1:], truths[0]], [*stated[1:], stated[0]])
    return found


def cosine(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosine of the angle between vectors on the last axis; 0 where one of them vanishes."""
    left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
    norms = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return np.sum(left * right, axis=-1) / np.maximum(norms, 1e-12)


def squared_error(made: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Squared distance of vectors on the last axis, relative to the true one's square."""
    made, truth = np.asarray(made, np.float64), np.asarray(truth, np.float64)
    return np.sum(np.square(made - truth), axis=-1) / np.maximum(np.sum(np.square(truth), axis=-1), 1e-12)


def drift(taught: Sequence[float], free: Sequence[float]) -> float:
    """How much further ``free`` is below ``taught`` in the last quarter of the positions than in the first."""
    behind = np.subtract(taught, free)
    quarter = max(len(behind) // 4, 1)
    return float(behind[-quarter:].mean() - behind[:quarter].mean())


def pixel_error(images: np.ndarray, truth: np.ndarray) -> float:
    """Mean absolute difference of pixels, of 255."""
    return float(np.mean(np.abs(images.astype(np.float64) - truth)))


def read_back(images: np.ndarray, truths: Sequence[Attributes]) -> dict[str, float]:
    """What pictures of watches show, against what they should.

    Args:
      images: [n, H, W, 3] uint8.
      truths: what they should show.

    Returns:
      ``color_error``: mean absolute difference of the disc's RGB, of 255. ``color_name``: the share of discs whose
      basic colour name is the true one. ``corners``: the share of pictures in which exactly the two true corners are
      occupied.
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
    """The corners of a picture, [H, W, 3] uint8, that are not white."""
    scale = image.shape[0] / REFERENCE_SIZE
    found = set()
    for position in POSITIONS:
        x, y = corner(position)
        rows = slice(int(y * scale), int(np.ceil((y + _CORNER_HEIGHT) * scale)))
        columns = slice(int(x * scale), int(np.ceil((x + _CORNER_WIDTH) * scale)))
        if np.mean(255.0 - image[rows, columns].min(axis=-1)) > _OCCUPIED:
            found.add(position)
    return found
