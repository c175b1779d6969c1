"""Config keys of earlier versions, and what to write instead."""

from __future__ import annotations

import re

_TOWERS = ("understanding_tower", "generation_tower", "pixel_tower")

RENAMED = {
    "data.slots": "now config.data.seq_len, the sequence length",
    "data.sources.NAME.turn_round": "now config.data.sources.NAME.reverse",
    "evaluate.vqa": "config.evaluators.vqa and config.evaluators.answers are evaluators now; None leaves one out",
    "evaluate.losses": "config.evaluators.losses is an evaluator now; None leaves it out",
    "evaluate.generation": "config.evaluators.generation is an evaluator now; None leaves it out",
    "evaluate.probes": "now config.evaluators.probes.kind=probes, and config.evaluators.generation.probes for images",
    "evaluate.probe_images": "now config.evaluators.probes.images and config.evaluators.generation.training_images",
    "evaluate.captions": "now config.evaluators.captions.kind=captions",
    "evaluate.perplexity": "now config.evaluators.perplexity.text",
    "evaluate.reader": "now config.evaluators.generation.attribute_classifier",
    "evaluate.frechet": "now config.evaluators.generation.frechet",
    "evaluate.keep_drawn": "now config.evaluators.generation.save_images",
    "objectives": "losses are named components now: config.losses.NAME, such as config.losses.semantic.weight",
    "objectives.pixel.head": "now config.losses.pixel.kind, such as kind=diffusion",
    "objectives.pixel.diffusion": "now keys of config.losses.pixel itself, with config.losses.pixel.kind=diffusion",
    "model.same_tower": "one tower serves both sides unless there is a config.model.generation_tower, such as "
    "config.model.generation_tower.kind=siglip",
    **{
        f"model.{tower}.{part}": f"now keys of config.model.{tower} itself, beside its kind"
        for tower in _TOWERS
        for part in ("patch", "vit", "vq", "kl")
    },
    "model.understanding_tower.distortion": "now config.model.understanding_distortion",
    "model.generation_tower.distortion": "now config.model.generation_distortion",
    "model.pixel_tower.distortion": "targets of a loss on latents are not distorted; leave it out",
}
"""The message for each old dotted key (without the leading ``config.``) and for the keys below it.

``NAME`` stands for any name of a table's entry, in the key and in its text.
"""


def successor(key: str) -> str:
    """Return the message for a renamed key, given without the leading ``config.``; empty if it is not one."""
    for old in sorted(RENAMED, key=len, reverse=True):  # ``objectives.pixel.head`` before ``objectives``
        pattern = re.escape(old).replace("NAME", r"(?P<name>[\w-]+)") + r"(\..*)?"
        if match := re.fullmatch(pattern, key):
            return RENAMED[old].replace("NAME", match.groupdict().get("name", "NAME"))
    return ""
