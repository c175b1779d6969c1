"""Whether embeddings of different images differ, which a model that predicts its own inputs may lose.

n images, N tokens, F wide.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

# Vectors whose rank is computed: enough to tell 1 from F, and their products fit anywhere.
_MOST = 2048


def statistics(embeddings: Float[np.ndarray, "n N F"]) -> dict[str, float]:
    """How different the embeddings of n images are.

    Returns:
      ``std``: standard deviation of a channel over the images, a root mean square over tokens and channels, relative
      to the embeddings' own: 0 where all images have the same, 1 where they have no common part. ``cosine``: mean of
      two different images' embeddings at the same token. ``effective_rank``: exp of the entropy of the normalized
      singular values of the centered vectors (Roy & Vetterli 2007, EUSIPCO, definition 1), at most min(n · N, F).
    """
    embeddings = np.asarray(embeddings, np.float64)
    count = len(embeddings)
    size = np.mean(np.square(embeddings))
    found = {"std": float(np.sqrt(np.mean(np.var(embeddings, axis=0)) / max(size, 1e-30)))}
    if count > 1:
        units = embeddings / np.maximum(np.linalg.norm(embeddings, axis=-1, keepdims=True), 1e-12)
        pairs = (np.square(units.sum(axis=0)).sum(axis=-1) - np.square(units).sum(axis=(0, 2))) / (count * (count - 1))
        found["cosine"] = float(np.mean(pairs))
    vectors = embeddings.reshape(-1, embeddings.shape[-1])
    vectors = vectors[:: -(-len(vectors) // _MOST)]
    values = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)
    shares = values / max(values.sum(), 1e-30)
    shares = shares[shares > 1e-12]
    return found | {"effective_rank": float(np.exp(-np.sum(shares * np.log(shares))))}
