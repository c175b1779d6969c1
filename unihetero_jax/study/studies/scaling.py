"""How data of one task help the other (paper B, finding B4), and how understanding grows with data (paper A, A2).

B4 (arXiv 2505.23043): mixed data, and as much again of one of the two tasks.

A2 (arXiv 2512.23512): text alone against text with semantic autoregression, over five amounts of data that double from
one to the next; a size is the number of understanding samples, the same for both. Every size is a run of its own with
its own schedule; a power law is fitted to each of the two.
"""

from __future__ import annotations

import ml_collections

from unihetero_jax.study import pairings
from unihetero_jax.study.definition import Claim, Levels, Scale, Scaling, Study
from unihetero_jax.study.power_law import slope_weights

_PAIRING = "siglip_siglip"
SIZES = {"eighth": 1 / 8, "quarter": 1 / 4, "half": 1 / 2, "whole": 1.0, "double": 2.0}
# The task added to mixed data of size "half", and how much of it, as a share of that size.
_ADDED = {"half+understanding": ("understanding", 1.0), "half+generation": ("generation", 1.0)}
# Understanding samples at size "whole" and scale tiny; the sizes of other scales are in proportion.
WHOLE = 8_000


def experiment(levels: Levels, scale: Scale) -> ml_collections.ConfigDict:
    """Return the config of a pairing that is trained on some amount of data."""
    data, trained = levels["data"], levels["trained"]
    config = pairings.train_config(_PAIRING, trained, scale)
    if data in SIZES:
        config.train.steps = round(config.train.steps * SIZES[data])
        return config
    task, added = _ADDED[data]
    config.train.steps = round(config.train.steps * SIZES["half"] * (1 + added))
    share = pairings.STEP_SHARES[task]
    weight = (share + added) / share
    if task == "generation":
        config.data.task_weights.generation = weight
    else:
        config.data.task_weights.vqa = config.data.task_weights.caption = weight
    return config


_SERIES = {
    name: {f"{data}-{trained}": WHOLE * size for data, size in SIZES.items()}
    for name, trained in (("text", "understanding"), ("text + semantic", "mixed"))
}


def _claims() -> tuple[Claim, ...]:
    text, semantic = (slope_weights(arms) for arms in _SERIES.values())
    answers, least, most = "vqa.total.score", next(iter(SIZES)), list(SIZES)[-1]
    return (
        Claim(
            "A2.starts_below",
            "with the least data, answers are worse with semantic autoregression than with text alone",
            answers,
            {f"{least}-understanding": 1.0, f"{least}-mixed": -1.0},
        ),
        Claim(
            "A2.steeper",
            "the power law of answers' errors is steeper with semantic autoregression than with text alone",
            answers,
            {**text, **{arm: -weight for arm, weight in semantic.items()}},
            log_error=True,
        ),
        Claim(
            "A2.overtakes",
            "with the most data, answers are better with semantic autoregression than with text alone",
            answers,
            {f"{most}-mixed": 1.0, f"{most}-understanding": -1.0},
        ),
        Claim(
            "B4.generation_for_understanding",
            "as much data again, all of it generation, improves answers",
            answers,
            {"half+generation-mixed": 1.0, "half-mixed": -1.0},
        ),
        Claim(
            "B4.understanding_for_generation",
            "as much data again, all of it understanding, improves the prediction of target images",
            "losses.generation.semantic",
            {"half-mixed": 1.0, "half+understanding-mixed": -1.0},
        ),
        Claim(
            "B4.understanding_for_understanding",
            "as much data again, all of it understanding, improves answers",
            answers,
            {"half+understanding-mixed": 1.0, "half-mixed": -1.0},
        ),
    )


def _left_out(levels: Levels) -> bool:
    """Leave out data added to those of one task alone."""
    return levels["data"] in _ADDED and levels["trained"] != "mixed"


STUDY = Study(
    name="scaling",
    question="How do answers improve with data, and does data of one task help the other?",
    source="UniHetero (arXiv 2512.23512), finding A2; Are Unified Vision-Language Models Necessary (arXiv 2505.23043), "
    "finding B4",
    factors={"data": (*SIZES, *_ADDED), "trained": ("understanding", "mixed")},
    experiment=experiment,
    claims=_claims(),
    metrics=pairings.METRICS,
    towers=pairings.TOWERS,
    left_out=_left_out,
    scaling=Scaling("vqa.total.score", "understanding samples", _SERIES),
)
