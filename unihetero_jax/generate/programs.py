"""The compiled functions behind the predict functions: of parameters and a batch of prompts.

B requests, N visual tokens a picture, P pictures, S slots at the end of a row whose texts are scored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from unihetero_jax.config import TOWER_NAMES, Config
from unihetero_jax.generate.decode import Decoded, Ids, Numbers, Plan, Progress, decode
from unihetero_jax.generate.decode import begin as begin_decoding
from unihetero_jax.generate.decode import go_on as go_on_decoding
from unihetero_jax.generate.pooling import pooled
from unihetero_jax.losses import base as losses
from unihetero_jax.losses.semantic.loss import cosine, semantic_target
from unihetero_jax.losses.text.loss import text_sum
from unihetero_jax.model.attention.base import Packed
from unihetero_jax.model.build import define
from unihetero_jax.model.unified import UnifiedModel, at_slots, visual_slots
from unihetero_jax.model.vision import Batch
from unihetero_jax.parallel.definition import Params

Program = Callable[..., Any]

# Of the keys of a request, those below are its slots'.
_PICTURES = 1 << 30


def request_keys(seed: jax.Array, requests_B2: jax.Array) -> jax.Array:
    """A random key a request: of the seed of everything, and of the request's digest and own seed, [B, 2] uint32."""
    once = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), requests_B2[:, 0])
    return jax.vmap(jax.random.fold_in)(once, requests_B2[:, 1])


def absent_towers(config: Config) -> tuple[str, ...]:
    """Names of the towers whose features came with the batches of training, and that the model does not have."""
    sections = {name: getattr(config.model, name) for name in TOWER_NAMES[:2]}
    return tuple(name for name, section in sections.items() if section and section.cached and not section.decodes)


def _looking(config: Config) -> Config:
    """The config, but that towers which are there look at images, whether or not training had their features cached."""
    model = config.model
    for name in TOWER_NAMES:
        section = getattr(model, name)
        if section is not None and section.cached and section.decodes:
            model = replace(model, **{name: replace(section, cached=False)})
    return replace(config, model=model)


