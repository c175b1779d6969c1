"""The compiled functions behind the predict functions: of parameters and a batch of prompts.

B requests, N visual tokens per image, P images, S slots at the end of a row whose texts are scored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from unihetero_jax.config import TOWER_NAMES, Config
from unihetero_jax.generate.decode import Decoded, Decoding, Ids, Numbers, Plan, Progress
from unihetero_jax.generate.pooling import pooled
from unihetero_jax.losses import base as losses
from unihetero_jax.losses.semantic.loss import cosine, semantic_target
from unihetero_jax.losses.text.loss import text_sum
from unihetero_jax.model.attention.base import Packed
from unihetero_jax.model.build import define
from unihetero_jax.model.unified import UnifiedModel, at_slots, visual_slots
from unihetero_jax.model.vision import Batch
from unihetero_jax.parallel.module_definition import Params

Program = Callable[..., Any]

# Keys below this number are those of a request's slots.
_IMAGES = 1 << 30


def request_keys(seed: jax.Array, requests_B2: jax.Array) -> jax.Array:
    """A random key per request: of the seed of everything, and of the request's digest and own seed, [B, 2] uint32."""
    once = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), requests_B2[:, 0])
    return jax.vmap(jax.random.fold_in)(once, requests_B2[:, 1])


def absent_towers(config: Config) -> tuple[str, ...]:
    """Names of the towers whose features came with the batches of training, and that the model does not have."""
    sections = {name: getattr(config.model, name) for name in TOWER_NAMES[:2]}
    return tuple(name for name, section in sections.items() if section and section.cached and not section.decodes)


def _encoding(config: Config) -> Config:
    """The config in which the model's towers encode images, whether or not training had their features cached."""
    model = config.model
    for name in TOWER_NAMES:
        section = getattr(model, name)
        if section is not None and section.cached and section.decodes:
            model = replace(model, **{name: replace(section, cached=False)})
    return replace(config, model=model)


