"""What semantic autoregression should predict: UniHetero (arXiv 2512.23512), finding A3.

The target is the decoder's own input embedding of the next token, or the vision encoder's output; the loss compares
directions (cosine) or values (MSE); the target has a stopped gradient, comes from a moving average (``ema``), or learns
too (``through``). With a frozen encoder the output is the same in all three cases, which are then one arm; with the
cosine loss it is an arm of ``mutual_benefit``.

Errors of the two targets are in different spaces. So the study compares how much closer generated embeddings are to the
target image's than to another image's: free-running, as a share of the same difference teacher-forced. It is the share
of its predictions that the model retains when it continues from its own.
"""

from __future__ import annotations

import ml_collections

from unihetero_jax.config import presets
from unihetero_jax.study import pairings
from unihetero_jax.study.definition import Claim, Levels, Metric, Scale, Study

_PAIRING = "siglip_siglip"
# Mean square of each target's values, which is the initial squared error; the cosine distance starts at 1. Input
# embeddings have the root mean square of token embeddings; encoder outputs were measured (small SigLIP, 500 watches).
_MEAN_SQUARE = {"input": 0.5**2, "output": 120.0}


def experiment(levels: Levels, scale: Scale) -> ml_collections.ConfigDict:
    """Return the config of a model that predicts one of the targets."""
    if scale == "paper":
        config = presets.unihetero("7b")
        config.data.sources = {"pairs": {"reverse": 0.5}}
    else:
        config = pairings.train_config(_PAIRING, "mixed", scale)
    semantic = config.losses.semantic
    semantic.loss = levels["loss"]
    semantic.target_gradient = levels["gradient"]
    if levels["target"] == "input":
        semantic.target = "input_embedding"
    else:
        semantic.target = "encoder_output"
        # A prediction by cosine has only a direction to feed back. Both losses normalize, so that inputs are the same.
        config.model.understanding_adapter.normalize_input = True
    if levels["loss"] == "mse" and scale != "paper":
        semantic.weight = 1 / _MEAN_SQUARE[levels["target"]]
    config.evaluators.probes = {"kind": "probes"}
    config.evaluators.generation.probes = True
    return config


def _left_out(levels: Levels) -> bool:
    """Leave out arms that are the same as another one, and those that the question does not need."""
    if levels["target"] == "output":
        return levels["gradient"] != "stop"
    return levels["loss"] == "mse" and levels["gradient"] != "stop"


def _claims() -> tuple[Claim, ...]:
    answers, kept = "vqa.total.score", "derived.kept"
    claims = []
    for loss in ("cosine", "mse"):
        ours, theirs = f"input-{loss}-stop", f"output-{loss}-stop"
        claims += [
            Claim(
                f"A3.{loss}.less_error",
                f"{loss}: free-running, input embeddings retain more of what can be predicted than encoder outputs",
                kept,
                {ours: 1.0, theirs: -1.0},
            ),
            Claim(
                f"A3.{loss}.less_drift",
                f"{loss}: free-running input embeddings drift less from the first tokens to the last",
                "generation.drift",
                {theirs: 1.0, ours: -1.0},
            ),
            Claim(
                f"A3.{loss}.read",
                f"{loss}: probes read more of the prompt's attributes from free-running input embeddings",
                "generation.probe.drawn.total",
                {ours: 1.0, theirs: -1.0},
            ),
            Claim(
                f"A3.{loss}.answers",
                f"{loss}: answers are better with input embeddings as the target",
                answers,
                {ours: 1.0, theirs: -1.0},
            ),
        ]
    claims += [
        Claim(
            "A3.average",
            "targets from a moving average retain more of what can be predicted than targets with a stopped gradient",
            kept,
            {"input-cosine-ema": 1.0, "input-cosine-stop": -1.0},
        ),
        Claim(
            "A3.collapse",
            "targets that learn too vary less than targets with a stopped gradient",
            "training.target_variance",
            {"input-cosine-stop": 1.0, "input-cosine-through": -1.0},
        ),
    ]
    return tuple(claims)


STUDY = Study(
    name="input_or_output",
    question="Should the target be the decoder's input embedding or the encoder's output?",
    source="UniHetero (arXiv 2512.23512), finding A3",
    factors={"target": ("output", "input"), "loss": ("cosine", "mse"), "gradient": ("stop", "ema", "through")},
    experiment=experiment,
    claims=_claims(),
    metrics=(
        *pairings.METRICS,
        Metric("generation.free_cosine", "cosine, free-running"),
        Metric("generation.taught_cosine", "cosine, teacher-forced"),
        Metric("derived.kept", "retained, free-running"),
        Metric("generation.drift", "drift", higher_is_better=False),
        Metric("generation.probe.drawn.total", "attributes of embeddings"),
        Metric("generation.probe.another.total", "attributes of another image", higher_is_better=False),
        Metric("training.target_variance", "variance of targets"),
        Metric("training.target_cosine", "cosine of targets", higher_is_better=False),
    ),
    towers=pairings.TOWERS,
    left_out=_left_out,
    datasets={"pairs": "image-text pairs, imported by `unihetero data import`"},
)
