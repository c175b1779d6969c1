"""Mixed training against training for one task alone: paper B (arXiv 2505.23043), finding B1.

Four pairings of towers, each trained to understand, to generate, and both. *Mixed* sees as much of either task's data
as the arm that has that task alone, so it takes more steps, as in the paper. The ``_longer`` arms are the control that
the paper lacks: one task alone for as many steps as mixed training takes.

Answers are scored as in the paper. What is generated is scored by the held-out loss of visual slots, teacher-forced,
which every pairing has; within a pairing it is the same loss on the same requests.
"""

from __future__ import annotations

import ml_collections

from unihetero_jax.study import common
from unihetero_jax.study.declaration import Claim, Levels, Scale, Study


def experiment(levels: Levels, scale: Scale) -> ml_collections.ConfigDict:
    """A pairing, trained for some of the tasks."""
    return common.trained(levels["pairing"], levels["trained"], scale)


def _claims() -> tuple[Claim, ...]:
    claims = []
    for pairing, (_, drawn) in common.PAIRINGS.items():
        mixed = f"{pairing}-mixed"
        loss = "losses.generation.codes" if drawn == "vq16" else "losses.generation.semantic"
        claims += [
            Claim(
                f"B1.{pairing}.understanding",
                f"{pairing}: answers are better after mixed training than after training to understand alone "
                "(as much understanding data)",
                "vqa.total.score",
                {mixed: 1.0, f"{pairing}-understanding": -1.0},
            ),
            Claim(
                f"B1.{pairing}.understanding_longer",
                f"{pairing}: the same, with as many steps of understanding alone as mixed training takes",
                "vqa.total.score",
                {mixed: 1.0, f"{pairing}-understanding_longer": -1.0},
            ),
            Claim(
                f"B1.{pairing}.generation",
                f"{pairing}: pictures are predicted better after mixed training than after training to generate alone "
                "(as much generation data)",
                loss,
                {f"{pairing}-generation": 1.0, mixed: -1.0},
            ),
            Claim(
                f"B1.{pairing}.generation_longer",
                f"{pairing}: the same, with as many steps of generation alone as mixed training takes",
                loss,
                {f"{pairing}-generation_longer": 1.0, mixed: -1.0},
            ),
        ]
    return tuple(claims)


STUDY = Study(
    name="mutual_benefit",
    question="Does training to understand and to generate beat training for one of them?",
    source="Are Unified Vision-Language Models Necessary (arXiv 2505.23043), finding B1",
    factors={"pairing": tuple(common.PAIRINGS), "trained": tuple(common.PARTS)},
    experiment=experiment,
    claims=_claims(),
    metrics=common.METRICS,
    towers=common.TOWERS,
)
