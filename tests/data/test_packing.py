"""Rows: what is in every array, which samples go where, and that none is lost."""

from __future__ import annotations

import random
from array import array

import numpy as np
import pytest

from unihetero_jax.data.packing.packed_batch import RowShape, pack
from unihetero_jax.data.packing.row_stream import RowStream, initial_state, stream_state
from unihetero_jax.data.packing.slots import Role, Slots
from unihetero_jax.data.records.invalid import SKIP_REASONS, InvalidRecord

SHAPE = RowShape(slots=10, images=3, image_size=2)


def sample(number: int, length: int, images: int = 0) -> Slots:
    """A sample of text ``number``; each image takes two slots at its end, and its pixels are ``number`` + its index."""
    text = length - 2 * images
    return Slots(
        tokens=array("i", [number] * text + [7] * (2 * images)),
        learned=[(0, text)],
        visual=[(text + 2 * index, text + 2 * index + 2, Role.TARGET) for index in range(images)],
        images=tuple(np.full((2, 2, 3), number + index, np.uint8) for index in range(images)),
    )


def each(fetch):
    """Fetches samples one by one, or the reasons why they cannot be."""

    def one(count: int) -> Slots | InvalidRecord:
        try:
            return fetch(count)
        except InvalidRecord as error:
            return error

    return lambda counts: [one(count) for count in counts]


def stream(lengths, window=4, **state) -> RowStream:
    """A stream whose n-th sample has the n-th length and number 100 + n; None is a bad record."""

    def fetch(count: int) -> Slots:
        length = lengths[count % len(lengths)]
        if length is None:
            raise InvalidRecord("undecodable", f"no {count}")
        return sample(100 + count, length)

    return RowStream(SHAPE, window, each(fetch), lambda count, error: None, **state)


def numbers(row) -> list[int]:
    return [int(made.tokens[0]) - 100 for made in row]


