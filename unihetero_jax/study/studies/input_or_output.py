"""What semantic autoregression should predict: UniHetero (arXiv 2512.23512), finding A3.

The target is the decoder's own input embedding of the next token, or the vision encoder's output; by direction
(cosine) or with length (MSE); the target's side stopped, from a moving average, or learning too (``through``). With a
frozen encoder its output is the same whether the gradient is stopped or not, so that there the three are one arm, which
is ``mutual_benefit``'s where the loss is the cosine.

Errors of the two targets are of different spaces. What is compared is how much nearer drawn embeddings come to the true
picture's than to another one's, drawn freely, as a part of the same with the true tokens before each: what is left of
what the model can predict when it has to go on from its own predictions.
"""

from __future__ import annotations

import ml_collections

from unihetero_jax.config import presets
from unihetero_jax.study import common
from unihetero_jax.study.declaration import Claim, Levels, Metric, Scale, Study

_PAIRING = "siglip_siglip"
# Of a target's values: what the squared error begins at, as a cosine's distance begins at 1. Input embeddings have the
# root mean square of token embeddings; encoder outputs were measured (the small SigLIP, 500 watches).
_MEAN_SQUARE = {"input": 0.5**2, "output": 120.0}


def experiment(levels: Levels, scale: Scale) -> ml_collections.ConfigDict:
    """A model that predicts one of the targets."""
    if scale == "paper":
        config = presets.unihetero("7b")
        config.data.sources = {"pairs": {"turn_round": 0.5}}
    else:
        config = common.trained(_PAIRING, "mixed", scale)
    semantic = config.losses.semantic
    semantic.loss = levels["loss"]
    semantic.target_gradient = levels["gradient"]
    if levels["target"] == "input":
        semantic.target = "input_embedding"
    else:
        semantic.target = "encoder_output"
        # With either loss, so that reading does not differ: a cosine's prediction can be fed back by direction alone.
        config.model.understanding_adapter.normalize_input = True
    if levels["loss"] == "mse" and scale != "paper":
        semantic.weight = 1 / _MEAN_SQUARE[levels["target"]]
    config.evaluators.probes = {"kind": "probes"}
    config.evaluators.generation.probes = True
    return config


def _left_out(levels: Levels) -> bool:
    """What is the same as another arm; and of the rest what the question does not need."""
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
                f"{loss}: freely drawn, input embeddings keep more of what can be predicted than encoder outputs",
                kept,
                {ours: 1.0, theirs: -1.0},
            ),
            Claim(
                f"A3.{loss}.less_drift",
                f"{loss}: freely drawn input embeddings fall less behind from the first tokens to the last",
                "generation.drift",
                {theirs: 1.0, ours: -1.0},
            ),
            Claim(
                f"A3.{loss}.read",
                f"{loss}: more of what was asked for can be read off freely drawn input embeddings",
                "generation.probe.drawn.total",
                {ours: 1.0, theirs: -1.0},
            ),
            Claim(
                f"A3.{loss}.answers",
                f"{loss}: answers are better where input embeddings are predicted",
                answers,
                {ours: 1.0, theirs: -1.0},
            ),
        ]
    claims += [
        Claim(
            "A3.average",
            "targets from a moving average keep more of what can be predicted than stopped ones",
            kept,
            {"input-cosine-ema": 1.0, "input-cosine-stop": -1.0},
        ),
        Claim(
            "A3.collapse",
            "targets that learn from being predicted vary less than stopped ones",
            "training.target_variance",
            {"input-cosine-stop": 1.0, "input-cosine-through": -1.0},
        ),
    ]
    return tuple(claims)


STUDY = Study(
    name="input_or_output",
    question="Should the next visual embedding be that of the decoder's input, or of the encoder's output?",
    source="UniHetero (arXiv 2512.23512), finding A3",
    factors={"target": ("output", "input"), "loss": ("cosine", "mse"), "gradient": ("stop", "ema", "through")},
    experiment=experiment,
    claims=_claims(),
    metrics=(
        *common.METRICS,
        Metric("generation.free_cosine", "cosine, free"),
        Metric("generation.taught_cosine", "cosine, taught"),
        Metric("derived.kept", "kept, free"),
        Metric("generation.drift", "drift", higher_is_better=False),
        Metric("generation.probe.drawn.total", "read off embeddings"),
        Metric("generation.probe.another.total", "of another", higher_is_better=False),
        Metric("training.target_variance", "variance of targets"),
        Metric("training.target_cosine", "cosine of targets", higher_is_better=False),
    ),
    towers=common.TOWERS,
    left_out=_left_out,
    datasets={"pairs": "image-text pairs, made by `unihetero data import`"},
)
