"""Streams of uneven records, some of them bad, for tests; worker processes import this, too."""

from __future__ import annotations

import collections
import dataclasses
import threading

import numpy as np
from coder import WordCoder, picture

from unihetero_jax.data.packing.batch_stream import BatchStream, StreamOptions
from unihetero_jax.data.packing.packed_batch import RowShape
from unihetero_jax.data.packing.rows import Recipe
from unihetero_jax.data.packing.slots import Role

CODER = WordCoder()
SHAPE = RowShape(slots=40, images=3, image_size=4)
ROWS, WINDOW = 4, 3


def record(number: int, words: int = 3, image: bool = True):
    """A record whose first word tells its number."""
    question = f"n{number} " + "word " * words + ("<image>" if image else "")
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "n0"}]
    return {"images": [picture(number % 256)] if image else [], "conversations": turns}


class Records:
    """Records by position, of uneven length; counts what is read."""

    def __init__(self, bad=None, period: int = 97):
        self.bad = bad or {}
        self.period = period
        self.read: collections.Counter[int] = collections.Counter()
        self._lock = threading.Lock()

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state):
        vars(self).update(state, _lock=threading.Lock())

    def __getitem__(self, position: int):
        with self._lock:
            self.read[position] += 1
        if position in self.bad:
            made = self.bad[position]
            if isinstance(made, Exception):
                raise made
            return made
        return record(position, words=(position * 7919) % self.period % 12, image=position % 3 != 0)


def open_stream(samples, rows=range(ROWS), **options) -> BatchStream:
    settings = {"batch_size": ROWS, "window": WINDOW, "threads": 2, "read_ahead": 2, "max_bad_records": 0, **options}
    tokens = dict.fromkeys((Role.INPUT, Role.TARGET, Role.BOTH), 4)
    return batch_stream(samples, CODER, tokens, SHAPE, rows=list(rows), **settings)


def batch_stream(samples, tokenizer, tokens_per_image, shape: RowShape, *, rows, state=None, **options) -> BatchStream:
    """A stream of these rows; each option belongs to the recipe or to how it is followed."""
    names = {field.name for field in dataclasses.fields(StreamOptions)}
    how = StreamOptions(**{name: value for name, value in options.items() if name in names})
    recipe = {name: value for name, value in options.items() if name not in names}
    return BatchStream(Recipe(samples, tokenizer, tokens_per_image, shape, **recipe), rows, how, state)


def take(samples, count: int, **options):
    """Some batches of a stream, and the state after each."""
    stream = open_stream(samples, **options)
    try:
        return [next(stream) for _ in range(count)]
    finally:
        stream.close()


def assert_same(left, right):
    for (batch, state), (other, other_state) in zip(left, right, strict=True):
        for made, expected in ((batch, other), (state, other_state)):
            assert made.keys() == expected.keys()
            for name in made:
                np.testing.assert_array_equal(made[name], expected[name], err_msg=name)
