"""How far apart visual inputs and outputs may be: paper B (arXiv 2505.23043), finding B2.

The understanding tower's features are distorted by a fixed affine map, x·A with A = Q · diag(U[1 − s, 1 + s]); the
generation targets are not. The paper's maps have the same rotation Q at every strength s, so that its strengths differ
in their scales alone; ``rotated`` is Q with almost no scaling, which the paper does not have. Arms without a distortion
are those of ``mutual_benefit``.
"""

from __future__ import annotations

import ml_collections

from unihetero_jax.study import pairings
from unihetero_jax.study.definition import Claim, Levels, Scale, Study

DISTORTIONS = {"plain": 0.0, "rotated": 1e-6, "distorted_0.1": 0.1, "distorted_0.2": 0.2, "distorted_0.3": 0.3}
_PAIRINGS = ("vq_vq", "siglip_siglip")


def experiment(levels: Levels, scale: Scale) -> ml_collections.ConfigDict:
    """Return the config of a pairing whose inputs are distorted."""
    config = pairings.train_config(levels["pairing"], levels["trained"], scale)
    config.model.understanding_distortion = {"strength": DISTORTIONS[levels["distortion"]]}
    return config


def _left_out(levels: Levels) -> bool:
    """Leave out all but the strongest distortion of the second pairing."""
    return levels["pairing"] != _PAIRINGS[0] and levels["distortion"] not in ("plain", "distorted_0.3")


def _claims(pairing: str, distortion: str) -> tuple[Claim, ...]:
    arm = f"{pairing}-{distortion}"
    loss_of_mixed = {f"{pairing}-plain-mixed": 1.0, f"{arm}-mixed": -1.0}
    loss_of_understanding = {f"{pairing}-plain-understanding": 1.0, f"{arm}-understanding": -1.0}
    return (
        Claim(
            f"B2.{pairing}.{distortion}.hurts",
            f"{pairing}, {distortion}: the distortion makes answers worse after mixed training",
            "vqa.total.score",
            loss_of_mixed,
        ),
        Claim(
            f"B2.{pairing}.{distortion}.spares",
            f"{pairing}, {distortion}: it makes them worse by more than after training for understanding alone",
            "vqa.total.score",
            loss_of_mixed | {arm: -weight for arm, weight in loss_of_understanding.items()},
        ),
    )


STUDY = Study(
    name="alignment",
    question="Does generation help understanding less where visual inputs and outputs are less aligned?",
    source="Are Unified Vision-Language Models Necessary (arXiv 2505.23043), finding B2",
    factors={"pairing": _PAIRINGS, "distortion": tuple(DISTORTIONS), "trained": ("understanding", "mixed")},
    experiment=experiment,
    claims=tuple(
        claim
        for pairing in _PAIRINGS
        for distortion in ("rotated", "distorted_0.3")
        if not _left_out({"pairing": pairing, "distortion": distortion})
        for claim in _claims(pairing, distortion)
    ),
    metrics=pairings.METRICS,
    towers=pairings.TOWERS,
    left_out=_left_out,
)
