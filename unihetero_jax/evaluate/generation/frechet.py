"""Fréchet distance between two sets of images, by the features of any tower: FID when these are Inception's.

n images, F width of a feature.

    python -m unihetero_jax.evaluate.generation.frechet DRAWN.npz REAL.npz

compares files of features that other tools computed: ``features`` [n, F], or ``mean`` [F] and ``cov`` [F, F] (also as
``mu`` and ``sigma``, the names of pytorch-fid).

The distance is biased upwards, by about a constant over n. Beside it stands its limit for infinitely many images, from
a line through the distances of subsets (Chong & Forsyth 2020, arXiv 1911.07023, section 4); compare it with that of as
many real images. With fewer images than a feature is wide the distances lie on no line: then only the comparison
with as many real images is meaningful.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from unihetero_jax.errors import UsageError

Features = Float[np.ndarray, "n F"]

# Number of subset sizes for the line, the smallest a quarter of all; subsets of each size, of which there is only one
# where a distance takes seconds; and the width from which it does.
_SIZES, _PARTS, _WIDE = 8, 8, 512


@dataclass(frozen=True)
class Gaussian:
    """Mean [F] and covariance [F, F] of features."""

    mean: np.ndarray
    cov: np.ndarray


def gaussian(features: Features) -> Gaussian:
    """Mean and unbiased covariance of n features, n at least 2.

    Raises:
      ValueError: fewer.
    """
    features = np.asarray(features, np.float64)
    if len(features) < 2:
        raise ValueError(f"expected features of at least 2 images, not {len(features)}")
    return Gaussian(features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)))


def distance(left: Gaussian, right: Gaussian) -> float:
    """|μ₁ − μ₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½) (Heusel et al. 2017, arXiv 1706.08500, equation 6), 0 or more."""
    return _distance(left, right, _root(right.cov))


def infinite(features: Features, reference: Gaussian) -> float:
    """The limit of the distance for infinitely many such images: where the line of distances over 1 / n meets 0."""
    features = np.asarray(features, np.float64)
    count, width = features.shape
    draws, root = np.random.default_rng(0), _root(reference.cov)
    sizes = np.unique(np.linspace(max(2, count // 4), count, _SIZES).astype(int))
    if len(sizes) < 2:
        return distance(gaussian(features), reference)
    found = []
    for size in sizes:
        parts = 1 if size == count or width > _WIDE else _PARTS
        chosen = [draws.permutation(count)[:size] for _ in range(parts)]
        found.append(np.mean([_distance(gaussian(features[part]), reference, root) for part in chosen]))
    _, meets = np.polyfit(1 / sizes, found, 1)
    return float(meets)


def compare(features: Features, reference: Gaussian) -> dict[str, float]:
    """``distance`` and ``infinite`` of some images from others."""
    return {"distance": distance(gaussian(features), reference), "infinite": infinite(features, reference)}


def load(path: Path) -> tuple[Gaussian, Features | None]:
    """The features of a file, or mean and covariance alone.

    Raises:
      UsageError: it cannot be read, or holds neither.
    """
    expected = "expected features [n, F], or mean [F] and cov [F, F]"
    try:
        with np.load(path) as file:
            stored = {name: np.asarray(file[name], np.float64) for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise UsageError(f"{path}: cannot be read as an npz file: {error}") from error
    if "features" in stored:
        features = stored["features"]
        if features.ndim != 2 or len(features) < 2:
            raise UsageError(f"{path}: features of shape {features.shape}; expected [n, F] with n above 1")
        return gaussian(features), features
    mean, cov = stored.get("mean", stored.get("mu")), stored.get("cov", stored.get("sigma"))
    if mean is None or cov is None:
        raise UsageError(f"{path}: holds {', '.join(stored) or 'nothing'}; {expected}")
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise UsageError(f"{path}: mean {mean.shape} and cov {cov.shape}; {expected}")
    return Gaussian(mean, cov), None


def main(arguments: Sequence[str]) -> int:
    """Print the distance of one file's images from another's; return the exit code, 2 for a wrong file."""
    if len(arguments) != 2:
        print("usage: python -m unihetero_jax.evaluate.generation.frechet DRAWN.npz REAL.npz", file=sys.stderr)
        return 2
    try:
        (drawn, features), (real, _) = (load(Path(argument)) for argument in arguments)
        if len(drawn.mean) != len(real.mean):
            raise UsageError(f"{arguments[0]}: features of width {len(drawn.mean)}; the other file's {len(real.mean)}")
    except UsageError as error:
        print(f"unihetero: error: {error}", file=sys.stderr)
        return 2
    found = {"distance": distance(drawn, real)} if features is None else compare(features, real)
    print(json.dumps(found))
    return 0


def _distance(left: Gaussian, right: Gaussian, root: np.ndarray) -> float:
    """``root``: matrix square root of the right covariance, computed once for several calls."""
    # C₁ C₂ has the eigenvalues of C₂^½ C₁ C₂^½, which is symmetric.
    values = np.linalg.eigvalsh(root @ left.cov @ root)
    traces = np.trace(left.cov) + np.trace(right.cov) - 2 * np.sqrt(np.maximum(values, 0)).sum()
    return float(max(np.square(left.mean - right.mean).sum() + traces, 0.0))


def _root(cov: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(cov)
    root: np.ndarray = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
