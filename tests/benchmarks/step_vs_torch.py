"""The train step of a decoder on CPU: ours beside PyTorch's, on the same packed rows.

    python tests/benchmarks/step_vs_torch.py [--rounds=5] [--models=small,large] [--types=float32,bfloat16]

Decoder and text loss alone, AdamW, float32 parameters; `small` is the quickstart's decoder (1.1M parameters, 32 rows of
160 slots, 1,024 pieces), `large` has 13.8M (width 384, 6 layers, 16 rows of 256, 4,096 pieces). Rows hold three
segments, or one. Both sides start from the same parameters, get the same rows, and run in a process of their own, with
the same huge pages, by turns; PyTorch with its fused attention and a mask of segments (causal where a row is one
segment), eager and compiled, of which the faster one counts. Prints medians of the rounds in milliseconds per step, the
ratio (above 1: ours is faster), and both losses after 200 steps. With ``--out`` also as JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

MODELS = {
    "small": {"width": 128, "layers": 4, "heads": 4, "mlp": 384, "vocabulary": 1024, "rows": 32, "slots": 160},
    "large": {"width": 384, "layers": 6, "heads": 6, "mlp": 1024, "vocabulary": 4096, "rows": 16, "slots": 256},
}
LEARNING_RATE, DECAY, EPSILON = 1e-3, 0.01, 1e-6
BATCHES = 8


def packed_rows(model: dict[str, int], segments: int) -> list[dict[str, np.ndarray]]:
    """Some batches: arithmetic sequences with random starts and strides, which a decoder learns."""
    draws = np.random.default_rng(0)
    rows, slots = model["rows"], model["slots"]
    found = []
    for _ in range(BATCHES):
        cuts = np.sort(draws.integers(slots // 6, slots - slots // 6, (rows, segments - 1)), axis=1)
        segment = 1 + (np.arange(slots)[None, :, None] >= cuts[:, None, :]).sum(-1)
        first = np.stack([np.searchsorted(row, row) for row in segment])
        position = np.arange(slots) - first
        start, stride = draws.integers(0, model["vocabulary"], (2, rows, segments + 1))
        start, stride = (np.take_along_axis(values, segment, axis=1) for values in (start, stride % 7 + 1))
        tokens = (start + stride * position) % model["vocabulary"]
        weight = np.concatenate([segment[:, 1:] == segment[:, :-1], np.zeros((rows, 1), bool)], axis=1)
        found.append(
            {
                "tokens": tokens.astype(np.int32),
                "labels": np.roll(tokens, -1, axis=1).astype(np.int32),
                "segment": segment.astype(np.int32),
                "position": position.astype(np.int32),
                "weight": weight.astype(np.float32),
            }
        )
    return found


def initial_parameters(model: dict[str, int]) -> dict[str, np.ndarray]:
    """Parameters by our names, layers stacked; matrices are [in, out]."""
    draws = np.random.default_rng(1)
    width, layers, mlp, vocabulary = (model[name] for name in ("width", "layers", "mlp", "vocabulary"))

    def matrix(rows: int, columns: int, scale: float = 1.0) -> np.ndarray:
        return (draws.normal(size=(layers, rows, columns)) * (scale / rows) ** 0.5).astype(np.float32)

    made = {name: matrix(width, width) for name in ("query", "key", "value")}
    made |= {"output": matrix(width, width, 1 / (2 * layers)), "down": matrix(mlp, width, 1 / (2 * layers))}
    made |= {name: matrix(width, mlp) for name in ("gate", "up")}
    made["embedding"] = (draws.normal(size=(vocabulary, width)) * 0.5).astype(np.float32)
    made["head"] = (draws.normal(size=(width, vocabulary)) * width**-0.5).astype(np.float32)
    return made


def ours(model: dict[str, int], dtype: str, segments: int, attention: str) -> Callable[[int], list[float]]:
    """A function that makes some steps and returns their losses."""
    import jax
    import jax.numpy as jnp
    import optax

    from unihetero_jax.config import DecoderConfig
    from unihetero_jax.losses.text.loss import text_sum
    from unihetero_jax.model.attention.base import Packed
    from unihetero_jax.model.build import define_language_model

    width, heads = model["width"], model["heads"]
    decoder = DecoderConfig(
        width=width,
        layers=model["layers"],
        heads=heads,
        kv_heads=heads,
        mlp_width=model["mlp"],
        dtype=dtype,
        tie_embeddings=False,
        logit_scale=1.0,
        norm_epsilon=EPSILON,
        attention=attention,
    )
    definition = define_language_model(decoder, model["vocabulary"])
    params = jax.jit(definition.init)(jax.random.key(0))
    given = initial_parameters(model)
    inner = params["decoder"]
    for name in ("query", "key", "value", "output", "gate", "up", "down"):
        kernel = inner["layers"][name]["kernel"]
        inner["layers"][name]["kernel"] = jnp.asarray(given[name].reshape(kernel.shape))
    inner["embedding"], inner["head"] = jnp.asarray(given["embedding"]), jnp.asarray(given["head"])
    rule = optax.adamw(LEARNING_RATE, b1=0.9, b2=0.999, weight_decay=DECAY)

    def loss(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        bound = definition.bind(params)
        inputs = bound.decoder.embed(batch["tokens"])
        hidden, _ = bound.decoder(inputs, batch["position"], Packed(batch["segment"]))
        total = text_sum(bound, hidden, batch["labels"], batch["weight"], 0, 0.0)
        return total / jnp.sum(batch["weight"])

    def step(params: Any, state: Any, batch: dict[str, jax.Array]) -> tuple[Any, Any, jax.Array]:
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    step = jax.jit(step, donate_argnums=(0, 1))
    state = rule.init(params)
    batches = [jax.tree.map(jnp.asarray, batch) for batch in packed_rows(model, segments)]
    made = 0

    def steps(count: int) -> list[float]:
        nonlocal params, state, made
        losses = []
        for _ in range(count):
            params, state, value = step(params, state, batches[made % BATCHES])
            losses.append(float(value))
            made += 1
        return losses

    return steps


def torchs(model: dict[str, int], dtype: str, segments: int, compiled: bool) -> Callable[[int], list[float]]:
    """The same by PyTorch."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(os.cpu_count() or 1)
    heads, layers, width = model["heads"], model["layers"], model["width"]
    kind = getattr(torch, dtype)
    weights = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in initial_parameters(model).items()}
    norms = torch.nn.ParameterList([torch.ones(width) for _ in range(2 * layers + 1)])
    head_width = width // heads
    frequency = 10_000.0 ** (-torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)

    def norm(x: Any, scale: Any) -> Any:
        return functional.rms_norm(x.float(), (width,), scale, EPSILON).to(kind)

    def rotate(x: Any, cos: Any, sin: Any) -> Any:
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(kind)

    def loss(tokens: Any, labels: Any, mask: Any, position: Any, weight: Any) -> Any:
        angle = position[..., None].float() * frequency
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        x = weights["embedding"][tokens].to(kind)
        rows, slots = tokens.shape
        cast = {name: weights[name].to(kind) for name in weights}

        def split(x: Any) -> Any:
            return x.view(rows, slots, heads, head_width).transpose(1, 2)

        for layer in range(layers):
            normed = norm(x, norms[2 * layer])
            query, key, value = (split(normed @ cast[name][layer]) for name in ("query", "key", "value"))
            mixed = functional.scaled_dot_product_attention(
                rotate(query, cos, sin), rotate(key, cos, sin), value, attn_mask=mask, is_causal=mask is None
            )
            x = x + mixed.transpose(1, 2).reshape(rows, slots, width) @ cast["output"][layer]
            normed = norm(x, norms[2 * layer + 1])
            gated = functional.silu(normed @ cast["gate"][layer]) * (normed @ cast["up"][layer])
            x = x + gated @ cast["down"][layer]
        logits = (norm(x, norms[-1]) @ cast["head"]).float()
        losses = functional.cross_entropy(logits.view(rows * slots, -1), labels.view(-1), reduction="none")
        return (losses * weight.view(-1)).sum() / weight.sum()

    function = torch.compile(loss) if compiled else loss
    decayed, others = list(weights.values()), list(norms)
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": DECAY}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.999),
        eps=1e-8,
        fused=True,
    )
    batches = []
    for batch in packed_rows(model, segments):
        segment = torch.tensor(batch["segment"])
        mask = (segment[:, :, None] == segment[:, None, :]).tril()[:, None] if segments > 1 else None
        long = [torch.tensor(batch[name]).long() for name in ("tokens", "labels")]
        batches.append((*long, mask, torch.tensor(batch["position"]), torch.tensor(batch["weight"])))
    made = 0

    def steps(count: int) -> list[float]:
        nonlocal made
        losses = []
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            value = function(*batches[made % BATCHES])
            value.backward()
            optimizer.step()
            losses.append(float(value))
            made += 1
        return losses

    return steps


