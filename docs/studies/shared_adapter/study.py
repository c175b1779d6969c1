"""Does one adapter for inputs and targets cost understanding? And with separate adapters, does A2 hold?

    unihetero study run docs/studies/shared_adapter/study.py --workdir=runs/studies --seeds=5

A question that ``alignment`` left: mixed SigLIP-SigLIP models read the hands of a watch worse than models trained for
understanding alone, but not where their inputs are distorted. Either the features or the adapter's weights could be the
conflict; here each side gets its own adapter, and the features stay the same. The claims ``adapter.*`` were written
before any run; those about A2 (arXiv 2512.23512), and the other sizes of data, after the first answer; ``pixel.time``
after all of these, and before its arm was run. The arms ``none`` (text alone) and ``shared`` are those of ``scaling``;
``pixel_shared`` is the arm ``pixel_1`` of ``semantics_or_pixels``.
"""

from __future__ import annotations

import ml_collections

from unihetero_jax.study import Claim, Levels, Scale, Scaling, Study, pairings
from unihetero_jax.study.power_law import slope_weights
from unihetero_jax.study.studies import semantics_or_pixels
from unihetero_jax.study.studies.scaling import SIZES, WHOLE

ADAPTERS = ("none", "shared", "own")
PIXELS = ("pixel_shared", "pixel_own")
SERIES = {adapter: {f"{data}-{adapter}": WHOLE * size for data, size in SIZES.items()} for adapter in ADAPTERS}
TEXT, OWN = (slope_weights(SERIES[adapter]) for adapter in ("none", "own"))
FLATTER = {**TEXT, **{arm: -weight for arm, weight in OWN.items()}}


def experiment(levels: Levels, scale: Scale) -> ml_collections.ConfigDict:
    """Return the config of a model with SigLIP inputs and SigLIP or pixel targets, with one adapter or two."""
    if levels["adapter"] in PIXELS:
        config = semantics_or_pixels.experiment({"generated": "pixel_1"}, scale)
    else:
        config = pairings.train_config(
            "siglip_siglip", "understanding" if levels["adapter"] == "none" else "mixed", scale
        )
    config.train.steps = round(config.train.steps * SIZES[levels["data"]])
    if levels["adapter"].endswith("own"):
        config.model.share_adapter = False
        config.model.generation_adapter = config.model.understanding_adapter.copy_and_resolve_references()
    return config


STUDY = Study(
    name="shared_adapter",
    question="Does one adapter for inputs and targets cost understanding?",
    source="after `alignment` and `mutual_benefit`; UniHetero (arXiv 2512.23512), finding A2",
    factors={"data": tuple(SIZES), "adapter": (*ADAPTERS, *PIXELS)},
    experiment=experiment,
    left_out=lambda levels: levels["adapter"] in PIXELS and levels["data"] != "whole",
    claims=(
        Claim(
            "adapter.time",
            "answers about the time are better with separate adapters",
            "vqa.time.score",
            {"whole-own": 1.0, "whole-shared": -1.0},
        ),
        Claim(
            "adapter.answers",
            "answers are better with separate adapters",
            "vqa.total.score",
            {"whole-own": 1.0, "whole-shared": -1.0},
        ),
        Claim(
            "adapter.drawn",
            "target embeddings are predicted better with separate adapters",
            "losses.generation.semantic",
            {"whole-shared": 1.0, "whole-own": -1.0},
        ),
        Claim(
            "adapter.double.time",
            "answers about the time are better with separate adapters, with the most data",
            "vqa.time.score",
            {"double-own": 1.0, "double-shared": -1.0},
        ),
        Claim(
            "pixel.time",
            "answers about the time are better with separate adapters where pixels are generated",
            "vqa.time.score",
            {"whole-pixel_own": 1.0, "whole-pixel_shared": -1.0},
        ),
        Claim(
            "A2.starts_below",
            "with the least data, answers are worse with semantics and separate adapters than with text alone",
            "vqa.total.score",
            {"eighth-none": 1.0, "eighth-own": -1.0},
        ),
        Claim(
            "A2.steeper",
            "the power law of answers' errors is steeper with semantics and separate adapters than with text alone",
            "vqa.total.score",
            FLATTER,
            log_error=True,
        ),
        Claim(
            "A2.steeper.time",
            "the same for answers about the time",
            "vqa.time.score",
            FLATTER,
            log_error=True,
        ),
        Claim(
            "A2.overtakes",
            "with the most data, answers are better with semantics and separate adapters than with text alone",
            "vqa.total.score",
            {"double-own": 1.0, "double-none": -1.0},
        ),
    ),
    metrics=pairings.METRICS,
    towers=pairings.TOWERS,
    scaling=Scaling("vqa.total.score", "understanding samples", SERIES),
    scales=("tiny", "small"),
)
