"""Does it cost reading if one adapter serves what is read and what is drawn? And without that, does A2 hold?

    unihetero study run docs/studies/shared_adapter/study.py --workdir=runs/studies --seeds=5

A question that ``alignment`` left: mixed SigLIP-SigLIP models read the hands of a watch worse than models that only
read, but not where what they read is distorted. Two things could be in each other's way, the features or the adapter's
weights; here each side gets an adapter of its own, and the features stay the same. The claims ``adapter.*`` were
written before any of it was run; those about A2 (arXiv 2512.23512), and the other sizes of data, after the first
answer; ``pixel.time`` after all of these, and before its arm was run. The arms ``none`` (text alone) and ``shared`` are
those of ``scaling``, ``pixel_shared`` is that of ``semantics_or_pixels`` whose pixels' whole gradient reaches the
decoder.
"""

from __future__ import annotations

import ml_collections

from unihetero_jax.study import common
from unihetero_jax.study.declaration import Claim, Levels, Scale, Scaling, Study
from unihetero_jax.study.scaling import slope_weights
from unihetero_jax.study.studies import semantics_or_pixels

SIZES = {"eighth": 1 / 8, "quarter": 1 / 4, "half": 1 / 2, "whole": 1.0, "double": 2.0}
WHOLE = 8_000
ADAPTERS = ("none", "shared", "own")
PIXELS = ("pixel_shared", "pixel_own")
SERIES = {adapter: {f"{data}-{adapter}": WHOLE * size for data, size in SIZES.items()} for adapter in ADAPTERS}
TEXT, OWN = (slope_weights(SERIES[adapter]) for adapter in ("none", "own"))
FLATTER = {**TEXT, **{arm: -weight for arm, weight in OWN.items()}}


def experiment(levels: Levels, scale: Scale) -> ml_collections.ConfigDict:
    """SigLIP read; it or pixels drawn as well, with one adapter or two."""
    if levels["adapter"] in PIXELS:
        config = semantics_or_pixels.experiment({"drawn": "pixel_1"}, scale)
    else:
        config = common.trained("siglip_siglip", "understanding" if levels["adapter"] == "none" else "mixed", scale)
    config.train.steps = round(config.train.steps * SIZES[levels["data"]])
    if levels["adapter"].endswith("own"):
        config.model.share_adapter = False
        config.model.generation_adapter = config.model.understanding_adapter.copy_and_resolve_references()
    return config


STUDY = Study(
    name="shared_adapter",
    question="Does it cost reading if one adapter serves what is read and what is drawn?",
    source="after `alignment` and `mutual_benefit`; UniHetero (arXiv 2512.23512), finding A2",
    factors={"data": tuple(SIZES), "adapter": (*ADAPTERS, *PIXELS)},
    experiment=experiment,
    left_out=lambda levels: levels["adapter"] in PIXELS and levels["data"] != "whole",
    claims=(
        Claim(
            "adapter.time",
            "the time is read better with an adapter for each side",
            "vqa.time.score",
            {"whole-own": 1.0, "whole-shared": -1.0},
        ),
        Claim(
            "adapter.answers",
            "answers are better with an adapter for each side",
            "vqa.total.score",
            {"whole-own": 1.0, "whole-shared": -1.0},
        ),
        Claim(
            "adapter.drawn",
            "what is drawn is predicted better with an adapter for each side",
            "losses.generation.semantic",
            {"whole-shared": 1.0, "whole-own": -1.0},
        ),
        Claim(
            "adapter.double.time",
            "the same of the time, with the most data",
            "vqa.time.score",
            {"double-own": 1.0, "double-shared": -1.0},
        ),
        Claim(
            "pixel.time",
            "the time is read better with an adapter for each side where pixels are drawn",
            "vqa.time.score",
            {"whole-pixel_own": 1.0, "whole-pixel_shared": -1.0},
        ),
        Claim(
            "A2.starts_below",
            "with the least data, answers are worse with semantic autoregression, its adapter its own",
            "vqa.total.score",
            {"eighth-none": 1.0, "eighth-own": -1.0},
        ),
        Claim(
            "A2.steeper",
            "errors of answers fall faster with data, as a power, with semantic autoregression, its adapter its own",
            "vqa.total.score",
            FLATTER,
            log_error=True,
        ),
        Claim(
            "A2.steeper.time",
            "the same of the time",
            "vqa.time.score",
            FLATTER,
            log_error=True,
        ),
        Claim(
            "A2.overtakes",
            "with the most data, answers are better with semantic autoregression, its adapter its own",
            "vqa.total.score",
            {"double-own": 1.0, "double-none": -1.0},
        ),
    ),
    metrics=common.METRICS,
    towers=common.TOWERS,
    scaling=Scaling("vqa.total.score", "samples to be understood", SERIES),
    scales=("tiny", "small"),
)
