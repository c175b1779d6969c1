"""How data of one kind help the other (paper B, finding B4), and how understanding grows with data (paper A, A2).

B4 (arXiv 2505.23043): on top of data of both kinds, as much again of one of them.

A2 (arXiv 2512.23512): text alone against text with semantic autoregression, over five sizes of data that double from
one to the next; a size is the number of samples to be understood, of which both have as many. Every size is a run of
its own with a schedule of its own; a power law is fitted to each of the two.
"""

from __future__ import annotations

import ml_collections

from unihetero_jax.study import common
from unihetero_jax.study.declaration import Claim, Levels, Scale, Scaling, Study
from unihetero_jax.study.scaling import slope_weights

_PAIRING = "siglip_siglip"
_SIZES = {"eighth": 1 / 8, "quarter": 1 / 4, "half": 1 / 2, "whole": 1.0, "double": 2.0}
# What is added to data of size "half" with both kinds, as a part of them.
_MORE = {"half+understanding": ("understanding", 1.0), "half+generation": ("generation", 1.0)}
# Samples to be understood at size "whole" and scale tiny; the sizes of other scales are in proportion.
_WHOLE = 8_000


def experiment(levels: Levels, scale: Scale) -> ml_collections.ConfigDict:
    """A pairing that learns from some amount of data."""
    data, trained = levels["data"], levels["trained"]
    config = common.trained(_PAIRING, trained, scale)
    if data in _SIZES:
        config.train.steps = round(config.train.steps * _SIZES[data])
        return config
    kind, part = _MORE[data]
    config.train.steps = round(config.train.steps * _SIZES["half"] * (1 + part))
    share = common.PARTS[kind]
    more = (share + part) / share
    if kind == "generation":
        config.data.task_weights.generation = more
    else:
        config.data.task_weights.vqa = config.data.task_weights.caption = more
    return config


def _arm(data: str, trained: str) -> str:
    return f"{data}-{trained}"


_SERIES = {
    name: {_arm(data, trained): _WHOLE * size for data, size in _SIZES.items()}
    for name, trained in (("text", "understanding"), ("text + semantic", "mixed"))
}


def _claims() -> tuple[Claim, ...]:
    text, semantic = (slope_weights(arms) for arms in _SERIES.values())
    answers, least, most = "vqa.total.score", next(iter(_SIZES)), list(_SIZES)[-1]
    drawn = "losses.generation.semantic"
    both = _arm("half", "mixed")
    return (
        Claim(
            "A2.starts_below",
            "with the least data, answers are worse with semantic autoregression than with text alone",
            answers,
            {_arm(least, "understanding"): 1.0, _arm(least, "mixed"): -1.0},
        ),
        Claim(
            "A2.steeper",
            "errors of answers fall faster with data, as a power, with semantic autoregression than with text alone",
            answers,
            {**text, **{arm: -weight for arm, weight in semantic.items()}},
            log_error=True,
        ),
        Claim(
            "A2.overtakes",
            "with the most data, answers are better with semantic autoregression than with text alone",
            answers,
            {_arm(most, "mixed"): 1.0, _arm(most, "understanding"): -1.0},
        ),
        Claim(
            "B4.generation_for_understanding",
            "as much data again, all of it to be drawn, make answers better",
            answers,
            {"half+generation-mixed": 1.0, both: -1.0},
        ),
        Claim(
            "B4.understanding_for_generation",
            "as much data again, all of it to be understood, make drawn pictures better predicted",
            drawn,
            {both: 1.0, "half+understanding-mixed": -1.0},
        ),
        Claim(
            "B4.understanding_for_understanding",
            "as much data again, all of it to be understood, make answers better",
            answers,
            {"half+understanding-mixed": 1.0, both: -1.0},
        ),
    )


def _left_out(levels: Levels) -> bool:
    """Data are added to those of both kinds alone."""
    return levels["data"] in _MORE and levels["trained"] != "mixed"


STUDY = Study(
    name="scaling",
    question="How do answers grow with data, and does data of one kind help the other?",
    source="UniHetero (arXiv 2512.23512), finding A2; Are Unified Vision-Language Models Necessary (arXiv 2505.23043), "
    "finding B4",
    factors={"data": (*_SIZES, *_MORE), "trained": ("understanding", "mixed")},
    experiment=experiment,
    claims=_claims(),
    metrics=common.METRICS,
    towers=common.TOWERS,
    left_out=_left_out,
    scaling=Scaling("vqa.total.score", "samples to be understood", _SERIES),
)
