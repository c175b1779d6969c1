"""Answers about an attribute whose supervision is held out of understanding: paper B (arXiv 2505.23043), finding B3.

``weather_rare``: one training image in twenty has a question about its weather, and the weather in its caption;
``weather_absent``: none has; ``corner_absent``: none has a question about the corner of its weather icon. Generation
prompts name the attribute as ever, so that a model that also generates has seen the words beside the images. The cost
is what a model loses against one with full supervision; those arms are ``mutual_benefit``'s. Linear probes of the
adapter's output and of each layer show where the knowledge is.

A small model trained from scratch, unlike the paper's, never gives an answer that no training answer had, so that it
cannot answer for an absent weather whatever it knows. Corners it can: the battery's corner has questions and captions
in all arms. The battery is always in another corner than the weather, so that a model which confuses the two scores 0.
Rare weather is tested with VQ, because the small SigLIP's is not learned in so few steps even with full supervision.
Probes measure what the features contain, not what the model can answer: from VQ's codes they read the weather whatever
the training (with accuracy 0.995, in the one run inspected).
"""

from __future__ import annotations

import ml_collections

from unihetero_jax.study import pairings
from unihetero_jax.study.definition import Claim, Levels, Metric, Scale, Study

# Held-out attribute, and the share of training images that are supervised nevertheless.
HELD_OUT = {
    "all_told": ("", 0.0),
    "weather_rare": ("weather", 0.05),
    "weather_absent": ("weather", 0.0),
    "corner_absent": ("weather_pos", 0.0),
}
# Name of each held-out attribute in statements, in scores of answers, and in scores of probes.
_NAMES = {"weather": ("weather", "weather", "weather"), "weather_pos": ("corner", "weather_pos", "weather_position")}
_PAIRINGS = ("vq_vq", "siglip_siglip")


def experiment(levels: Levels, scale: Scale) -> ml_collections.ConfigDict:
    """Return the config of a pairing whose understanding data hold out an attribute."""
    config = pairings.train_config(levels["pairing"], levels["trained"], scale)
    config.data.smart_watch.withheld, config.data.smart_watch.told = HELD_OUT[levels["supervision"]]
    config.evaluators.probes = {"kind": "probes"}
    config.evaluators.generation.probes = True
    return config


def _left_out(levels: Levels) -> bool:
    """Leave out rare weather of the second pairing."""
    return levels["pairing"] != _PAIRINGS[0] and levels["supervision"] == "weather_rare"


def _only_at_paper(levels: Levels) -> bool:
    """Leave out answers that a model trained from scratch cannot give."""
    return levels["supervision"] == "weather_absent"


def _claims(pairing: str, supervision: str, attribute: str) -> tuple[Claim, ...]:
    alone, mixed = (f"{pairing}-{supervision}-{trained}" for trained in ("understanding", "mixed"))
    full, full_mixed = (f"{pairing}-all_told-{trained}" for trained in ("understanding", "mixed"))
    name, answers, probed = _NAMES[attribute]
    title = f"{pairing}, {supervision.replace('_', ' ')}"
    return (
        Claim(
            f"B3.{pairing}.{supervision}.answers",
            f"{title}: answers about it are better after mixed training than after understanding alone",
            f"vqa.{answers}.score",
            {mixed: 1.0, alone: -1.0},
        ),
        Claim(
            f"B3.{pairing}.{supervision}.spares",
            f"{title}: the missing supervision costs less after mixed training than after understanding alone",
            f"vqa.{answers}.score",
            {mixed: 1.0, full_mixed: -1.0, alone: -1.0, full: 1.0},
        ),
        *(
            Claim(
                f"B3.{pairing}.{supervision}.{place}",
                f"{title}: probes of {where} read the {name} better after mixed training",
                f"{key}.{probed}",
                {mixed: 1.0, alone: -1.0},
            )
            for place, where, key in (
                ("last_layer", "the last layer", "derived.last_layer"),
                ("adapter", "the adapter's output", "probes.adapter"),
            )
        ),
    )


STUDY = Study(
    name="transfer",
    question="Can a model answer about an attribute that it only learned to generate?",
    source="Are Unified Vision-Language Models Necessary (arXiv 2505.23043), finding B3",
    factors={"pairing": _PAIRINGS, "supervision": tuple(HELD_OUT), "trained": ("understanding", "mixed")},
    experiment=experiment,
    claims=tuple(
        claim
        for pairing in _PAIRINGS
        for supervision, (attribute, _) in HELD_OUT.items()
        if attribute and not _left_out({"pairing": pairing, "supervision": supervision})
        for claim in _claims(pairing, supervision, attribute)
    ),
    metrics=(
        *pairings.METRICS,
        Metric("vqa.weather_pos.score", "corner"),
        *(
            Metric(f"{key}.{probed}", f"{name}, {place}")
            for name, _, probed in _NAMES.values()
            for place, key in (
                ("adapter", "probes.adapter"),
                ("first layer", "probes.layer_01"),
                ("last layer", "derived.last_layer"),
            )
        ),
    ),
    towers=pairings.TOWERS,
    left_out=_left_out,
    only_at_paper=_only_at_paper,
)
