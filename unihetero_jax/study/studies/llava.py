"""Paper B's validation on LLaVA-1.5 (arXiv 2505.23043), at full size: its second stage, with up to 200k requests.

Vicuna-7B reads with CLIP and draws CLIP's features or VQ-16's codes; requests for pictures are ShareGPT4V's captions
turned round, beside LLaVA's 665k instructions. Each pairing starts from a first stage of its own
(``configs/llava15_clip_clip_stage1.py``, ``configs/llava15_clip_vq_stage1.py``), given as ``--weights``. Accelerators
are needed, and nothing of it has been run; its small twin is ``real_world``. The paper's scores are of benchmarks;
claims here are about held-out losses.
"""

from __future__ import annotations

import ml_collections

from unihetero_jax.config import presets
from unihetero_jax.study.declaration import Claim, Levels, Metric, Scale, Study

_INSTRUCTIONS, _REQUESTS = 665_000, 200_000
_DRAWN = {"0": 0, "50k": 50_000, "100k": 100_000, "200k": 200_000}
# Of the paper's second stage, with all requests.
_STEPS = 6_761


def experiment(levels: Levels, scale: Scale) -> ml_collections.ConfigDict:
    """The second stage, with some of the requests."""
    drawn = _DRAWN[levels["drawn"]]
    config = presets.llava15("clip" if levels["pairing"] == "clip_clip" else "vq16", stage=2)
    config.init.path = f"stage1_{levels['pairing']}"
    config.init.tokenizer = True
    config.data.sources = {"instructions": {"root": ""}}
    if drawn:
        config.data.sources = {"instructions": {"root": ""}, "requests": {"root": "", "epochs": drawn / _REQUESTS}}
    else:
        config.data.mode = "understanding"
    config.train.steps = round(_STEPS * (_INSTRUCTIONS + drawn) / (_INSTRUCTIONS + _REQUESTS))
    return config


def _left_out(levels: Levels) -> bool:
    """Without pictures to draw, it does not matter by what they would be."""
    return levels["pairing"] == "clip_vq" and levels["drawn"] == "0"


STUDY = Study(
    name="llava",
    question="Does learning to draw help LLaVA-1.5?",
    source="Are Unified Vision-Language Models Necessary (arXiv 2505.23043), LLaVA-1.5 validation",
    factors={"pairing": ("clip_clip", "clip_vq"), "drawn": tuple(_DRAWN)},
    experiment=experiment,
    claims=tuple(
        Claim(
            f"LLaVA.{pairing}.{drawn}",
            f"{pairing}: held-out answers are better predicted with {drawn} requests for pictures beside them",
            "losses.understanding.text",
            {"clip_clip-0": 1.0, f"{pairing}-{drawn}": -1.0},
        )
        for pairing in ("clip_clip", "clip_vq")
        for drawn in ("50k", "100k", "200k")
    ),
    metrics=(Metric("losses.understanding.text", "text loss", higher_is_better=False),),
    left_out=_left_out,
    datasets={
        "instructions": "LLaVA's 665k instructions, made by `unihetero data import llava`",
        "requests": "200k captions of ShareGPT4V as requests, made by `unihetero data import llava --generation=…`",
    },
    weights={
        "stage1_clip_clip": "the workdir of configs/llava15_clip_clip_stage1.py",
        "stage1_clip_vq": "the workdir of configs/llava15_clip_vq_stage1.py",
    },
    scales=("paper",),
)