def serve(pipe: Any, side: str, model: dict[str, int], dtype: str, segments: int, attention: str) -> None:
    """Make as many steps as asked for, and send the milliseconds per step and the last loss."""
    make = ours(model, dtype, segments, attention) if side == "ours" else None
    make = make or torchs(model, dtype, segments, side == "torch.compile")
    while count := pipe.recv():
        make(1)  # the first step after a pause takes more than twice as long
        began = time.perf_counter()
        losses = make(count)
        pipe.send((1000 * (time.perf_counter() - began) / count, float(np.mean(losses[-BATCHES:]))))


def compare(name: str, dtype: str, segments: int, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides by turns."""
    context = multiprocessing.get_context("spawn")
    model, sides = MODELS[name], options.sides.split(",")
    pipes: dict[str, Any] = {}
    for side in sides:
        pipes[side], end = context.Pipe()
        arguments = (end, side, model, dtype, segments, options.attention)
        context.Process(target=serve, args=arguments, daemon=True).start()

    def ask(side: str, count: int) -> tuple[float, float]:
        pipes[side].send(count)
        answer: tuple[float, float] = pipes[side].recv()
        return answer

    for side in sides:
        ask(side, 3)
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side in sides:
            times[side].append(ask(side, options.steps)[0])
    made = 4 + options.rounds * (options.steps + 1)
    losses = {side: ask(side, options.losses - made - 1)[1] for side in sides if made + 1 < options.losses}
    for side in sides:
        pipes[side].send(0)
    medians = {side: statistics.median(values) for side, values in times.items()}
    best = min((value for side, value in medians.items() if side != "ours"), default=None)
    ratio = best / medians["ours"] if best is not None and "ours" in medians else None
    found = {"model": name, "type": dtype, "segments": segments, "ms": medians, "ratio": ratio, "losses": losses}
    shown = ", ".join(f"{side} {value:,.0f} ms" for side, value in medians.items())
    print(f"{name:5} {dtype:8} {segments} segments: {shown}" + (f"; ratio {ratio:.2f}" if ratio else ""), flush=True)
    ends = ", ".join(f"{side} {loss:.4f}" for side, loss in losses.items())
    print(f"      losses after {options.losses} steps: {ends}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="steps of a round")
    parser.add_argument("--losses", type=int, default=200, help="steps after which losses are compared")
    parser.add_argument("--models", default="small,large")
    parser.add_argument("--types", default="float32,bfloat16")
    parser.add_argument("--segments", default="3,1")
    parser.add_argument("--sides", default="ours,torch,torch.compile")
    parser.add_argument("--attention", default="auto", help="our implementation")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # as the command line sets it
    found = [
        compare(name, dtype, int(segments), options)
        for name in options.models.split(",")
        for dtype in options.types.split(",")
        for segments in options.segments.split(",")
    ]
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
