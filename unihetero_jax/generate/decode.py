"""Cached decoding of text and images: pure functions of a model and a batch of prompts.

B requests, R rows (B, or 2·B with guidance), T slots of a prompt, S slots of the cache, N visual tokens of an image,
I images per request, D width, F width of a predicted visual token, L most slots that are decoded.

Prompts are padded on the left, so that the last slot of every row predicts what comes first. What is decoded goes to
the same cache slot in every row, whatever it is and whether or not the row has ended: the slots of ended rows are
masked, and positions count only what a row really holds. So rows of different lengths and in different states, one
generating text and one an image, share one program, and no row depends on another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from unihetero_jax.generate.choose import choose
from unihetero_jax.generate.sampling_options import Rule
from unihetero_jax.model.attention.base import packed_causal_mask
from unihetero_jax.model.decoder import Cache
from unihetero_jax.model.diffusion.head import DiffusionHead
from unihetero_jax.model.unified import UnifiedModel
from unihetero_jax.model.vision import Batch

_TEXT = -1  # in place of the index of the next visual token


@dataclass(frozen=True)
class Plan:
    """What is compiled in.

    Attributes:
      tokens: most text tokens per request.
      images: most images per request, I.
      require_image: a request that would end without an image begins one.
      ends_with_image: a request ends with its last image.
      text: how tokens are chosen.
      codes: how codes are chosen.
      guidance: ``none``; ``head``, by the diffusion head's own null condition; ``rows``, where every prompt is followed
        by one without what guidance is to lead towards; or ``configured``, as the diffusion head is.
    """

    tokens: int
    images: int
    require_image: bool
    ends_with_image: bool
    text: Rule
    codes: Rule
    guidance: str

    @property
    def rows_per_request(self) -> int:
        """R / B."""
        return 2 if self.guidance == "rows" else 1


class Numbers(NamedTuple):
    """What may change without compiling.

    Attributes:
      text: temperature and top-p of text, [2].
      codes: temperature and top-p of codes, [2].
      guidance: scale of guidance, [].
    """

    text: jax.Array
    codes: jax.Array
    guidance: jax.Array


class Ids(NamedTuple):
    """Token ids.

    Attributes:
      stops: of what ends a request, [stops].
      image_start: of an image's start marker, [].
      image_pad: of an image's slots, [].
      image_end: of an image's end marker, [].
    """

    stops: jax.Array
    image_start: jax.Array
    image_pad: jax.Array
    image_end: jax.Array


class Context(NamedTuple):
    """What has been decoded so far, as the model has it.

    Attributes:
      cache: keys and values.
      readable: [R, S] bool, slots that hold something of the row.
      position: [R] int32, of the row's next input.
      hidden: [R, D], the state that predicts the next input.
    """

    cache: Cache
    readable: jax.Array
    position: jax.Array
    hidden: jax.Array


class Decoded(NamedTuple):
    """What was decoded.

    Attributes:
      ids: [B, L] int32, of text, and of an image's start, slots and end.
      length: [B], how many of the ids count.
      stop: [B], the id that ended the request (the image's start, where it would have begun one too many); −1 where
        something else ended it.
      text_tokens: [B], number of text tokens.
      images: [B], number of images.
      forced: [B, I] bool, images that the model did not begin by itself.
      predicted: [B, I, N, F] float32 or, of codes, [B, I, N] int32.
      hidden: [B, I, N, D], the states that predicted them.
    """

    ids: jax.Array
    length: jax.Array
    stop: jax.Array
    text_tokens: jax.Array
    images: jax.Array
    forced: jax.Array
    predicted: jax.Array
    hidden: jax.Array


class _State(NamedTuple):
    """Where each request is.

    Attributes:
      running: [B] bool.
      patch: [B], index of the visual token that comes next; N for the end marker, −1 for a token of text.
    """

    running: jax.Array
    patch: jax.Array


class _Chosen(NamedTuple):
    """The tokens chosen by requests that generate text, [B] each.

    Attributes:
      token: the token.
      is_text: whether it is text.
      stops: whether it ends the request.
      begins: whether it begins an image.
      forced: whether the image begins because one is required.
    """

    token: jax.Array
    is_text: jax.Array
    stops: jax.Array
    begins: jax.Array
    forced: jax.Array


class Progress(NamedTuple):
    """How far a batch is.

    Attributes:
      number: [] int32, of decoded slots.
      state: where each request is.
      done: what was decoded.
      context: what was decoded, as the model has it.
    """

    number: jax.Array
    state: _State
    done: Decoded
    context: Context

    @property
    def running(self) -> jax.Array:
        """[B] bool: requests that have not ended."""
        return self.state.running

    def ending(self, some_B: jax.Array) -> Progress:
        """With some more requests ended."""
        return self._replace(state=self.state._replace(running=self.state.running & ~some_B))


def prefill(model: UnifiedModel, prompts: Batch, capacity: int, mesh: Mesh | None = None) -> Context:
    """Process prompts into a new cache.

    Args:
      model: the model.
      prompts: a batch made by ``left_pad``.
      capacity: cache slots to keep free for what is decoded.
      mesh: where activations are constrained to.
    """
    x_RTD = model.inputs(prompts, model.encode(prompts, mesh=mesh))
    rows, slots = prompts["tokens"].shape
    # Padding is a segment of its own: it attends to itself, because attention to nothing is not a number.
    mask_RTS = jnp.pad(packed_causal_mask(prompts["segment"]), ((0, 0), (0, 0), (0, capacity)))
    cache = model.decoder.empty_cache(rows, slots + capacity)
    hidden_RTD, filled = model.decoder(x_RTD, prompts["position"], mask_RTS, cache=cache, mesh=mesh)
    assert filled is not None
    readable = jnp.pad(prompts["segment"] > 0, ((0, 0), (0, capacity)))
    return Context(filled, readable, prompts["position"][:, -1] + 1, hidden_RTD[:, -1])


def advance(
    model: UnifiedModel,
    context: Context,
    x_RD: Float[Array, "R D"],
    slot: Int[Array, ""],
    live: jax.Array,
    mesh: Mesh | None = None,
) -> Context:
    """Process one more input per row.

    Args:
      model: the model.
      context: what came before.
      x_RD: input embeddings.
      slot: the cache slot that they take in every row.
      live: [R] bool, the rows that continue; the others stay as they are.
      mesh: where activations are constrained to.
    """
    dtype = jnp.dtype(model.decoder.config.dtype)
    readable = jax.lax.dynamic_update_slice_in_dim(context.readable, live[:, None], slot, axis=1)
    hidden_RTD, filled = model.decoder(
        x_RD[:, None].astype(dtype),
        context.position[:, None],
        readable[:, None],
        cache=context.cache,
        start=slot,
        mesh=mesh,
    )
    assert filled is not None
    hidden = jnp.where(live[:, None], hidden_RTD[:, 0], context.hidden)
    return Context(filled, readable, context.position + live, hidden)


@dataclass(frozen=True)
class Decoding:
    """The decoding of one batch.

    A request that generates text chooses a token each time. If it is the image's start, the image follows, one visual
    token after another, each predicted from the ones before and fed back as if it were true; then comes the end marker,
    and the request generates text again.

    Attributes:
      model: the model; ``plan.images`` is 0 for one that does not generate images.
      keys_B: a random key per request. The samples of its i-th slot depend on its key and i alone.
      plan: what is compiled in.
      numbers: what is not compiled in.
      ids: token ids of the tokenizer.
      mesh: where activations are constrained to.
    """

    model: UnifiedModel
    keys_B: jax.Array
    plan: Plan
    numbers: Numbers
    ids: Ids
    mesh: Mesh | None = None

    def run(self, prompts: Batch) -> Decoded:
        """Decode until all requests have ended.

        Args:
          prompts: a batch made by ``left_pad``, of R rows; with ``plan.guidance='rows'`` each request's two rows
            together.
        """
        return self.resume(self.start(prompts)).done

    def start(self, prompts: Batch) -> Progress:
        """Process the prompts of ``run``."""
        plan, rows = self.plan, self.keys_B.shape[0]
        limit = plan.tokens + plan.images * (self.model.target_tokens + 2)
        context = prefill(self.model, prompts, limit, self.mesh)
        state = _State(jnp.ones(rows, bool), jnp.full(rows, _TEXT, jnp.int32))
        return Progress(jnp.int32(0), state, self._empty(limit, context), context)

    def resume(self, progress: Progress, until: jax.Array | None = None) -> Progress:
        """Decode up to slot ``until``, or to the end; decoding in several parts does not change the result."""
        limit = progress.done.ids.shape[1]
        end = limit if until is None else jnp.minimum(until, limit)

        def unfinished(progress: Progress) -> jax.Array:
            return (progress.number < end) & jnp.any(progress.running)

        return jax.lax.while_loop(unfinished, self._step, progress)

    def _step(self, progress: Progress) -> Progress:
        """Decode one slot of each request that is running."""
        plan, ids = self.plan, self.ids
        number, state, done, context = progress
        rows, limit = done.ids.shape
        keys = jax.vmap(jax.random.fold_in, (0, None))(self.keys_B, number)
        chosen = self._choose_token(keys, progress)
        closing = state.running & (state.patch == self.model.target_tokens)
        slot_id = jnp.where(chosen.begins, ids.image_start, jnp.where(closing, ids.image_end, chosen.token))
        x_BD = self.model.decoder.embed(slot_id)
        visual = state.running & (state.patch >= 0) & ~closing
        if plan.images:
            predicted, fed_back = self._visual_token(keys, state.patch, visual, context)
            done = _store(done, predicted, self._conditional(context.hidden)[0], state.patch, visual)
            x_BD = jnp.where(visual[:, None], fed_back.astype(x_BD.dtype), x_BD)
            slot_id = jnp.where(visual, ids.image_pad, slot_id)
        live = state.running & ~chosen.stops
        image = jnp.where(chosen.begins, done.images, plan.images)  # behind the last: dropped
        done = done._replace(
            ids=jax.lax.dynamic_update_slice_in_dim(done.ids, jnp.where(live, slot_id, 0)[:, None], number, axis=1),
            length=done.length + live,
            stop=jnp.where(chosen.stops, chosen.token, done.stop),
            text_tokens=done.text_tokens + chosen.is_text,
            images=done.images + chosen.begins,
            forced=done.forced.at[jnp.arange(rows), image].set(chosen.forced, mode="drop"),
        )
        # What ends a request is never attended to, but a step is one program for all requests.
        slot = context.readable.shape[1] - limit + number
        x_RD = jnp.repeat(x_BD, plan.rows_per_request, axis=0)
        context = advance(self.model, context, x_RD, slot, self._live_rows(live, chosen.is_text), self.mesh)
        patch = jnp.where(chosen.begins, 0, jnp.where(visual, state.patch + 1, _TEXT))
        full = (done.text_tokens >= plan.tokens) & ~self._lacks_image(done)
        ended = chosen.stops | ((chosen.is_text | closing) & full)
        if plan.ends_with_image:
            ended |= visual & (patch == self.model.target_tokens) & (done.images >= plan.images)
        return Progress(number + 1, _State(state.running & ~ended, patch), done, context)

    def _choose_token(self, keys: jax.Array, progress: Progress) -> _Chosen:
        plan, done, hidden = self.plan, progress.done, progress.context.hidden
        texting = progress.state.running & (progress.state.patch == _TEXT)

        def choice() -> jax.Array:
            logits = self.model.decoder.logits(self._conditional(hidden)[0])
            return choose(logits, keys, plan.text, self.numbers.text)

        # While every request generates an image, no logits of a whole vocabulary are computed.
        token = jax.lax.cond(jnp.any(texting), choice, lambda: jnp.zeros(keys.shape, jnp.int32))
        wants = texting & (token == self.ids.image_start)
        ends = texting & jnp.isin(token, self.ids.stops)
        forced = texting & ~wants & (ends | (done.text_tokens >= plan.tokens)) & self._lacks_image(done)
        begins = (wants & (done.images < plan.images)) | forced
        stops = (wants | ends) & ~begins
        return _Chosen(token, texting & ~begins & ~stops, stops, begins, forced)

    def _lacks_image(self, done: Decoded) -> jax.Array:
        return self.plan.require_image & (done.images == 0)

    def _live_rows(self, live: jax.Array, is_text: jax.Array) -> jax.Array:
        """The rows that process the next input, [R]; unconditional rows process no text, as in training."""
        if self.plan.rows_per_request == 1:
            return live
        return jnp.stack([live, live & ~is_text], axis=1).reshape(-1)

    def _conditional(self, hidden_RD: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """The states of the requests' conditional and unconditional rows, [B, D] each."""
        if self.plan.rows_per_request == 1:
            return hidden_RD, None
        pairs = hidden_RD.reshape(-1, 2, hidden_RD.shape[-1])
        return pairs[:, 0], pairs[:, 1]

    def _visual_token(
        self, keys: jax.Array, patch: jax.Array, visual: jax.Array, context: Context
    ) -> tuple[jax.Array, jax.Array]:
        """The next visual token of each request, and the embedding that is fed back; zeros where no request has one."""

        def token() -> tuple[jax.Array, jax.Array]:
            predicted = self._predict(keys, patch, context.hidden)
            return predicted, self.model.feed_back(predicted, patch)

        def zeros() -> tuple[jax.Array, jax.Array]:
            predicted, fed_back = jax.eval_shape(token)
            return jnp.zeros(predicted.shape, predicted.dtype), jnp.zeros(fed_back.shape, fed_back.dtype)

        return jax.lax.cond(jnp.any(visual), token, zeros)

    def _predict(self, keys: jax.Array, patch: jax.Array, hidden_RD: jax.Array) -> jax.Array:
        """An embedding [B, F], a code [B] or a latent [B, F], by classifier-free guidance (arXiv 2207.12598)."""
        model = self.model
        conditional, unconditional = self._conditional(hidden_RD)

        def guided(predict: Callable[[jax.Array], jax.Array]) -> jax.Array:
            if unconditional is None:
                return predict(conditional)
            base = predict(unconditional)
            return base + self.numbers.guidance * (predict(conditional) - base)

        if model.generation == "semantic":
            return guided(model.predict_semantics)
        if model.generation == "codes":
            return choose(guided(model.code_logits), keys, self.plan.codes, self.numbers.codes)

        def sampled(
            hidden: jax.Array, without: jax.Array | None = None, scale: float | jax.Array | None = None
        ) -> jax.Array:
            null = None if without is None else without[:, None]
            latents = model.sample_latents(
                hidden[:, None], keys, first=patch[:, None], unconditional=null, guidance=scale
            )
            return latents[:, 0]

        if not isinstance(model.pixel_head, DiffusionHead):
            return guided(sampled)
        scale = {"none": 1.0, "configured": None}.get(self.plan.guidance, self.numbers.guidance)
        return sampled(conditional, unconditional, scale)

    def _empty(self, limit: int, context: Context) -> Decoded:
        """Nothing decoded yet."""
        plan, rows = self.plan, self.keys_B.shape[0]
        size = plan.images, self.model.target_tokens
        zeros = jnp.zeros(rows, jnp.int32)
        predicted = jnp.zeros((rows, *size))
        if plan.images:
            one = jax.eval_shape(lambda: self._predict(self.keys_B, zeros, context.hidden))
            predicted = jnp.zeros((rows, *size, *one.shape[1:]), one.dtype)
        hidden = jnp.zeros((rows, *size, context.hidden.shape[-1]), context.hidden.dtype)
        forced = jnp.zeros((rows, plan.images), bool)
        return Decoded(jnp.zeros((rows, limit), jnp.int32), zeros, zeros - 1, zeros, zeros, forced, predicted, hidden)


def _store(done: Decoded, predicted: jax.Array, hidden_BD: jax.Array, patch: jax.Array, visual: jax.Array) -> Decoded:
    """Store a visual token of the image that each request is at."""
    rows = jnp.arange(visual.shape[0])
    # An index behind the last image is dropped.
    where = rows, jnp.where(visual, done.images - 1, done.predicted.shape[1]), patch
    return done._replace(
        predicted=done.predicted.at[where].set(predicted, mode="drop"),
        hidden=done.hidden.at[where].set(hidden_BD, mode="drop"),
    )
