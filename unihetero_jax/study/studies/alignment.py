"""How far apart visual inputs and outputs may be: paper B (arXiv 2505.23043), finding B2.

The features that the model reads are distorted by a fixed affine map behind the tower, x·A with A = Q · diag(U[1 − s,
1 + s]); those that it predicts are left alone. The paper's maps have the same rotation Q at every strength s, so that
its strengths differ in their scales alone; ``rotated`` is Q with next to no scales, which the paper does not have. Arms
without a distortion are those of ``mutual_benefit``.
"""

from __future__ import annotations

import ml_collections

from unihetero_jax.study import common
from unihetero_jax.study.declaration import Claim, Levels, Scale, Study

DISTORTIONS = {"plain": 0.0, "rotated": 1e-6, "distorted_0.1": 0.1, "distorted_0.2": 0.2, "distorted_0.3": 0.3}
_PAIRINGS = ("vq_vq", "siglip_siglip")


def experiment(levels: Levels, scale: Scale) -> ml_collections.ConfigDict:
    """A pairing whose inputs are distorted."""
    config = common.trained(levels["pairing"], levels["trained"], scale)
    config.model.understanding_distortion = {"strength": DISTORTIONS[levels["distortion"]]}
    return config


def _left_out(levels: Levels) -> bool:
    """Of the second pairing, all but the strongest distortion."""
    return levels["pairing"] != _PAIRINGS[0] and levels["distortion"] not in ("plain", "distorted_0.3")


def _claims() -> tuple[Claim, ...]:
    claims = []
    for pairing in _PAIRINGS:
        arms = {
            (distortion, trained): f"{pairing}-{distortion}-{trained}"
            for distortion in DISTORTIONS
            for trained in ("understanding", "mixed")
        }
        for distortion in ("rotated", "distorted_0.3"):
            if _left_out({"pairing": pairing, "distortion": distortion}):
                continue
            hurt = {arms["plain", "mixed"]: 1.0, arms[distortion, "mixed"]: -1.0}
            spared = {arms["plain", "understanding"]: -1.0, arms[distortion, "understanding"]: 1.0}
            claims += [
                Claim(
                    f"B2.{pairing}.{distortion}.hurts",
                    f"{pairing}, {distortion}: answers of a model that also draws are worse than without distortion",
                    "vqa.total.score",
                    hurt,
                ),
                Claim(
                    f"B2.{pairing}.{distortion}.spares",
                    f"{pairing}, {distortion}: they lose more than those of a model that only reads",
                    "vqa.total.score",
                    hurt | spared,
                ),
            ]
    return tuple(claims)


STUDY = Study(
    name="alignment",
    question="Does generation help understanding less where what is read and what is drawn are less aligned?",
    source="Are Unified Vision-Language Models Necessary (arXiv 2505.23043), finding B2",
    factors={"pairing": _PAIRINGS, "distortion": tuple(DISTORTIONS), "trained": ("understanding", "mixed")},
    experiment=experiment,
    claims=_claims(),
    metrics=common.METRICS,
    towers=common.TOWERS,
    left_out=_left_out,
)
