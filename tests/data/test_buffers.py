"""Memory that is used again, by one thread and for one picture at a time."""

from __future__ import annotations

import threading

import numpy as np
from pictures import encoded

from unihetero_jax.data.records.images import Scratch, decode


def test_threads_share_nothing():
    scratch, found = Scratch(), []

    def work():
        found.append(scratch.take(100))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    assert len({array.ctypes.data for array in found}) == 3


def test_scratch_grows_and_what_is_huge_is_not_kept():
    scratch = Scratch()
    small = scratch.take(10)
    assert scratch.take(5) is small
    assert len(scratch.take(1000)) == 1000
    huge = scratch.take(65 << 20)
    assert len(huge) == 65 << 20
    assert len(scratch.take(10)) == 1000


def test_a_picture_stays_as_it_is_while_others_are_decoded():
    made = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    files = [encoded(pixels, kind) for pixels in made for kind in ("JPEG", "PNG")]
    alone = [decode(data, 16).copy() for data in files]
    together = [decode(data, 16) for data in files]
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(found, expected)
