"""Drawing a picture of 256 visual tokens: the cached decoder against recomputing everything at each token.

    python tests/benchmarks/decoding.py
    python tests/benchmarks/decoding.py --rows=8 --width=512 --layers=8 --dtype=bfloat16

Recomputing is what released code of unified models does: each visual token costs a pass over the whole sequence. Here
it is one compiled loop over arrays of the final length, so that it pays neither for Python nor for compiling again.
Both sides run in this process, with the same random weights, prompts of different lengths and greedy text of one token;
they take turns, and the medians are compared. Prints one JSON object; exit code 1 when the two draw different
embeddings, or the cached decoder is not ten times as fast.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from unihetero_jax.config import defaults, resolve
from unihetero_jax.generate.decode import Decoding, Ids, Numbers, Plan
from unihetero_jax.generate.requests import Prompt, left_pad
from unihetero_jax.generate.sampling_options import Choice
from unihetero_jax.model.attention.base import packed_causal_mask
from unihetero_jax.model.build import define

VOCABULARY = 1024
START, PAD, END, NEVER = 5, 6, 7, -1
TARGET = 10.0


def configure(options: argparse.Namespace):
    values = defaults()
    values.data.image_size = 256
    values.model.understanding_tower.patch_size = 16
    values.model.decoder.width = options.width
    values.model.decoder.layers = options.layers
    values.model.decoder.heads = values.model.decoder.kv_heads = options.width // 64
    values.model.decoder.mlp_width = 8 * options.width // 3 // 64 * 64
    values.model.decoder.dtype = options.dtype
    values.losses.pixel.weight = 0.0
    return resolve(values)


def make_prompts(rows: int, slots: int, seed: int) -> list[Prompt]:
    chance = np.random.default_rng(seed)
    prompts = []
    for row in range(rows):
        tokens = chance.integers(10, VOCABULARY, slots - row % 8, dtype=np.int32)
        text = np.full(len(tokens), -1, np.int32)
        prompts.append(Prompt(tokens, text, text, (), ()))
    return prompts


def recompute(model, batch, embeddings: int) -> jax.Array:
    """The predictions [B, N, F] of as many visual tokens, each from a pass over the whole padded sequence."""
    rows, slots = batch["tokens"].shape
    length = slots + 1 + embeddings
    x = jnp.pad(model.inputs(batch, model.encode(batch)), ((0, 0), (0, length - slots), (0, 0)))
    x = x.at[:, slots].set(model.decoder.embed(jnp.full(rows, START)))
    segment = jnp.pad(batch["segment"], ((0, 0), (0, length - slots)), constant_values=1)
    position = jnp.concatenate(
        [batch["position"], batch["position"][:, -1:] + 1 + jnp.arange(length - slots)[None]], axis=1
    )
    mask = packed_causal_mask(segment)

    def step(patch, carry):
        x, found = carry
        hidden, _ = model.decoder(x, position, mask)
        drawn = model.predict_semantics(jax.lax.dynamic_slice_in_dim(hidden, slots + patch, 1, axis=1)[:, 0])
        fed_back = model.feed_back(drawn, patch)[:, None].astype(x.dtype)
        x = jax.lax.dynamic_update_slice_in_dim(x, fed_back, slots + 1 + patch, axis=1)
        return x, jax.lax.dynamic_update_slice_in_dim(found, drawn[:, None], patch, axis=1)

    size = jax.eval_shape(model.predict_semantics, x[:, 0]).shape[-1]
    return jax.lax.fori_loop(0, embeddings, step, (x, jnp.zeros((rows, embeddings, size))))[1]


def seconds(function, *arguments) -> float:
    started = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1, help="pictures at once (default: %(default)s)")
    parser.add_argument("--width", type=int, default=256, help="of the decoder (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=6, help="of the decoder (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: %(default)s)")
    parser.add_argument("--prompt", type=int, default=32, help="slots of the longest prompt (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="measured runs of each side (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and prompts (default: %(default)s)")
    options = parser.parse_args()
    config = configure(options)
    definition = define(config, VOCABULARY)
    params = jax.jit(definition.init)(jax.random.key(options.seed))
    batch = left_pad(make_prompts(options.rows, options.prompt, options.seed), options.rows, options.prompt, 1, 256)
    greedy = Choice()
    plan = Plan(0, 1, True, True, greedy.rule, greedy.rule, "none")
    numbers = Numbers(greedy.numbers, greedy.numbers, np.float32(0))
    ids = Ids(np.asarray([NEVER], np.int32), *map(np.int32, (START, PAD, END)))
    keys = jax.random.split(jax.random.key(options.seed), options.rows)
    tokens = definition.bind(params).target_tokens

    cached = jax.jit(lambda params: Decoding(definition.bind(params), keys, plan, numbers, ids).run(batch).predicted)
    again = jax.jit(lambda params: recompute(definition.bind(params), batch, tokens))
    ours, theirs = np.asarray(cached(params))[:, 0], np.asarray(again(params))
    size = np.linalg.norm(theirs, axis=-1).max()
    error = float(np.abs(ours - theirs).max() / size)
    times = [(seconds(cached, params), seconds(again, params)) for _ in range(options.repeats)]
    fast, slow = (float(np.median(column)) / options.rows for column in zip(*times, strict=True))
    print(
        json.dumps(
            {
                "tokens": tokens,
                **vars(options),
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
                "machine": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}",
                "jax": jax.__version__,
                "cached_ms_per_picture": round(1e3 * fast, 1),
                "recomputed_ms_per_picture": round(1e3 * slow, 1),
                "times_faster": round(slow / fast, 1),
                "largest_error_of_length": error,
            }
        )
    )
    tolerance = 1e-3 if options.dtype == "float32" else 5e-2
    return int(error > tolerance or slow < TARGET * fast)


if __name__ == "__main__":
    sys.exit(main())
