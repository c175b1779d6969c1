"""Paper B's validation on LLaVA-1.5 (arXiv 2505.23043) at full size: stage 2 with up to 200k generation samples.

Vicuna-7B has CLIP as its understanding tower, and generates CLIP's features or VQ-16's codes. The generation samples
are ShareGPT4V's captions, reversed, beside LLaVA's 665k instructions. Each pairing starts from its own first stage
(``configs/llava15_clip_clip_stage1.py``, ``configs/llava15_clip_vq_stage1.py``), given as ``--weights``. The study
needs accelerators and has not been run; its small twin is ``real_world``. The paper scores benchmarks; the claims here
are about held-out losses.
"""

from __future__ import annotations

import ml_collections

from unihetero_jax.config import presets
from unihetero_jax.study.definition import Claim, Levels, Metric, Scale, Study

_INSTRUCTIONS, _REQUESTS = 665_000, 200_000
_GENERATED = {"0": 0, "50k": 50_000, "100k": 100_000, "200k": 200_000}
# Steps of the paper's second stage, with all generation samples.
_STEPS = 6_761


def experiment(levels: Levels, scale: Scale) -> ml_collections.ConfigDict:
    """Return the config of the second stage with some of the generation samples."""
    generated = _GENERATED[levels["generated"]]
    config = presets.llava15("clip" if levels["pairing"] == "clip_clip" else "vq16", stage=2)
    config.init.path = f"stage1_{levels['pairing']}"
    config.init.tokenizer = True
    config.data.sources = {"instructions": {"root": ""}}
    if generated:
        config.data.sources = {"instructions": {"root": ""}, "requests": {"root": "", "epochs": generated / _REQUESTS}}
    else:
        config.data.mode = "understanding"
    config.train.steps = round(_STEPS * (_INSTRUCTIONS + generated) / (_INSTRUCTIONS + _REQUESTS))
    return config


def _left_out(levels: Levels) -> bool:
    """Leave out the second pairing without generation, where the generation tower makes no difference."""
    return levels["pairing"] == "clip_vq" and levels["generated"] == "0"


STUDY = Study(
    name="llava",
    question="Does learning to generate images help LLaVA-1.5?",
    source="Are Unified Vision-Language Models Necessary (arXiv 2505.23043), LLaVA-1.5 validation",
    factors={"pairing": ("clip_clip", "clip_vq"), "generated": tuple(_GENERATED)},
    experiment=experiment,
    claims=tuple(
        Claim(
            f"LLaVA.{pairing}.{generated}",
            f"{pairing}: held-out answers are predicted better with {generated} generation samples",
            "losses.understanding.text",
            {"clip_clip-0": 1.0, f"{pairing}-{generated}": -1.0},
        )
        for pairing in ("clip_clip", "clip_vq")
        for generated in ("50k", "100k", "200k")
    ),
    metrics=(Metric("losses.understanding.text", "text loss", higher_is_better=False),),
    left_out=_left_out,
    datasets={
        "instructions": "LLaVA's 665k instructions, imported by `unihetero data import llava`",
        "requests": "200k reversed captions of ShareGPT4V, imported by `unihetero data import llava --generation=…`",
    },
    weights={
        "stage1_clip_clip": "the workdir of configs/llava15_clip_clip_stage1.py",
        "stage1_clip_vq": "the workdir of configs/llava15_clip_vq_stage1.py",
    },
    scales=("paper",),
)
