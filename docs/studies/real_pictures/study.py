"""Mixed training against training for one task alone, on real pictures: paper B (arXiv 2505.23043), finding B1.

    unihetero study run docs/studies/real_pictures/study.py --workdir=runs/studies --data=emoji=DIR --seeds=5

What ``mutual_benefit`` asks of watches, asked of emojis and their names: to name them, to draw them by their names, and
both. *Mixed* sees as much of either task as the arm that has that task alone; the ``_longer`` arms take as many steps
as mixed training does. Only a claim that holds against both would be mutual benefit. The arms ``understanding`` and
``mixed`` are those of ``real_world`` that draw nothing, and as much as they read.

Each arm learns embeddings of its own, so that drawing is compared in pixels: by how well a head, which gives the rest
of the model no gradient, tells the next patch of a held-out picture from the hidden state behind the true ones before.
Reading and drawing share one adapter, as in ``mutual_benefit`` with one tower; what is to be drawn are its embeddings,
so that it cannot be parted. Three of five held-out emojis are in the training set with other skin tones
(``configs/emoji.py``): much of what is measured is recall.
"""

from __future__ import annotations

import ml_collections

from unihetero_jax.study.declaration import Claim, Levels, Metric, Scale, Study
from unihetero_jax.study.studies import real_world

NAMES = "answers.emoji/caption.f1"
PIXELS = "losses.generation.pixel"
TRAINED = ("understanding", "understanding_longer", "generation", "generation_longer", "mixed")


def experiment(levels: Levels, scale: Scale) -> ml_collections.ConfigDict:
    """A small model of emojis and their names that learns some of the tasks."""
    task, _, longer = levels["trained"].partition("_")
    config = real_world.experiment({"drawn": "none" if task == "understanding" else "equal"}, scale)
    if task == "generation":
        config.data.mode = task
        config.train.steps //= 2
    if longer:
        config.train.steps *= 2
    return config


STUDY = Study(
    name="real_pictures",
    question="Does training to name and to draw real pictures beat training for one of them?",
    source="Are Unified Vision-Language Models Necessary (arXiv 2505.23043), finding B1, on real pictures",
    factors={"trained": TRAINED},
    experiment=experiment,
    claims=tuple(
        Claim(
            f"B1.emoji.{alone}",
            f"{held} are better after mixed training than after training for that alone, {equally}",
            metric,
            {"mixed": sign, alone: -sign},
        )
        for task, held, metric, sign in (
            ("understanding", "names of held-out emojis", NAMES, 1.0),
            ("generation", "predicted patches of held-out emojis", PIXELS, -1.0),
        )
        for alone, equally in (
            (task, "with as many pictures of that task"),
            (f"{task}_longer", "for as many steps as mixed training takes"),
        )
    ),
    metrics=(
        Metric(NAMES, "token F1"),
        Metric("answers.emoji/caption.exact", "exact"),
        Metric(PIXELS, "pixel loss", higher_is_better=False),
        Metric("generation.free_pixel_error", "pixel error, free", higher_is_better=False),
        Metric("generation.free_pixel_error_other", "pixel error, with another"),
        Metric("generation.free_cosine", "cosine, free"),
        Metric("generation.free_cosine_other", "cosine, with another", higher_is_better=False),
    ),
    datasets=real_world.STUDY.datasets,
    scales=("tiny", "small"),
)
