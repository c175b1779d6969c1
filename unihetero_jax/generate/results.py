"""What the predict functions return.

n requests, N visual tokens per image, F width of a predicted visual token, H × W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class GeneratedImages:
    """Images generated for n requests, each token predicted from the ones before it.

    Attributes:
      text: n texts before the images.
      embeddings: predictions, of codes their vectors, [n, N, F] float32.
      images: [n, H, W, 3] uint8; None without a pixel head.
      forced: [n] bool, whether the model did not begin the image within the limit by itself.
    """

    text: list[str]
    embeddings: np.ndarray
    images: np.ndarray | None
    forced: np.ndarray


@dataclass(frozen=True)
class TeacherForced:
    """Predictions of each visual token from the true ones before it.

    Attributes:
      embeddings: as of ``GeneratedImages``.
      images: as of ``GeneratedImages``.
    """

    embeddings: np.ndarray
    images: np.ndarray | None


@dataclass(frozen=True)
class Scored:
    """How likely an answer is.

    Attributes:
      log_likelihood: natural, summed over its tokens.
      tokens: number of tokens, with the one that ends the answer.
      greedy: whether every token is the likeliest, so that the model would give this answer.
    """

    log_likelihood: float
    tokens: int
    greedy: bool
