"""The compiled functions behind the predict functions: of parameters and a batch of prompts.

B requests, N visual tokens a picture, P pictures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from unihetero_jax import objectives
from unihetero_jax.config import Config
from unihetero_jax.generate.decode import Decoded, Ids, Numbers, Plan, decode
from unihetero_jax.model.build import Params, define
from unihetero_jax.model.unified import Batch, UnifiedModel, at_slots, visual_slots
from unihetero_jax.towers.patch import unpatchify

Program = Callable[..., Any]

# Of the keys of a request, those below are its slots'.
_PICTURES = 1 << 30


class Today:
    """The model, as decoding asks for it."""

    generation = "semantic"

    def __init__(self, model: UnifiedModel, config: Config):
        self.model = model
        self.config = config
        self.input_tokens = self.target_tokens = model.tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def see(self, batch: Batch) -> Any:
        return self.model.see(batch["images"])

    def inputs(self, batch: Batch, visual: Any) -> Any:
        return self.model.inputs(batch, visual.embeddings)

    def pictures(self, drawn: jax.Array, hidden: jax.Array, keys: jax.Array) -> jax.Array | None:
        if self.model.pixel_head is None:
            return None
        return unpatchify(
            self.model.predict_pixels(hidden), self.config.model.tower.patch_size, self.config.data.image_size
        )


def request_keys(seed: jax.Array, requests_B2: jax.Array) -> jax.Array:
    """A random key a request: of the seed of everything, and of the request's digest and own seed, [B, 2] uint32."""
    once = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), requests_B2[:, 0])
    return jax.vmap(jax.random.fold_in)(once, requests_B2[:, 1])


@functools.lru_cache(maxsize=4)
def programs(config: Config, vocabulary: int, mesh: Mesh) -> dict[str, Program]:
    """The compiled functions of (parameters, batch, …) of a config's model."""
    definition = define(config, vocabulary)
    image_size, side = config.data.image_size, config.model.tower.patch_size
    precision = "highest" if config.model.decoder.dtype == "float32" else None
    # There is no moving-average teacher here: predictions are compared with what the model itself sees.
    semantic = replace(config.objectives.semantic, target_gradient="stop")
    settings = replace(config.objectives, semantic=semantic)

    def program(function: Callable[..., Any], **options: Any) -> Program:
        def run(params: Params, *arguments: Any) -> Any:
            with jax.default_matmul_precision(precision):
                return function(definition.bind(params), *arguments)

        return jax.jit(run, **options)

    def generate(
        model: UnifiedModel, batch: Batch, requests: jax.Array, plan: Plan, numbers: Numbers, ids: Ids, seed: jax.Array
    ) -> Decoded:
        return decode(Today(model, config), batch, request_keys(seed, requests), plan, numbers, ids, mesh)

    def pictures(
        model: UnifiedModel, made: Decoded, index_P2: jax.Array, requests: jax.Array, seed: jax.Array
    ) -> jax.Array | None:
        row, image = index_P2[:, 0], index_P2[:, 1]
        keys = jax.vmap(jax.random.fold_in)(request_keys(seed, requests)[row], _PICTURES + image)
        return Today(model, config).pictures(made.drawn[row, image], made.hidden[row, image], keys)

    def shown(model: UnifiedModel, semantics: jax.Array, hidden: jax.Array) -> dict[str, jax.Array]:
        made = {"embeddings": semantics}
        if model.pixel_head is not None:
            made["images"] = unpatchify(model.predict_pixels(hidden), side, image_size)
        return made

    def teach(model: UnifiedModel, batch: Batch) -> dict[str, jax.Array]:
        hidden_BTD = model.hidden(batch, model.see(batch["images"]), mesh=mesh)
        hidden_BND = hidden_BTD[:, -model.tokens - 1 : -1]
        return shown(model, model.predict_semantics(hidden_BND), hidden_BND)

    def embed(model: UnifiedModel, batch: Batch) -> dict[str, jax.Array]:
        return {"embeddings": objectives.semantic_target(semantic, model.see(batch["images"]), None)[:, 0]}

    def held_out(model: UnifiedModel, batch: Batch) -> dict[str, jax.Array]:
        sums = objectives.loss_sums(settings, model, batch, mesh=mesh)
        totals = objectives.weights(settings, batch)
        made = {f"{name}_sum": sums[name] for name in sums} | {f"{name}_weight": totals[name] for name in sums}
        if semantic.weight:
            made |= cosines(model, batch)
        return made

    def cosines(model: UnifiedModel, batch: Batch) -> dict[str, jax.Array]:
        visual = model.see(batch["images"])
        slots = visual_slots(batch, model.tokens)
        hidden_BMD = at_slots(model.hidden(batch, visual, mesh=mesh), slots.predictor)
        target = objectives.semantic_target(semantic, visual, None)
        rows, images, tokens, size = target.shape
        near_BM = objectives.cosine(model.predict_semantics(hidden_BMD), target.reshape(rows, images * tokens, size))
        near_BKN = (near_BM * slots.weight).reshape(rows, images, tokens)
        weight_BKN = slots.weight.reshape(rows, images, tokens)
        return {"cosine_sum": jnp.sum(near_BKN, axis=(0, 1)), "cosine_weight": jnp.sum(weight_BKN, axis=(0, 1))}

    return {
        "generate": program(generate, static_argnums=3),
        "pictures": program(pictures),
        "teach": program(teach),
        "embed": program(embed),
        "held_out": program(held_out),
    }
