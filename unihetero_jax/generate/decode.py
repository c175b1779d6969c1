"""Cached decoding of text and pictures: pure functions of a model and a batch of prompts.

B requests, R rows (B, or 2·B with guidance), T slots of a prompt, S slots of the cache, N visual tokens of a picture,
I pictures a request, D width, F size of what is drawn for a token, L most slots that are decoded.

Prompts are padded on the left, so that the last slot of every row predicts what comes first. What is decoded goes to
the same cache slot in every row, whatever it is and whether or not the row has ended: the slots of ended rows are
marked unreadable, and positions count only what a row really holds. So rows of different lengths and in different
states, one writing and one drawing, share one program, and no row sees another.
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
from unihetero_jax.generate.sampling import Rule
from unihetero_jax.model.attention.base import packed_causal_mask
from unihetero_jax.model.decoder import Cache
from unihetero_jax.model.diffusion.head import DiffusionHead
from unihetero_jax.model.unified import UnifiedModel
from unihetero_jax.model.vision import Batch

_WRITING = -1  # in place of the number of the visual token that is drawn next


@dataclass(frozen=True)
class Plan:
    """What decides which program is compiled.

    ``tokens``: most text tokens a request. ``images``: most pictures, I. ``must_draw``: a request that would end
    without a picture draws one. ``ends_with_image``: it ends with its last picture. ``text``, ``codes``: how tokens and
    codes are chosen. ``guidance``: ``none``; ``head``, by the diffusion head's own null condition; ``rows``, where
    every prompt is followed by one that leaves out what guidance is to lead towards; or ``configured``, as the
    diffusion head is.
    """

    tokens: int
    images: int
    must_draw: bool
    ends_with_image: bool
    text: Rule
    codes: Rule
    guidance: str

    @property
    def ways(self) -> int:
        """Rows a request, R / B."""
        return 2 if self.guidance == "rows" else 1


class Numbers(NamedTuple):
    """What may change without compiling: temperature and top-p, [2], of text and codes; the scale of guidance, []."""

    text: jax.Array
    codes: jax.Array
    guidance: jax.Array


class Ids(NamedTuple):
    """Token ids: of what ends a request, [stops]; of a picture's start, slots and end, []."""

    stops: jax.Array
    image_start: jax.Array
    image_pad: jax.Array
    image_end: jax.Array


class Context(NamedTuple):
    """What has been read so far.

    ``cache``: keys and values. ``readable`` [R, S] bool: slots that hold something of the row. ``position`` [R] int32:
    of the row's next input. ``hidden`` [R, D]: the state that predicts it.
    """

    cache: Cache
    readable: jax.Array
    position: jax.Array
    hidden: jax.Array


class Decoded(NamedTuple):
    """What was decoded.

    ``ids`` [B, L] int32: of text, and of a picture's start, slots and end; the first ``length`` [B] count. ``stop`` [B]
    is the id that ended the request (the picture's start, where it would have drawn one too many), −1 where something
    else did. ``written`` and ``images`` [B]: text tokens and pictures. ``forced`` [B, I] bool: pictures that were not
    asked for. ``drawn`` [B, I, N, F] float32 or, of codes, [B, I, N] int32. ``hidden`` [B, I, N, D]: the states that
    predicted them.
    """

    ids: jax.Array
    length: jax.Array
    stop: jax.Array
    written: jax.Array
    images: jax.Array
    forced: jax.Array
    drawn: jax.Array
    hidden: jax.Array


class _State(NamedTuple):
    """Where each request is: ``running`` [B] bool; ``patch`` [B], the visual token that it draws next.

    ``patch`` is N where the end marker comes next, and −1 where a token of text is to be chosen.
    """

    running: jax.Array
    patch: jax.Array


class _Taken(NamedTuple):
    """What requests that write do, [B] each: the token chosen; whether it is said, ends the request, begins a picture.

    ``forced``: one begins because it must.
    """

    token: jax.Array
    says: jax.Array
    stops: jax.Array
    begins: jax.Array
    forced: jax.Array