def test_every_array_of_a_batch():
    batch = pack([[sample(101, 3), sample(102, 6, images=2)], [sample(103, 4, images=1)]], SHAPE)
    none = [-1] * 10
    expected = {
        "tokens": [[101, 101, 101, 102, 102, 7, 7, 7, 7, 0], [103, 103, 7, 7, 0, 0, 0, 0, 0, 0]],
        "segment": [[1, 1, 1, 2, 2, 2, 2, 2, 2, 0], [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]],
        "position": [[0, 1, 2, 0, 1, 2, 3, 4, 5, 0], [0, 1, 2, 3, 0, 0, 0, 0, 0, 0]],
        "image": [[*none[:5], 0, 0, 1, 1, -1], [-1, -1, 0, 0, *none[:6]]],
        "patch": [[*none[:5], 0, 1, 0, 1, -1], [-1, -1, 0, 1, *none[:6]]],
        "text_weight": [[1, 1, 1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]],
        "visual_weight": [[0, 0, 0, 0, 0, 1.0, 1.0, 1.0, 1.0, 0], [0, 0, 1.0, 1.0, 0, 0, 0, 0, 0, 0]],
        "role": [[2, 2, 0], [2, 0, 0]],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(batch[name], values, err_msg=name)
    np.testing.assert_array_equal(batch["images"][:, :, 0, 0, 0], [[102, 103, 0], [103, 0, 0]])
    assert batch["images"].shape == (2, 3, 2, 2, 3)
    assert batch.keys() == {*expected, "images"}
    types = {name: array.dtype for name, array in batch.items()}
    assert types == {
        **dict.fromkeys(("tokens", "segment", "position", "image", "patch"), np.int32),
        **dict.fromkeys(("text_weight", "visual_weight"), np.float32),
        "images": np.uint8,
        "role": np.int8,
    }


def test_images_of_a_later_sample_are_numbered_after_those_before():
    batch = pack([[sample(101, 4, images=2), sample(102, 4, images=1)]], SHAPE)
    assert batch["image"][0].tolist() == [0, 0, 1, 1, -1, -1, 2, 2, -1, -1]
    assert batch["images"][0, :, 0, 0, 0].tolist() == [101, 102, 102]


def test_first_fit_takes_what_fits_and_keeps_the_rest_in_order():
    rows = stream([6, 5, 3, 9, 1, 4, 2, 8])
    assert numbers(rows.next_row()) == [0, 2, 4]  # 6 + 3 + 1; 1 and 3 wait
    assert rows.pending == [1, 3]
    assert numbers(rows.next_row()) == [1, 5]  # 5, then 4; one slot is left: 6, 7 and those that follow wait
    assert rows.pending[:3] == [3, 6, 7]
    assert numbers(rows.next_row())[0] == 3, "the oldest that waits goes first"


@pytest.mark.parametrize(
    ("lengths", "row", "pending"),
    [
        ([6, 3, 4, 2, 2, 2], [0, 2], [1, 3, 4, 5]),  # 4 for 3
        ([2, 7, 4, 4, 9, 9], [0, 2, 3], [1, 4, 5]),  # 4 + 4 for 7
        ([4, 3, 4, 2, 9, 9, 9], [0, 2, 3], [1, 4, 5, 6]),  # 4 for 3, in the order that they were drawn
        ([6, 3, 5, 5, 5, 5], [0, 1], [2, 3, 4, 5]),  # nothing fits better
        ([8, 9, 9, 9, 9], [0], [1, 2, 3, 4]),  # and the first is not given away
    ],
)
def test_what_waits_takes_the_place_of_what_fills_less(lengths, row, pending):
    rows = stream([*lengths, 10])
    assert numbers(rows.next_row()) == row
    assert rows.pending[: len(pending)] == pending


def test_an_exchange_keeps_to_the_images_of_a_row():
    made = {0: (4, 1), 1: (4, 1), 2: (6, 3), 3: (5, 2), 4: (9, 1), 5: (9, 1)}
    rows = RowStream(SHAPE, 4, each(lambda count: sample(100 + count, *made[count])), lambda count, error: None)
    assert numbers(rows.next_row()) == [0, 3], "the one of six slots would fill the row, but has too many images"


@pytest.mark.parametrize(("visual_tokens", "least"), [(256, 0.98), (576, 0.97)])
def test_rows_of_pictures_and_words_are_full(visual_tokens, least):
    chance = random.Random(0)
    lengths = [visual_tokens + chance.choice([chance.randint(40, 300), chance.randint(200, 500)]) for _ in range(1000)]
    shape = RowShape(slots=4096, images=1, image_size=1)
    rows = RowStream(shape, 8, each(lambda count: sample(count, lengths[count])), lambda count, error: None)
    used = [sum(map(len, rows.next_row())) for _ in range(80)]
    assert sum(used) / 80 / 4096 > least


def test_the_oldest_never_waits_for_a_second_row():
    chance = random.Random(3)
    lengths = [chance.choice([3, 3, 7, 8]) for _ in range(400)]
    rows = stream(lengths, 8)
    for _ in range(100):
        oldest = rows.pending[:1]
        assert numbers(rows.next_row())[:1] == oldest or not oldest


@pytest.mark.parametrize("window", [1, 2, 5])
def test_the_window_is_bounded_and_every_row_has_a_sample(window):
    lengths = [random.Random(0).randint(1, 10) for _ in range(50)]
    rows = stream(lengths, window)
    for _ in range(200):
        row = rows.next_row()
        assert row
        assert sum(map(len, row)) <= SHAPE.slots
        assert len(rows.pending) <= window


def test_images_are_a_limit_too():
    rows = RowStream(SHAPE, 2, each(lambda count: sample(100 + count, 5, images=2)), lambda count, error: None)
    assert numbers(rows.next_row()) == [0]
    assert numbers(rows.next_row()) == [1]


def test_nothing_is_lost_or_repeated_however_often_it_is_restored():
    chance = random.Random(1)
    lengths = [chance.randint(1, 10) if chance.random() > 0.1 else None for _ in range(997)]
    rows, whole = stream(lengths), stream(lengths)
    delivered: list[int] = []
    for _ in range(300):
        row, expected = rows.next_row(), whole.next_row()
        assert numbers(row) == numbers(expected)
        delivered += numbers(row)
        if chance.random() < 0.3:
            state = stream_state([rows])
            rows = stream(
                lengths,
                drawn=int(state["drawn"][0]),
                pending=[int(count) for count in state["pending"][0] if count >= 0],
                skipped=state["skipped"][0].tolist(),
            )
    readable = [count for count in range(rows.drawn) if lengths[count % len(lengths)] is not None]
    assert sorted(delivered + rows.pending) == readable
    assert rows.skipped == whole.skipped
    assert sum(rows.skipped) == rows.drawn - len(readable) > 0


def test_bad_records_are_counted_by_reason_and_keep_their_turn():
    noted = []
    reasons = {1: "unreadable", 2: "undecodable", 5: "invalid"}

    def fetch(count: int) -> Slots:
        if count in reasons:
            raise InvalidRecord(reasons[count], f"no {count}")
        return sample(100 + count, 11 if count == 3 else 5)

    rows = RowStream(SHAPE, 2, each(fetch), lambda count, error: noted.append((count, error.reason)))
    assert numbers(rows.next_row()) == [0, 4]
    assert numbers(rows.next_row()) == [6, 7]
    assert noted == [(1, "unreadable"), (2, "undecodable"), (3, "too_long"), (5, "invalid")]
    counts = dict(zip(SKIP_REASONS, rows.skipped, strict=True))
    assert counts == {**dict.fromkeys(SKIP_REASONS, 0), **dict.fromkeys([*reasons.values(), "too_long"], 1)}


def test_a_state_from_before_a_reason_was_known_goes_on():
    def fetch(count: int) -> Slots:
        if count == 0:
            raise InvalidRecord(SKIP_REASONS[-1], "new")
        return sample(count, 5)

    rows = RowStream(SHAPE, 2, each(fetch), lambda count, error: None, skipped=[3, 2, 1, 0])
    rows.next_row()
    assert rows.skipped == [3, 2, 1, 0, *[0] * (len(SKIP_REASONS) - 5), 1]
    assert stream_state([rows])["skipped"].shape == (1, len(SKIP_REASONS))


def test_too_many_images_for_a_row_is_too_long():
    skipped = []
    rows = RowStream(
        SHAPE,
        2,
        each(lambda count: sample(100 + count, 10, images=4 if count == 0 else 1)),
        lambda count, error: skipped.append(str(error)),
    )
    assert numbers(rows.next_row()) == [1]
    assert skipped == ["10 slots and 4 images do not fit a row of 10 slots and 3 images"]


def test_the_state_is_a_few_integers_a_row():
    state = initial_state(3, 4)
    assert {name: (array.shape, array.dtype) for name, array in state.items()} == {
        "drawn": ((3,), np.int32),
        "pending": ((3, 4), np.int32),
        "skipped": ((3, len(SKIP_REASONS)), np.int32),
    }
    rows = stream([6, 5, 3, 9, 1, 4, 2, 8])
    rows.next_row()
    after = stream_state([rows, rows])
    assert after["drawn"].tolist() == [rows.drawn] * 2
    assert after["pending"].tolist() == [[1, 3, -1, -1]] * 2
    assert {name: (array.shape[1:], array.dtype) for name, array in after.items()} == {
        name: (array.shape[1:], array.dtype) for name, array in state.items()
    }


@pytest.mark.parametrize("group", [2, 7, 50])
def test_fetching_together_changes_nothing(group):
    lengths = [5, 3, None, 9, 1, 7, None, 2, 4]
    one, many = stream(lengths), stream(lengths, group=group)
    for _ in range(20):
        assert numbers(many.next_row()) == numbers(one.next_row())
        assert (many.drawn, many.pending, many.skipped) == (one.drawn, one.pending, one.skipped)
    state = {"drawn": one.drawn, "pending": list(one.pending), "skipped": list(one.skipped)}
    again = stream(lengths, group=group, **state)
    for _ in range(5):
        assert numbers(again.next_row()) == numbers(one.next_row())
