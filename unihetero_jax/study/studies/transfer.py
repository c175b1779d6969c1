"""What is learned by drawing alone, and asked about: paper B (arXiv 2505.23043), finding B3.

``weather_rare``: one training image in twenty is asked for its weather, and has it told in its caption;
``weather_absent``: none; ``corner_absent``: none is asked for the corner that its weather icon is in. Requests for
images name it as ever, so that a model that also draws has seen the words beside the pictures. The loss is what a model
loses against one whose data withheld nothing; those arms are ``mutual_benefit``'s. Where the knowledge is, is asked of
linear probes of the adapter's output and of each layer.

A small model that starts from nothing, unlike the paper's, never says what no answer of its data said, so that it
cannot answer for an absent weather whatever it knows. Corners it can say: those of the battery are asked for and told
in all arms. The battery is always in another corner than the weather, so that who takes one for the other scores 0.
Rare weather is asked of VQ, because the small SigLIP's is not read in so few steps even where nothing is withheld.
Probes read what is there, not what can be said: off VQ's codes they read the weather whatever was learned (0.995 of it
in the one run looked at).
"""

from __future__ import annotations

import ml_collections

from unihetero_jax.study import common
from unihetero_jax.study.declaration import Claim, Levels, Metric, Scale, Study

# What training images are not asked about, and the share of them that are all the same.
WITHHELD = {
    "all_told": ("", 0.0),
    "weather_rare": ("weather", 0.05),
    "weather_absent": ("weather", 0.0),
    "corner_absent": ("weather_pos", 0.0),
}
# Of what is withheld: its name, its score of answers, and what probes call it.
_NAMES = {"weather": ("weather", "weather", "weather"), "weather_pos": ("corner", "weather_pos", "weather_position")}
_PAIRINGS = ("vq_vq", "siglip_siglip")


def experiment(levels: Levels, scale: Scale) -> ml_collections.ConfigDict:
    """A pairing whose understanding data withhold an attribute."""
    config = common.trained(levels["pairing"], levels["trained"], scale)
    config.data.smart_watch.withheld, config.data.smart_watch.told = WITHHELD[levels["told"]]
    config.evaluators.probes = {"kind": "probes"}
    config.evaluators.generation.probes = True
    return config


def _left_out(levels: Levels) -> bool:
    """Rare weather with the second pairing."""
    return levels["pairing"] != _PAIRINGS[0] and levels["told"] == "weather_rare"


def _only_at_paper(levels: Levels) -> bool:
    """What a model that starts from nothing cannot say."""
    return levels["told"] == "weather_absent"


def _claims() -> tuple[Claim, ...]:
    claims = []
    for pairing in _PAIRINGS:
        for told, (attribute, _) in WITHHELD.items():
            if not attribute or _left_out({"pairing": pairing, "told": told}):
                continue
            alone, mixed = (f"{pairing}-{told}-{trained}" for trained in ("understanding", "mixed"))
            full, full_mixed = (f"{pairing}-all_told-{trained}" for trained in ("understanding", "mixed"))
            (name, answers, probed), words = _NAMES[attribute], told.replace("_", " ")
            claims += [
                Claim(
                    f"B3.{pairing}.{told}.answers",
                    f"{pairing}, {words}: a model that also draws answers about it better than one that only reads",
                    f"vqa.{answers}.score",
                    {mixed: 1.0, alone: -1.0},
                ),
                Claim(
                    f"B3.{pairing}.{told}.spares",
                    f"{pairing}, {words}: it loses less by what was withheld than a model that only reads",
                    f"vqa.{answers}.score",
                    {mixed: 1.0, full_mixed: -1.0, alone: -1.0, full: 1.0},
                ),
                *(
                    Claim(
                        f"B3.{pairing}.{told}.{place}",
                        f"{pairing}, {words}: more of the {name} can be read off {where} of a model that also draws",
                        f"{key}.{probed}",
                        {mixed: 1.0, alone: -1.0},
                    )
                    for place, where, key in (
                        ("last_layer", "the last layer", "derived.last_layer"),
                        ("adapter", "the adapter's output", "probes.adapter"),
                    )
                ),
            ]
    return tuple(claims)


STUDY = Study(
    name="transfer",
    question="Can a model answer about what it only learned to draw?",
    source="Are Unified Vision-Language Models Necessary (arXiv 2505.23043), finding B3",
    factors={"pairing": _PAIRINGS, "told": tuple(WITHHELD), "trained": ("understanding", "mixed")},
    experiment=experiment,
    claims=_claims(),
    metrics=(
        *common.METRICS,
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
    towers=common.TOWERS,
    left_out=_left_out,
    only_at_paper=_only_at_paper,
)
