"""Mixed training against training for one task alone: paper B (arXiv 2505.23043), finding B1.

Four pairings of towers, each trained for understanding, for generation, and for both. *Mixed* training sees as much
data of either task as the arm that has that task alone, so it takes more steps, as in the paper. The ``_longer`` arms
are the control that the paper lacks: one task alone, with as many steps as mixed training.

Answers are scored as in the paper. Generation is scored by the held-out loss of visual slots, teacher-forced, which
every pairing has; within a pairing it is the same loss on the same prompts.
"""

from __future__ import annotations

import ml_collections

from unihetero_jax.study import pairings
from unihetero_jax.study.definition import Claim, Levels, Scale, Study


def experiment(levels: Levels, scale: Scale) -> ml_collections.ConfigDict:
    """Return the config of a pairing that is trained for some of the tasks."""
    return pairings.train_config(levels["pairing"], levels["trained"], scale)


def _claims(pairing: str, generation_tower: str) -> tuple[Claim, ...]:
    mixed = f"{pairing}-mixed"
    loss = "losses.generation.codes" if generation_tower == "vq16" else "losses.generation.semantic"
    return (
        Claim(
            f"B1.{pairing}.understanding",
            f"{pairing}: answers are better after mixed training than after training for understanding alone "
            "(as much understanding data)",
            "vqa.total.score",
            {mixed: 1.0, f"{pairing}-understanding": -1.0},
        ),
        Claim(
            f"B1.{pairing}.understanding_longer",
            f"{pairing}: the same, with as many steps of understanding alone as of mixed training",
            "vqa.total.score",
            {mixed: 1.0, f"{pairing}-understanding_longer": -1.0},
        ),
        Claim(
            f"B1.{pairing}.generation",
            f"{pairing}: target images are predicted better after mixed training than after training for generation "
            "alone (as much generation data)",
            loss,
            {f"{pairing}-generation": 1.0, mixed: -1.0},
        ),
        Claim(
            f"B1.{pairing}.generation_longer",
            f"{pairing}: the same, with as many steps of generation alone as of mixed training",
            loss,
            {f"{pairing}-generation_longer": 1.0, mixed: -1.0},
        ),
    )


STUDY = Study(
    name="mutual_benefit",
    question="Is training for understanding and generation better than training for one of them?",
    source="Are Unified Vision-Language Models Necessary (arXiv 2505.23043), finding B1",
    factors={"pairing": tuple(pairings.PAIRINGS), "trained": tuple(pairings.STEP_SHARES)},
    experiment=experiment,
    claims=tuple(
        claim for pairing, (_, generation) in pairings.PAIRINGS.items() for claim in _claims(pairing, generation)
    ),
    metrics=pairings.METRICS,
    towers=pairings.TOWERS,
)
