"""Mixed training against training for one task alone, on real images: paper B (arXiv 2505.23043), finding B1.

    unihetero study run docs/studies/real_pictures/study.py --workdir=runs/studies --data=emoji=DIR --seeds=5

The question of ``mutual_benefit`` for emojis and their names: training to name emojis, to generate them from their
names, and both. *Mixed* training sees as much of either task as the arm that has that task alone; the ``_longer`` arms
take as many steps as mixed training. Only a claim that holds against both would be mutual benefit. The arms
``understanding`` and ``mixed`` are the arms ``none`` and ``equal`` of ``real_world``.

Each arm learns its own embeddings, so that generation is compared in pixels: by how well a head, whose gradient stops
before the rest of the model, predicts the next patch of a held-out image, teacher-forced. Inputs and targets share one
adapter, as in ``mutual_benefit`` with one tower; the targets are its embeddings, so that it cannot be split. Three of
five held-out emojis are in the training set with other skin tones (``configs/emoji.py``): much of what is measured is
recall.
"""

from __future__ import annotations

import ml_collections

from unihetero_jax.study import Claim, Levels, Metric, Scale, Study
from unihetero_jax.study.studies import real_world

NAMES = "answers.emoji/caption.f1"
PIXELS = "losses.generation.pixel"
TRAINED = ("understanding", "understanding_longer", "generation", "generation_longer", "mixed")


def experiment(levels: Levels, scale: Scale) -> ml_collections.ConfigDict:
    """Return the config of a small model of emojis and their names that is trained for some of the tasks."""
    task, _, longer = levels["trained"].partition("_")
    config = real_world.experiment({"generated": "none" if task == "understanding" else "equal"}, scale)
    if task == "generation":
        config.data.mode = task
        config.train.steps //= 2
    if longer:
        config.train.steps *= 2
    return config


STUDY = Study(
    name="real_pictures",
    question="Is training to name and to generate real images better than training for one of them?",
    source="Are Unified Vision-Language Models Necessary (arXiv 2505.23043), finding B1, on real images",
    factors={"trained": TRAINED},
    experiment=experiment,
    claims=tuple(
        Claim(
            f"B1.emoji.{alone}",
            f"{held} are better after mixed training than after training for that task alone, {equally}",
            metric,
            {"mixed": sign, alone: -sign},
        )
        for task, held, metric, sign in (
            ("understanding", "names of held-out emojis", NAMES, 1.0),
            ("generation", "predicted patches of held-out emojis", PIXELS, -1.0),
        )
        for alone, equally in (
            (task, "with as many samples of that task"),
            (f"{task}_longer", "with as many steps as mixed training"),
        )
    ),
    metrics=(
        Metric(NAMES, "token F1"),
        Metric("answers.emoji/caption.exact", "exact"),
        Metric(PIXELS, "pixel loss", higher_is_better=False),
        Metric("generation.free_pixel_error", "pixel error, free-running", higher_is_better=False),
        Metric("generation.free_pixel_error_other", "pixel error, another image"),
        Metric("generation.free_cosine", "cosine, free-running"),
        Metric("generation.free_cosine_other", "cosine, another image", higher_is_better=False),
    ),
    datasets=real_world.STUDY.datasets,
    scales=("tiny", "small"),
)
