"""Does it cost reading if one adapter serves what is read and what is drawn?

    unihetero study run docs/studies/shared_adapter/study.py --workdir=runs/studies --seeds=5

A question that ``alignment`` left: mixed SigLIP-SigLIP models read the hands of a watch worse than models that only
read, but not where what they read is distorted. Two things could be in each other's way, the features or the adapter's
weights; here each side gets an adapter of its own, and the features stay the same. Written before it was run. The arm
``shared`` is ``mutual_benefit``'s.
"""

from __future__ import annotations

import ml_collections

from unihetero_jax.study import common
from unihetero_jax.study.declaration import Claim, Levels, Scale, Study


def experiment(levels: Levels, scale: Scale) -> ml_collections.ConfigDict:
    """SigLIP read and drawn, with one adapter or two."""
    config = common.trained("siglip_siglip", "mixed", scale)
    if levels["adapter"] == "own":
        config.model.share_adapter = False
        config.model.generation_adapter = config.model.understanding_adapter.copy_and_resolve_references()
    return config


STUDY = Study(
    name="shared_adapter",
    question="Does it cost reading if one adapter serves what is read and what is drawn?",
    source="after `alignment` and `mutual_benefit`",
    factors={"adapter": ("shared", "own")},
    experiment=experiment,
    claims=(
        Claim(
            "adapter.time",
            "the time is read better with an adapter for each side",
            "vqa.time.score",
            {"own": 1.0, "shared": -1.0},
        ),
        Claim(
            "adapter.answers",
            "answers are better with an adapter for each side",
            "vqa.total.score",
            {"own": 1.0, "shared": -1.0},
        ),
        Claim(
            "adapter.drawn",
            "what is drawn is predicted better with an adapter for each side",
            "losses.semantic",
            {"shared": 1.0, "own": -1.0},
        ),
    ),
    metrics=common.METRICS,
    towers=common.TOWERS,
)