class Progress(NamedTuple):
    """How far a batch is: ``number`` [] int32 of slots, where each request is, what was decoded, what has been read."""

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


def prefill(model: UnifiedModel, prompts: Batch, room: int, mesh: Mesh | None = None) -> Context:
    """Reads prompts into a new cache.

    Args:
      model: the model.
      prompts: a batch made by ``left_pad``.
      room: cache slots to keep free for what is decoded.
      mesh: where activations are constrained to.
    """
    x_RTD = model.inputs(prompts, model.encode(prompts, mesh=mesh))
    rows, slots = prompts["tokens"].shape
    # Padding is a segment of its own: it reads itself, which is never read, instead of nothing, which is no number.
    mask_RTS = jnp.pad(packed_causal_mask(prompts["segment"]), ((0, 0), (0, 0), (0, room)))
    cache = model.decoder.empty_cache(rows, slots + room)
    hidden_RTD, filled = model.decoder(x_RTD, prompts["position"], mask_RTS, cache=cache, mesh=mesh)
    assert filled is not None
    readable = jnp.pad(prompts["segment"] > 0, ((0, 0), (0, room)))
    return Context(filled, readable, prompts["position"][:, -1] + 1, hidden_RTD[:, -1])


def advance(
    model: UnifiedModel,
    context: Context,
    x_RD: Float[Array, "R D"],
    slot: Int[Array, ""],
    live: jax.Array,
    mesh: Mesh | None = None,
) -> Context:
    """Reads one more input a row.

    Args:
      model: the model.
      context: what came before.
      x_RD: input embeddings.
      slot: the cache slot that they take in every row.
      live: [R] bool, the rows that go on; the others stay as they are.
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


def decode(
    model: UnifiedModel,
    prompts: Batch,
    keys_B: jax.Array,
    plan: Plan,
    numbers: Numbers,
    ids: Ids,
    mesh: Mesh | None = None,
) -> Decoded:
    """Goes on with every prompt: text, and pictures where the model begins one, until all have ended.

    A request that writes chooses a token each time. One that is the picture's start is followed by the picture, one
    visual token after another, each predicted from the ones before and read as if it were true; then comes the end
    marker, and the request goes on writing.

    Args:
      model: the model; ``plan.images`` is 0 for one that does not draw.
      prompts: a batch made by ``left_pad``, of R rows; with ``plan.guidance='rows'`` each request's two rows together.
      keys_B: a random key a request. What is drawn by chance for its i-th slot depends on its key and i alone.
      plan: what is compiled in.
      numbers: what is not.
      ids: what the tokenizer calls things.
      mesh: where activations are constrained to.
    """
    progress = begin(model, prompts, keys_B, plan, numbers, mesh)
    return go_on(model, progress, keys_B, plan, numbers, ids, mesh=mesh).done


def begin(
    model: UnifiedModel, prompts: Batch, keys_B: jax.Array, plan: Plan, numbers: Numbers, mesh: Mesh | None = None
) -> Progress:
    """``decode``, which see, before its first slot."""
    rows, limit = keys_B.shape[0], plan.tokens + plan.images * (model.target_tokens + 2)
    context = prefill(model, prompts, limit, mesh)
    state = _State(jnp.ones(rows, bool), jnp.full(rows, _WRITING, jnp.int32))
    return Progress(jnp.int32(0), state, _nothing(model, plan, numbers, keys_B, limit, context), context)


def go_on(
    model: UnifiedModel,
    progress: Progress,
    keys_B: jax.Array,
    plan: Plan,
    numbers: Numbers,
    ids: Ids,
    until: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> Progress:
    """``decode``, which see, up to slot ``until``, or to the end; what comes of several parts is what comes of one."""
    rows, limit = progress.done.ids.shape
    start = progress.context.readable.shape[1] - limit
    end = limit if until is None else jnp.minimum(until, limit)

    def unfinished(progress: Progress) -> jax.Array:
        return (progress.number < end) & jnp.any(progress.running)

    def step(progress: Progress) -> Progress:
        number, state, done, context = progress
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)
        taken = _choose_token(model, plan, numbers, ids, keys, state, done, context)
        closing = state.running & (state.patch == model.target_tokens)
        slot_id = jnp.where(taken.begins, ids.image_start, jnp.where(closing, ids.image_end, taken.token))
        x_BD = model.decoder.embed(slot_id)
        drawing = state.running & (state.patch >= 0) & ~closing
        if plan.images:
            drawn, fed_back = _draw_token(model, plan, numbers, keys, state.patch, drawing, context)
            done = _keep(done, drawn, _given(plan, context.hidden)[0], state.patch, drawing)
            x_BD = jnp.where(drawing[:, None], fed_back.astype(x_BD.dtype), x_BD)
            slot_id = jnp.where(drawing, ids.image_pad, slot_id)
        live = state.running & ~taken.stops
        image = jnp.where(taken.begins, done.images, plan.images)  # behind the last: dropped
        done = done._replace(
            ids=jax.lax.dynamic_update_slice_in_dim(done.ids, jnp.where(live, slot_id, 0)[:, None], number, axis=1),
            length=done.length + live,
            stop=jnp.where(taken.stops, taken.token, done.stop),
            written=done.written + taken.says,
            images=done.images + taken.begins,
            forced=done.forced.at[jnp.arange(rows), image].set(taken.forced, mode="drop"),
        )
        # Nobody reads what a request ends with, but each step is one program for all of them.
        both = jnp.repeat(x_BD, plan.ways, axis=0), start + number, _reading(plan, live, taken.says)
        context = advance(model, context, *both, mesh)
        patch = jnp.where(taken.begins, 0, jnp.where(drawing, state.patch + 1, _WRITING))
        ended = taken.stops | ((taken.says | closing) & (done.written >= plan.tokens) & ~_owes_picture(plan, done))
        if plan.ends_with_image:
            ended |= drawing & (patch == model.target_tokens) & (done.images >= plan.images)
        return Progress(number + 1, _State(state.running & ~ended, patch), done, context)

    return jax.lax.while_loop(unfinished, step, progress)


def _choose_token(
    model: UnifiedModel,
    plan: Plan,
    numbers: Numbers,
    ids: Ids,
    keys: jax.Array,
    state: _State,
    done: Decoded,
    context: Context,
) -> _Taken:
    writing = state.running & (state.patch == _WRITING)

    def chosen() -> jax.Array:
        return choose(model.decoder.logits(_given(plan, context.hidden)[0]), keys, plan.text, numbers.text)

    # While every request draws, nobody pays for the logits of a whole vocabulary.
    token = jax.lax.cond(jnp.any(writing), chosen, lambda: jnp.zeros(keys.shape, jnp.int32))
    wants = writing & (token == ids.image_start)
    ends = writing & jnp.isin(token, ids.stops)
    forced = writing & ~wants & (ends | (done.written >= plan.tokens)) & _owes_picture(plan, done)
    begins = (wants & (done.images < plan.images)) | forced
    stops = (wants | ends) & ~begins
    return _Taken(token, writing & ~begins & ~stops, stops, begins, forced)


def _owes_picture(plan: Plan, done: Decoded) -> jax.Array:
    return plan.must_draw & (done.images == 0)


def _reading(plan: Plan, live: jax.Array, says: jax.Array) -> jax.Array:
    """Which rows read what comes next, [R]: those that guidance leads away from read no words, as in training."""
    return live if plan.ways == 1 else jnp.stack([live, live & ~says], axis=1).reshape(-1)


def _given(plan: Plan, hidden_RD: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """The states of the requests, and of their rows that guidance leads away from, [B, D] each."""
    if plan.ways == 1:
        return hidden_RD, None
    pairs = hidden_RD.reshape(-1, 2, hidden_RD.shape[-1])
    return pairs[:, 0], pairs[:, 1]


def _draw_token(
    model: UnifiedModel,
    plan: Plan,
    numbers: Numbers,
    keys: jax.Array,
    patch: jax.Array,
    drawing: jax.Array,
    context: Context,
) -> tuple[jax.Array, jax.Array]:
    """The next visual token of each request, and the embedding that is read in its place; zeros where nobody draws."""

    def made() -> tuple[jax.Array, jax.Array]:
        drawn = _predict(model, plan, numbers, keys, patch, context.hidden)
        return drawn, model.feed_back(drawn, patch)

    def nothing() -> tuple[jax.Array, jax.Array]:
        drawn, fed_back = jax.eval_shape(made)
        return jnp.zeros(drawn.shape, drawn.dtype), jnp.zeros(fed_back.shape, fed_back.dtype)

    return jax.lax.cond(jnp.any(drawing), made, nothing)


def _predict(
    model: UnifiedModel, plan: Plan, numbers: Numbers, keys: jax.Array, patch: jax.Array, hidden_RD: jax.Array
) -> jax.Array:
    """An embedding [B, F], a code [B] or a latent [B, F], led by classifier-free guidance (arXiv 2207.12598)."""
    given, free = _given(plan, hidden_RD)

    def led(predict: Callable[[jax.Array], jax.Array]) -> jax.Array:
        if free is None:
            return predict(given)
        away = predict(free)
        return away + numbers.guidance * (predict(given) - away)

    if model.generation == "semantic":
        return led(model.predict_semantics)
    if model.generation == "codes":
        return choose(led(model.code_logits), keys, plan.codes, numbers.codes)

    def sampled(hidden: jax.Array, away: jax.Array | None = None, scale: float | jax.Array | None = None) -> jax.Array:
        unconditional = None if away is None else away[:, None]
        made = model.sample_latents(
            hidden[:, None], keys, first=patch[:, None], unconditional=unconditional, guidance=scale
        )
        return made[:, 0]

    if not isinstance(model.pixel_head, DiffusionHead):
        return led(sampled)
    scale = {"none": 1.0, "configured": None}.get(plan.guidance, numbers.guidance)
    return sampled(given, free, scale)


def _keep(done: Decoded, drawn: jax.Array, hidden_BD: jax.Array, patch: jax.Array, drawing: jax.Array) -> Decoded:
    """Puts what was drawn into the picture that each request is at."""
    rows = jnp.arange(drawing.shape[0])
    # An index behind the last picture is dropped.
    where = rows, jnp.where(drawing, done.images - 1, done.drawn.shape[1]), patch
    return done._replace(
        drawn=done.drawn.at[where].set(drawn, mode="drop"), hidden=done.hidden.at[where].set(hidden_BD, mode="drop")
    )


def _nothing(
    model: UnifiedModel, plan: Plan, numbers: Numbers, keys_B: jax.Array, limit: int, context: Context
) -> Decoded:
    rows, size = keys_B.shape[0], (plan.images, model.target_tokens)
    zeros = jnp.zeros(rows, jnp.int32)
    drawn = jnp.zeros((rows, *size))
    if plan.images:
        one = jax.eval_shape(lambda: _predict(model, plan, numbers, keys_B, zeros, context.hidden))
        drawn = jnp.zeros((rows, *size, *one.shape[1:]), one.dtype)
    hidden = jnp.zeros((rows, *size, context.hidden.shape[-1]), context.hidden.dtype)
    forced = jnp.zeros((rows, plan.images), bool)
    return Decoded(jnp.zeros((rows, limit), jnp.int32), zeros, zeros - 1, zeros, zeros, forced, drawn, hidden)
