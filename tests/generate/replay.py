"""What was generated, read again without a cache, without padding and in one pass."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from unihetero_jax.generate.requests import Prompt, left_pad

SLOTS = 128


def replay(model, prompt: Prompt, ids, drawn, marker: int) -> tuple[jax.Array, np.ndarray]:
    """The hidden state that predicts each generated slot, [len(ids) + 1, D]; image and patch of each, [len(ids), 2].

    Args:
      model: as decoding asks for it.
      prompt: what was asked.
      ids: of the generated slots.
      drawn: what was drawn for each picture, [I, N, …].
      marker: the id after which a picture's slots come.
    """
    where: list[tuple[int, int]] = []
    images = 0
    while len(where) < len(ids):
        where.append((-1, -1))
        if ids[len(where) - 1] == marker:
            where += [(images, patch) for patch in range(drawn.shape[1])]
            images += 1
    places = np.asarray(where[: len(ids)])
    later = np.array(model.decoder.embed(jnp.asarray(ids)))
    visual = places[:, 0] >= 0
    later[visual] = model.feed_back(drawn[tuple(places[visual].T)], places[visual, 1])
    return states(model, prompt, later), places


def states(model, prompt: Prompt, later) -> jax.Array:
    """Hidden states of one row without a cache, the last slot of the prompt first; ``later`` embeddings follow it."""
    # Causal, so that what follows on the right changes nothing: all rows are made equally long, and compiled once.
    count = len(prompt)
    batch = left_pad([_padded(prompt)], 1, SLOTS, max(1, len(prompt.images)), 32)
    embeddings = np.zeros((SLOTS, model.decoder.config.width), np.float32)
    if len(later):
        embeddings[count : count + len(later)] = np.stack(later)
    is_later = (np.arange(SLOTS) >= count) & (np.arange(SLOTS) < count + len(later))
    return _reader(model)(batch, embeddings, is_later)[count - 1 : count + len(later)]


@functools.cache
def _reader(model):
    def read(batch, later, is_later):
        x = jnp.where(is_later[:, None], later, model.inputs(batch, model.encode(batch)))
        causal = jnp.tril(jnp.ones((1, SLOTS, SLOTS), bool))
        return model.decoder(x, jnp.arange(SLOTS)[None], causal)[0][0]

    return jax.jit(read)


def _padded(prompt: Prompt) -> Prompt:
    room = SLOTS - len(prompt)
    tokens = np.pad(prompt.tokens, (0, room))
    image, patch = (np.pad(column, (0, room), constant_values=-1) for column in (prompt.image, prompt.patch))
    return Prompt(tokens, image, patch, prompt.images, prompt.roles)
