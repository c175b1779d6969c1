"""A tokenizer that a person can read: one token a word, and numbers stand for themselves."""

from __future__ import annotations

import io
import types

import numpy as np
from PIL import Image

from unihetero_jax.data.packing.packed_batch import SLOT_ARRAYS


class WordCoder:
    """``n7`` becomes 1007; any other word becomes 100 + its length."""

    begin_id, end_id, user_id, assistant_id, image_start_id, image_end_id, image_pad_id = 1, 2, 3, 4, 5, 6, 7

    def encode(self, text: str) -> list[int]:
        return [1000 + int(word[1:]) if word[1:].isdecimal() else 100 + len(word) for word in text.split()]


def picture(shade: int, side: int = 4) -> bytes:
    """A PNG of one grey shade."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), shade, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def arrays_of(slots) -> types.SimpleNamespace:
    """The arrays that a sample writes into an empty row as long as itself; its images, roles and features."""
    row = {name: np.full(len(slots), padding, dtype) for name, (padding, dtype) in SLOT_ARRAYS.items()}
    slots.write(row, 0, 0)
    return types.SimpleNamespace(**row, images=slots.images, roles=slots.roles, features=slots.features)
