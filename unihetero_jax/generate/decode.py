"""Cached decoding, greedy, of text and of visual embeddings: pure functions of a model and a batch of prompts.

B rows, T slots of a prompt, S slots of the cache, N visual tokens an image, D width, F size of a semantic prediction.

Prompts are padded on the left, so that the last slot of every row predicts what comes first. What is decoded goes to
the same cache slot in every row, whether or not the row has ended: the slots of ended rows are marked unreadable, and
positions count only what a row really holds. So rows of different lengths share one program, and no row sees another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from unihetero_jax.model.attention import packed_causal_mask
from unihetero_jax.model.decoder import Cache
from unihetero_jax.model.unified import UnifiedModel
from unihetero_jax.model.vision import INPUT, Batch

PromptBatch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Prompt:
    """One row of input, at most one image in it.

    ``tokens`` and ``patch`` [n] int32: as in a packed batch, ``patch`` is −1 on text. ``image`` [H, W, 3] uint8.
    ``role``: of the image, as in a packed batch.
    """

    tokens: np.ndarray
    patch: np.ndarray
    image: np.ndarray | None
    role: int = INPUT

    def __len__(self) -> int:
        return len(self.tokens)


def left_pad(prompts: Sequence[Prompt], rows: int, slots: int, image_size: int) -> PromptBatch:
    """Prompts as the arrays of a batch, each at the right end of its row; the rows that are left over repeat the last.

    Args:
      prompts: at least one, at most ``rows``.
      rows: B.
      slots: T, at least the length of the longest prompt.
      image_size: pixels a side.

    Returns:
      ``tokens``, ``segment`` (0 on padding), ``position``, ``image``, ``patch`` [B, T] int32 and ``images``
      [B, 1, H, W, 3] uint8 and ``role`` [B, 1] int8, as in a packed batch.
    """
    batch: PromptBatch = {
        "tokens": np.zeros((rows, slots), np.int32),
        "segment": np.zeros((rows, slots), np.int32),
        "position": np.zeros((rows, slots), np.int32),
        "image": np.full((rows, slots), -1, np.int32),
        "patch": np.full((rows, slots), -1, np.int32),
        "images": np.zeros((rows, 1, image_size, image_size, 3), np.uint8),
        "role": np.zeros((rows, 1), np.int8),
    }
    for row in range(rows):
        prompt = prompts[min(row, len(prompts) - 1)]
        here = np.s_[row, slots - len(prompt) :]
        batch["tokens"][here] = prompt.tokens
        batch["segment"][here] = 1
        batch["position"][here] = np.arange(len(prompt))
        batch["image"][here] = np.where(prompt.patch < 0, -1, 0)
        batch["patch"][here] = prompt.patch
        if prompt.image is not None:
            batch["images"][row, 0] = prompt.image
            batch["role"][row, 0] = prompt.role
    return batch


class Context(NamedTuple):
    """What has been read so far.

    ``cache``: keys and values. ``readable`` [B, S] bool: slots that hold something of the row. ``position`` [B] int32:
    of the row's next input. ``hidden`` [B, D]: the state that predicts it.
    """

    cache: Cache
    readable: jax.Array
    position: jax.Array
    hidden: jax.Array


class Written(NamedTuple):
    """Decoded text.

    ``tokens`` [B, limit] int32, of which the first ``length`` [B] count; ``stop`` [B] is the id that ended the row, −1
    where the limit did.
    """

    tokens: jax.Array
    length: jax.Array
    stop: jax.Array


class Imagined(NamedTuple):
    """Visual tokens decoded without the true ones.

    ``semantics`` [B, N, F]: the predictions. ``hidden`` [B, N, D]: the states that made them.
    """

    semantics: jax.Array
    hidden: jax.Array


def prefill(model: UnifiedModel, prompts: Batch, room: int, mesh: Mesh | None = None) -> Context:
    """Reads prompts into a new cache.

    Args:
      model: the model.
      prompts: a batch made by ``left_pad``.
      room: cache slots to keep free for what is decoded.
      mesh: where activations are constrained to.
    """
    x_BTD = model.inputs(prompts, model.see(prompts, mesh=mesh))
    rows, slots = prompts["tokens"].shape
    # Padding is a segment of its own: it reads itself, which is never read, instead of nothing, which is no number.
    mask_BTS = jnp.pad(packed_causal_mask(prompts["segment"]), ((0, 0), (0, 0), (0, room)))
    cache = model.decoder.empty_cache(rows, slots + room)
    hidden_BTD, filled = model.decoder(x_BTD, prompts["position"], mask_BTS, cache=cache, mesh=mesh)
    assert filled is not None
    readable = jnp.pad(prompts["segment"] > 0, ((0, 0), (0, room)))
    return Context(filled, readable, prompts["position"][:, -1] + 1, hidden_BTD[:, -1])


def advance(
    model: UnifiedModel,
    context: Context,
    x_BD: Float[Array, "B D"],
    slot: Int[Array, ""],
    live: jax.Array,
    mesh: Mesh | None = None,
) -> Context:
    """Reads one more input a row.

    Args:
      model: the model.
      context: what came before.
      x_BD: input embeddings.
      slot: the cache slot that they take in every row.
      live: [B] bool, the rows that go on; the others stay as they are.
      mesh: where activations are constrained to.
    """
    dtype = jnp.dtype(model.decoder.config.dtype)
    readable = jax.lax.dynamic_update_slice_in_dim(context.readable, live[:, None], slot, axis=1)
    hidden_BTD, filled = model.decoder(
        x_BD[:, None].astype(dtype),
        context.position[:, None],
        readable[:, None],
        cache=context.cache,
        start=slot,
        mesh=mesh,
    )
    assert filled is not None
    hidden = jnp.where(live[:, None], hidden_BTD[:, 0], context.hidden)
    return Context(filled, readable, context.position + live, hidden)


def write_text(
    model: UnifiedModel, context: Context, slot: int, limit: int, stops: Int[Array, " stops"], mesh: Mesh | None = None
) -> tuple[Written, Context]:
    """Decodes the likeliest token, again and again, until every row has stopped or reached the limit.

    Args:
      model: the model.
      context: of the prompts.
      slot: the first free cache slot; ``limit`` slots are taken.
      limit: most tokens a row.
      stops: ids that end a row; they are neither kept nor read.
      mesh: where activations are constrained to.
    """
    rows = context.position.shape[0]

    def unfinished(carry: tuple[jax.Array, Written, Context]) -> jax.Array:
        number, written, _ = carry
        return (number < limit) & jnp.any(written.stop < 0)

    def step(carry: tuple[jax.Array, Written, Context]) -> tuple[jax.Array, Written, Context]:
        number, written, context = carry
        token = jnp.argmax(model.decoder.logits(context.hidden), axis=-1).astype(jnp.int32)
        running = written.stop < 0
        stop = jnp.where(running & jnp.isin(token, stops), token, written.stop)
        live = stop < 0
        tokens = jax.lax.dynamic_update_slice_in_dim(written.tokens, jnp.where(live, token, 0)[:, None], number, axis=1)
        context = advance(model, context, model.decoder.embed(token), slot + number, live, mesh)
        return number + 1, Written(tokens, written.length + live, stop), context

    nothing = Written(jnp.zeros((rows, limit), jnp.int32), jnp.zeros(rows, jnp.int32), jnp.full(rows, -1, jnp.int32))
    _, written, context = jax.lax.while_loop(unfinished, step, (jnp.int32(0), nothing, context))
    return written, context


def imagine(
    model: UnifiedModel, context: Context, slot: int, image_start: jax.Array, mesh: Mesh | None = None
) -> Imagined:
    """Decodes an image in every row: the start marker, then each prediction fed back as if it were the true embedding.

    Args:
      model: a model with a semantic head.
      context: of prompt and text, without the start marker.
      slot: the first free cache slot; 1 + N slots are taken.
      image_start: the marker's id, [].
      mesh: where activations are constrained to.
    """
    everyone = jnp.ones(context.position.shape, bool)
    marker = model.decoder.embed(jnp.broadcast_to(image_start, context.position.shape))
    context = advance(model, context, marker, jnp.int32(slot), everyone, mesh)

    def step(context: Context, patch: jax.Array) -> tuple[Context, tuple[jax.Array, jax.Array]]:
        prediction = model.predict_semantics(context.hidden)
        x_BD = model.feed_back(prediction, patch)
        return advance(model, context, x_BD, slot + 1 + patch, everyone, mesh), (prediction, context.hidden)

    _, (semantics_NBF, hidden_NBD) = jax.lax.scan(step, context, jnp.arange(model.target_tokens))
    return Imagined(semantics_NBF.swapaxes(0, 1), hidden_NBD.swapaxes(0, 1))