@dataclass(frozen=True)
class _Functions:
    """Functions of a model and a batch, of one config.

    Attributes:
      config: of the model.
      mesh: where activations are constrained to.
    """

    config: Config
    mesh: Mesh

    @functools.cached_property
    def _sections(self) -> dict[str, Any]:
        # There is no moving-average teacher here: predictions are compared with the model's own targets.
        return {name: section.without_teacher() for name, section in self.config.losses.items()}

    @functools.cached_property
    def _semantic(self) -> Any:
        return next((section for section in self._sections.values() if section.generates == "semantic"), None)

    @functools.cached_property
    def _losses(self) -> Any:
        return losses.make_losses(self._sections)

    def _hidden(self, model: UnifiedModel, batch: Batch) -> jax.Array:
        return model.hidden(batch, model.encode(batch, mesh=self.mesh), mesh=self.mesh)

    def generate(
        self,
        model: UnifiedModel,
        batch: Batch,
        requests: jax.Array,
        plan: Plan,
        numbers: Numbers,
        ids: Ids,
        seed: jax.Array,
    ) -> Decoded:
        return Decoding(model, request_keys(seed, requests), plan, numbers, ids, self.mesh).run(batch)

    def start(
        self,
        model: UnifiedModel,
        batch: Batch,
        requests: jax.Array,
        plan: Plan,
        numbers: Numbers,
        ids: Ids,
        seed: jax.Array,
    ) -> Progress:
        return Decoding(model, request_keys(seed, requests), plan, numbers, ids, self.mesh).start(batch)

    def resume(
        self,
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
        decoding = Decoding(model, request_keys(seed, requests), plan, numbers, ids, self.mesh)
        return decoding.resume(progress.ending(stopped), until)

    def images(
        self,
        model: UnifiedModel,
        decoded: Decoded,
        index_P2: jax.Array,
        requests: jax.Array,
        seed: jax.Array,
        guidance: jax.Array | None,
    ) -> jax.Array | None:
        """Pixels of some images, each given by its request and its number there."""
        row, image = index_P2[:, 0], index_P2[:, 1]
        keys = jax.vmap(jax.random.fold_in)(request_keys(seed, requests)[row], _IMAGES + image)
        return model.pictures(decoded.predicted[row, image], decoded.hidden[row, image], keys, guidance)

    def vectors(self, model: UnifiedModel, predicted: jax.Array) -> jax.Array:
        """What is predicted for each token as a vector."""
        found: jax.Array = model.tower_of_targets.codes(predicted) if model.generation == "codes" else predicted
        return found

    def teacher_forced(self, model: UnifiedModel, batch: Batch, requests: jax.Array) -> dict[str, jax.Array]:
        """Predictions of the visual tokens at the end of each row, each from the true ones before it."""
        hidden_BND = self._hidden(model, batch)[:, -model.target_tokens - 1 : -1]
        keys_B = request_keys(jnp.uint32(0), requests)
        if model.generation == "semantic":
            predicted = model.predict_semantics(hidden_BND)
        elif model.generation == "codes":
            predicted = jnp.argmax(model.code_logits(hidden_BND), axis=-1).astype(jnp.int32)
        else:
            predicted = model.sample_latents(hidden_BND, keys_B)
        found = {"embeddings": self.vectors(model, predicted)}
        images = model.pictures(predicted, hidden_BND, keys_B)
        return found if images is None else found | {"images": images}

    def embed(self, model: UnifiedModel, batch: Batch, _: jax.Array) -> dict[str, jax.Array]:
        """What is to be predicted of target images."""
        visual = model.encode(batch, mesh=self.mesh)
        if visual.codes is not None:
            true = self.vectors(model, visual.codes[:, 0])
        elif visual.latents is not None:
            true = visual.latents[:, 0]
        else:
            true = semantic_target(self._semantic, visual, None)[:, 0]
        return {"embeddings": true}

    def reconstruct(self, model: UnifiedModel, batch: Batch, _: jax.Array) -> dict[str, jax.Array]:
        """Pixels of target images' true codes or latents."""
        visual = model.encode(batch, mesh=self.mesh)
        if visual.codes is not None:
            return {"images": model.resized(model.tower_of_targets.decode_images(visual.codes[:, 0]))}
        return {"images": model.decode_latents(model.pixel_targets(batch, visual, mesh=self.mesh)[:, 0])}

    def states(self, model: UnifiedModel, batch: Batch, _: jax.Array) -> dict[str, jax.Array]:
        """Vectors of the input image at the end of each row, in every layer."""
        visual = model.encode(batch, mesh=self.mesh)
        encoded = visual.targets if self.config.data.input_role == "both" else visual.inputs
        tokens = encoded.embeddings.shape[2]
        x_BTD = model.inputs(batch, visual)
        states_LBTD = model.decoder.states(x_BTD, batch["position"], Packed(batch["segment"]), self.mesh)
        found = {f"layer_{number + 1:02d}": layer[:, -tokens:] for number, layer in enumerate(states_LBTD)}
        found = {"adapter": encoded.embeddings[:, 0]} | found
        return {name: pooled(array.astype(jnp.float32)) for name, array in found.items()}

    def text(self, model: UnifiedModel, batch: Batch) -> dict[str, jax.Array]:
        """Σ cross-entropy and number of the text tokens of packed rows."""
        labels, weight = (jnp.roll(batch[name], -1, axis=1) for name in ("tokens", "text_weight"))
        weight = weight.at[:, -1].set(0.0)
        chunk = self._sections["text"].chunk if "text" in self._sections else 0
        total = text_sum(model, self._hidden(model, batch), labels, weight, chunk, 0.0, self.mesh)
        return {"sum": total, "weight": jnp.sum(weight)}

    def score(self, model: UnifiedModel, batch: Batch, scored_BS: jax.Array) -> dict[str, jax.Array]:
        """Log-likelihood of the answer at the end of each row, and whether it is the likeliest."""
        slots = scored_BS.shape[1]
        logits_BSV = model.decoder.logits(self._hidden(model, batch)[:, -slots - 1 : -1]).astype(jnp.float32)
        token_BS = batch["tokens"][:, -slots:]
        own_BS = jnp.take_along_axis(jax.nn.log_softmax(logits_BSV), token_BS[..., None], axis=-1)[..., 0]
        likeliest_BS = jnp.argmax(logits_BSV, axis=-1) == token_BS
        return {
            "log_likelihood": jnp.sum(own_BS * scored_BS, axis=1),
            "greedy": jnp.all(likeliest_BS | (scored_BS == 0), axis=1),
        }

    def held_out(self, model: UnifiedModel, batch: Batch) -> dict[str, jax.Array]:
        """Sum and weight of each loss over packed rows."""
        sums, _ = losses.loss_sums(self._losses, model, batch, mesh=self.mesh)
        totals = losses.total_weights(self._losses, batch)
        found = {f"{name}_sum": sums[name] for name in sums} | {f"{name}_weight": totals[name] for name in sums}
        return found if self._semantic is None else found | self._cosines(model, batch)

    def _cosines(self, model: UnifiedModel, batch: Batch) -> dict[str, jax.Array]:
        """Sum and weight of the cosine of predicted and true embeddings, for each visual position."""
        visual = model.encode(batch, mesh=self.mesh)
        slots = visual_slots(batch, model.target_tokens)
        hidden_BMD = at_slots(model.hidden(batch, visual, mesh=self.mesh), slots.predictor)
        target = semantic_target(self._semantic, visual, None)
        rows, images, tokens, size = target.shape
        near_BM = cosine(model.predict_semantics(hidden_BMD), target.reshape(rows, images * tokens, size))
        near_BKN = (near_BM * slots.weight).reshape(rows, images, tokens)
        weight_BKN = slots.weight.reshape(rows, images, tokens)
        return {"cosine_sum": jnp.sum(near_BKN, axis=(0, 1)), "cosine_weight": jnp.sum(weight_BKN, axis=(0, 1))}


# Options of ``jax.jit`` by the name of the function; plans are static. The cache of ``resume`` is updated in place.
_PROGRAMS: dict[str, dict[str, Any]] = {
    "generate": {"static_argnums": 3},
    "start": {"static_argnums": 3},
    "resume": {"static_argnums": 3, "donate_argnums": 1},
    **{name: {} for name in ("images", "vectors", "teacher_forced", "embed", "reconstruct", "states")},
    **{name: {} for name in ("text", "score", "held_out")},
}


@functools.lru_cache(maxsize=4)
def programs(config: Config, vocabulary: int, mesh: Mesh) -> dict[str, Program]:
    """The compiled functions of (parameters, batch, …) of a config's model."""
    definition = define(_encoding(config), vocabulary)
    precision = "highest" if config.model.decoder.dtype == "float32" else None
    functions = _Functions(config, mesh)

    def program(function: Callable[..., Any], options: dict[str, Any]) -> Program:
        def run(params: Params, *arguments: Any) -> Any:
            with jax.default_matmul_precision(precision):
                return function(definition.bind(params), *arguments)

        return jax.jit(run, **options)

    return {name: program(getattr(functions, name), options) for name, options in _PROGRAMS.items()}
