"""Decoding that ends with a text: a batch a few slots at a time, and its texts looked at in between.

B requests, L most slots that are decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from unihetero_jax.generate.decode import Decoded, Ids, Numbers, Plan, Progress
from unihetero_jax.generate.requests import pieces
from unihetero_jax.model.vision import Batch
from unihetero_jax.parallel.definition import Params
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

# Slots between two looks: each look waits for the device, and what comes behind a stop text is made for nothing.
_SLOTS = 8
# What a character reads as while some of its bytes are still to come.
_UNFINISHED = "\ufffd"


def is_decided(text: str, stops: Sequence[str]) -> bool:
    """Whether a text has a stop text, and is cut at the same place whatever follows.

    It is not if a longer stop text may have begun before the one that was found.
    """
    text = text.rstrip(_UNFINISHED)
    first = min((text.find(stop) for stop in stops if stop in text), default=-1)
    return first >= 0 and not any(stop.startswith(text[place:]) for place in range(first) for stop in stops)


def ends_at(stops: Sequence[str], coder: Tokenizer, picture: int) -> Callable[[list[int]], bool]:
    """Whether ids have a text that is decided, of a tokenizer; a picture takes ``picture`` slots and its markers."""

    def has_ended(ids: list[int]) -> bool:
        runs = pieces(ids, coder.image_start_id, picture)
        return any(is_decided(coder.decode(run), stops) for run in runs if run is not None)

    return has_ended


def decode_until(
    programs: Mapping[str, Callable[..., Progress]],
    params: Params,
    batch: Batch,
    requests_B2: np.ndarray,
    plan: Plan,
    numbers: Numbers,
    ids: Ids,
    seed: np.uint32,
    count: int,
    is_enough: Callable[[list[int]], bool],
) -> Decoded:
    """``decode``, but that requests end when they may; what they have said by then is what they would have said.

    Args:
      programs: ``begin`` and ``go_on``.
      params: of the model.
      batch: prompts, made by ``left_pad``.
      requests_B2: digest and seed of each.
      plan: what is compiled in.
      numbers: what is not.
      ids: what the tokenizer calls things.
      seed: of everything random.
      count: requests; the rows behind them are padding.
      is_enough: whether what a request has said, ids [≤ L], is all that is wanted of it.
    """
    progress = programs["begin"](params, batch, requests_B2, plan, numbers, seed)
    stopped = np.arange(len(requests_B2)) >= count
    limit = progress.done.ids.shape[1]
    for until in range(_SLOTS, limit + _SLOTS, _SLOTS):
        progress = programs["go_on"](params, progress, requests_B2, plan, numbers, ids, seed, stopped, np.int32(until))
        said, length, running = jax.device_get((progress.done.ids, progress.done.length, progress.running))
        for row in np.flatnonzero(running):
            stopped[row] = is_enough(said[row, : length[row]].tolist())
        if not (running & ~stopped).any():
            break
    return progress.done