@functools.lru_cache(maxsize=4)
def programs(config: Config, vocabulary: int, mesh: Mesh) -> dict[str, Program]:
    """The compiled functions of (parameters, batch, …) of a config's model."""
    definition = define(_looking(config), vocabulary)
    precision = "highest" if config.model.decoder.dtype == "float32" else None
    # There is no moving-average teacher here: predictions are compared with what the model itself sees.
    sections = {name: section.without_teacher() for name, section in config.losses.items()}
    terms = losses.make_losses(sections)
    semantic: Any = next((section for section in sections.values() if section.generates == "semantic"), None)
    text_loss: Any = sections.get("text")

    def program(function: Callable[..., Any], **options: Any) -> Program:
        def run(params: Params, *arguments: Any) -> Any:
            with jax.default_matmul_precision(precision):
                return function(definition.bind(params), *arguments)

        return jax.jit(run, **options)

    def generate(
        model: UnifiedModel, batch: Batch, requests: jax.Array, plan: Plan, numbers: Numbers, ids: Ids, seed: jax.Array
    ) -> Decoded:
        return decode(model, batch, request_keys(seed, requests), plan, numbers, ids, mesh)

    def begin(
        model: UnifiedModel, batch: Batch, requests: jax.Array, plan: Plan, numbers: Numbers, seed: jax.Array
    ) -> Progress:
        return begin_decoding(model, batch, request_keys(seed, requests), plan, numbers, mesh)

    def go_on(
        model: UnifiedModel,
        progress: Progress,
        requests: jax.Array,
        plan: Plan,
        numbers: Numbers,
        ids: Ids,
        seed: jax.Array,
        stopped: jax.Array,
        until: jax.Array,
    ) -> Progress:
        keys_B = request_keys(seed, requests)
        return go_on_decoding(model, progress.ending(stopped), keys_B, plan, numbers, ids, until, mesh)

    def pictures(
        model: UnifiedModel,
        made: Decoded,
        index_P2: jax.Array,
        requests: jax.Array,
        seed: jax.Array,
        guidance: jax.Array | None,
    ) -> jax.Array | None:
        row, image = index_P2[:, 0], index_P2[:, 1]
        keys = jax.vmap(jax.random.fold_in)(request_keys(seed, requests)[row], _PICTURES + image)
        return model.pictures(made.drawn[row, image], made.hidden[row, image], keys, guidance)

    def vectors(model: UnifiedModel, drawn: jax.Array) -> jax.Array:
        """What is drawn for each token as a vector."""
        made: jax.Array = model.tower_of_targets.codes(drawn) if model.generation == "codes" else drawn
        return made

    def teach(model: UnifiedModel, batch: Batch, requests: jax.Array) -> dict[str, jax.Array]:
        hidden_BTD = model.hidden(batch, model.encode(batch, mesh=mesh), mesh=mesh)
        hidden_BND = hidden_BTD[:, -model.target_tokens - 1 : -1]
        keys_B = request_keys(jnp.uint32(0), requests)
        if model.generation == "semantic":
            drawn = model.predict_semantics(hidden_BND)
        elif model.generation == "codes":
            drawn = jnp.argmax(model.code_logits(hidden_BND), axis=-1).astype(jnp.int32)
        else:
            drawn = model.sample_latents(hidden_BND, keys_B)
        made = {"embeddings": vectors(model, drawn)}
        images = model.pictures(drawn, hidden_BND, keys_B)
        return made if images is None else made | {"images": images}

    def embed(model: UnifiedModel, batch: Batch, _: jax.Array) -> dict[str, jax.Array]:
        visual = model.encode(batch, mesh=mesh)
        if visual.codes is not None:
            true = vectors(model, visual.codes[:, 0])
        elif visual.latents is not None:
            true = visual.latents[:, 0]
        else:
            true = semantic_target(semantic, visual, None)[:, 0]
        return {"embeddings": true}

    def reconstruct(model: UnifiedModel, batch: Batch, _: jax.Array) -> dict[str, jax.Array]:
        visual = model.encode(batch, mesh=mesh)
        if visual.codes is not None:
            return {"images": model.resized(model.tower_of_targets.decode_images(visual.codes[:, 0]))}
        return {"images": model.decode_latents(model.pixel_targets(batch, visual, mesh=mesh)[:, 0])}

    def states(model: UnifiedModel, batch: Batch, _: jax.Array) -> dict[str, jax.Array]:
        visual = model.encode(batch, mesh=mesh)
        seen = visual.targets if config.data.input_role == "both" else visual.inputs
        shown = seen.embeddings.shape[2]
        x_BTD = model.inputs(batch, visual)
        states_LBTD = model.decoder.states(x_BTD, batch["position"], Packed(batch["segment"]), mesh)
        # The row ends with the image.
        found = {f"layer_{number + 1:02d}": layer[:, -shown:] for number, layer in enumerate(states_LBTD)}
        found = {"adapter": seen.embeddings[:, 0]} | found
        return {name: pooled(array.astype(jnp.float32)) for name, array in found.items()}

    def text(model: UnifiedModel, batch: Batch) -> dict[str, jax.Array]:
        hidden_BTD = model.hidden(batch, model.encode(batch, mesh=mesh), mesh=mesh)
        labels, weight = (jnp.roll(batch[name], -1, axis=1) for name in ("tokens", "text_weight"))
        weight = weight.at[:, -1].set(0.0)
        chunk = 0 if text_loss is None else text_loss.chunk
        return {
            "sum": text_sum(model, hidden_BTD, labels, weight, chunk, 0.0, mesh),
            "weight": jnp.sum(weight),
        }

    def score(model: UnifiedModel, batch: Batch, learned_BS: jax.Array) -> dict[str, jax.Array]:
        hidden_BTD = model.hidden(batch, model.encode(batch, mesh=mesh), mesh=mesh)
        scored = learned_BS.shape[1]
        logits_BSV = model.decoder.logits(hidden_BTD[:, -scored - 1 : -1]).astype(jnp.float32)
        token_BS = batch["tokens"][:, -scored:]
        own_BS = jnp.take_along_axis(jax.nn.log_softmax(logits_BSV), token_BS[..., None], axis=-1)[..., 0]
        likeliest_BS = jnp.argmax(logits_BSV, axis=-1) == token_BS
        return {
            "log_likelihood": jnp.sum(own_BS * learned_BS, axis=1),
            "greedy": jnp.all(likeliest_BS | (learned_BS == 0), axis=1),
        }

    def held_out(model: UnifiedModel, batch: Batch) -> dict[str, jax.Array]:
        sums, _ = losses.loss_sums(terms, model, batch, mesh=mesh)
        totals = losses.total_weights(terms, batch)
        made = {f"{name}_sum": sums[name] for name in sums} | {f"{name}_weight": totals[name] for name in sums}
        if semantic is not None:
            made |= cosines(model, batch)
        return made

    def cosines(model: UnifiedModel, batch: Batch) -> dict[str, jax.Array]:
        visual = model.encode(batch, mesh=mesh)
        slots = visual_slots(batch, model.target_tokens)
        hidden_BMD = at_slots(model.hidden(batch, visual, mesh=mesh), slots.predictor)
        target = semantic_target(semantic, visual, None)
        rows, images, tokens, size = target.shape
        near_BM = cosine(model.predict_semantics(hidden_BMD), target.reshape(rows, images * tokens, size))
        near_BKN = (near_BM * slots.weight).reshape(rows, images, tokens)
        weight_BKN = slots.weight.reshape(rows, images, tokens)
        return {"cosine_sum": jnp.sum(near_BKN, axis=(0, 1)), "cosine_weight": jnp.sum(weight_BKN, axis=(0, 1))}

    return {
        "generate": program(generate, static_argnums=3),
        "begin": program(begin, static_argnums=3),
        # The cache of what was read is the next part's, not copied.
        "go_on": program(go_on, static_argnums=3, donate_argnums=1),
        "pictures": program(pictures),
        "vectors": program(vectors),
        "teach": program(teach),
        "embed": program(embed),
        "reconstruct": program(reconstruct),
        "states": program(states),
        "text": program(text),
        "score": program(score),
        "held_out": program(held_out),
    }
