"""Batch streams: order, restoring, sharing among processes, threads, mixtures and bad records."""

from __future__ import annotations

import collections
import logging
import re
import threading

import numpy as np
import pytest
from coder import picture
from streams import ROWS, SHAPE, WINDOW, Records, assert_same, batch_stream, open_stream, record, take

from unihetero_jax.data.mixing import Mixture, Source
from unihetero_jax.data.packing import slots
from unihetero_jax.data.packing.packed_batch import RowShape, batch_bytes
from unihetero_jax.data.packing.row_stream import initial_state
from unihetero_jax.data.packing.slots import Role
from unihetero_jax.data.records.invalid import SKIP_REASONS
from unihetero_jax.data.records.shards import Dataset
from unihetero_jax.errors import UsageError


def numbers(batch) -> list[list[int]]:
    """Numbers of the samples of each row: the word behind the markers of begin and user."""
    found = []
    for tokens, segment, position in zip(batch["tokens"], batch["segment"], batch["position"], strict=True):
        first = (segment > 0) & (position == 2)
        found.append((tokens[first] - 1000).tolist())
    return found


def row_numbers(made, row: int) -> list[int]:
    """Numbers of the samples of one row of consecutive batches."""
    return [number for batch, _ in made for number in numbers(batch)[row]]


def test_a_row_draws_every_bth_position_once_and_in_its_turn():
    made = take(Records(), 40)
    delivered = [row_numbers(made, row) for row in range(ROWS)]
    state = made[-1][1]
    for row in range(ROWS):
        pending = [row + ROWS * int(count) for count in state["pending"][row] if count >= 0]
        drawn = [row + ROWS * count for count in range(int(state["drawn"][row]))]
        assert sorted(delivered[row] + pending) == drawn
        # No sample waits behind more than a window's worth of rows.
        assert all(abs(place - drawn.index(number)) <= 60 for place, number in enumerate(delivered[row]))


@pytest.mark.parametrize("at", [1, 7, 20])
def test_a_restored_stream_goes_on_as_if_nothing_had_happened(at):
    whole = take(Records(), 25)
    assert_same(take(Records(), 25 - at, state=whole[at - 1][1]), whole[at:])


def test_as_many_batches_are_made_ahead_as_fit_in_memory():
    size = batch_bytes(ROWS, SHAPE)
    assert size == sum(array.nbytes for name, array in take(Records(), 1)[0][0].items() if name != "skipped")
    for batches, expected in ((0, 1), (3.5, 1), (6, 4), (100, 8)):
        stream = open_stream(Records(), read_ahead=0, memory_bytes=int(batches * size))
        assert stream._ready.maxsize == expected
        stream.close()
    assert_same(take(Records(), 4, read_ahead=0), take(Records(), 4))


def test_the_state_is_that_of_the_batch_however_far_was_read_ahead():
    assert_same(take(Records(), 6, read_ahead=1), take(Records(), 6, read_ahead=9))


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_threads_change_nothing(threads):
    assert_same(take(Records(), 12, threads=threads), take(Records(), 12))


def test_processes_read_their_own_positions_only_and_make_the_same_rows():
    whole = take(Records(), 10)
    for rows in ([0, 2], [1, 3], [3]):
        records = Records()
        for (batch, state), (expected, expected_state) in zip(take(records, 10, rows=rows), whole, strict=True):
            for name, array in batch.items():
                np.testing.assert_array_equal(array, expected[name][rows], err_msg=name)
            for name, array in state.items():
                np.testing.assert_array_equal(array, expected_state[name][rows], err_msg=name)
        assert {position % ROWS for position in records.read} == set(rows)
        assert set(records.read.values()) == {1}, "each record is read once"


def test_ten_million_steps_in_costs_what_the_start_costs():
    far = initial_state(ROWS, WINDOW)
    far["drawn"][:] = 10_000_000
    far["pending"][:, :2] = [[9_999_990, 9_999_995]] * ROWS
    records = Records()
    [(batch, state)] = take(records, 1, state=far, read_ahead=1, threads=1)
    assert (state["drawn"] > 10_000_000).all()
    assert numbers(batch)[1][0] == 1 + ROWS * 9_999_990
    # At most: a batch given out, one ready, one in hand and one in the making, of some 10 samples a row each.
    assert len(records.read) < 4 * ROWS * 10
    assert min(records.read) == ROWS * 9_999_990
    assert set(records.read.values()) == {1}


def test_reading_is_bounded():
    records = Records()
    stream = open_stream(records, read_ahead=1, threads=1)
    next(stream)
    stream._producer.join(1.0)
    assert len(records.read) < 5 * ROWS * 10
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("rows", "batches"))]


def test_each_epoch_delivers_each_record_exactly_once_across_restores():
    count = 60
    records = [record(number, words=number % 9, image=False) for number in range(count)]
    samples = Mixture([Source("a", records, 1.0)], seed=0)
    state, delivered = None, collections.Counter()
    while state is None or int(state["drawn"].min()) * ROWS < 3 * count:
        made = take(samples, 2, state=state)
        state = made[-1][1]
        delivered.update(number for row in range(ROWS) for number in row_numbers(made, row))

    def number(row: int, drawn: int) -> int:
        return int(samples[row + ROWS * drawn]["conversations"][0]["value"].split()[0][1:])

    for row in range(ROWS):
        delivered.update(number(row, int(drawn)) for drawn in state["pending"][row] if drawn >= 0)
        # What was drawn of later epochs is taken off again.
        delivered.subtract(number(row, drawn) for drawn in range(3 * count // ROWS, int(state["drawn"][row])))
    assert delivered == dict.fromkeys(range(count), 3)


BAD = {
    5: OSError("disk on fire"),
    6: {**record(6), "images": [picture(1)[:40]]},
    7: {**record(7), "images": []},
    9: record(9, words=60),
    14: {"images": []},
    18: {"images": [None], "conversations": [{"from": "human", "value": "<image>"}]},
    21: RuntimeError("Corrupted Riegeli/records file"),
}
REASONS = {
    5: "unreadable",
    6: "undecodable",
    7: "invalid",
    9: "too_long",
    14: "invalid",
    18: "nothing_learned",
    21: "unreadable",
}


def test_bad_records_are_skipped_counted_and_keep_their_turn(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("unihetero_jax"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="unihetero_jax"):
        made = take(Records(BAD), 12, max_bad_records=7)
    delivered = {number for batch, _ in made for row in numbers(batch) for number in row}
    assert not delivered & BAD.keys()
    state = made[-1][1]
    expected = np.zeros((ROWS, len(SKIP_REASONS)), np.int32)
    for position, reason in REASONS.items():
        expected[position % ROWS, SKIP_REASONS.index(reason)] += 1
    np.testing.assert_array_equal(state["skipped"], expected)
    np.testing.assert_array_equal(made[-1][0]["skipped"], expected)
    assert {int(message.split()[2].rstrip(":")) for message in caplog.messages} >= BAD.keys()
    # Row 3 (positions 3, 7, 11, …) would have held 7; all others follow as they would have.
    healthy, skipping = row_numbers(take(Records(), 3), 3), row_numbers(made, 3)
    assert skipping[:2] == [number for number in healthy if number != 7][:2]


@pytest.mark.parametrize("at", [1, 2, 5])
def test_skipping_is_the_same_after_a_restart_and_by_any_number_of_threads(at):
    whole = take(Records(BAD), 12, max_bad_records=7)
    again = take(Records(BAD), 12 - at, max_bad_records=7, state=whole[at - 1][1], threads=3, read_ahead=1)
    assert_same(again, whole[at:])


def test_a_row_with_a_bad_picture_is_packed_as_if_it_had_not_been_there():
    """Whatever memory it comes to lie in: of that row's first attempt, of batches before, or new."""
    turns = [{"from": "human", "value": "<image>" * 3}, {"from": "gpt", "value": "n0"}]
    three = {"images": [picture(9), picture(7)[:40], picture(8)], "conversations": turns}
    bad = dict.fromkeys((5, 21, 22, 40, 61, 62, 63, 64), three)
    made = {number: record(number, words=number % 9, image=number % 13 == 0) for number in range(400)} | bad
    kept = take(Records(made), 14, max_bad_records=8)
    stream = open_stream(Records(made), max_bad_records=8)
    for expected, expected_state in kept:
        batch, state = next(stream)  # not kept: its memory is used again
        assert_same([(batch, state)], [(expected, expected_state)])
        assert not batch["images"][batch["role"] == 0].any()
    stream.close()
    assert batch["skipped"].sum() == 8
    delivered = {number for batch, _ in kept for row in numbers(batch) for number in row}
    assert not delivered & bad.keys()
    assert set(range(60)) - bad.keys() <= delivered


def test_what_does_not_fit_is_not_decoded(monkeypatch):
    decoded = []
    monkeypatch.setattr(slots, "decode_into", lambda square, data, **options: decoded.append(data))
    many = {"images": [picture(1)] * 9, "conversations": [{"from": "human", "value": "<image>" * 9}]}
    with pytest.raises(UsageError, match="9 images do not fit a row of 40 slots and 3 images"):
        take(Records(dict.fromkeys(range(99), many)), 1)
    assert not decoded


def test_one_bad_record_too_many_stops_with_one_line():
    with pytest.raises(UsageError) as caught:
        take(Records(BAD), 12, max_bad_records=6, threads=1)
    message = str(caught.value)
    counts = re.fullmatch(
        r"7 records were skipped \((.*)\) of \d+, more than config\.data\.max_bad_records=6 and "
        r"config\.data\.max_bad_share=0\.0 allow; the last one: sample .*",
        message,
    )
    assert counts is not None, message
    found = collections.Counter()
    for part in counts[1].split(", "):
        count, reason = part.split()
        found[reason] = int(count)
    assert found == collections.Counter(REASONS.values())


def test_a_share_of_what_is_drawn_may_be_bad_besides():
    drawn = int(take(Records(BAD), 12, max_bad_records=7)[-1][1]["drawn"].sum())
    made = take(Records(BAD), 12, max_bad_records=6, max_bad_share=0.5)
    assert made[-1][0]["skipped"].sum() == 7
    with pytest.raises(UsageError, match="7 records were skipped"):
        take(Records(BAD), 12, max_bad_records=6, max_bad_share=0.5 / drawn, threads=1)


def test_the_limit_counts_what_was_skipped_before_a_restart():
    before = take(Records(BAD), 12, max_bad_records=7)
    later = {int(before[-1][1]["drawn"].max()) * ROWS + 40: OSError("again")}
    with pytest.raises(UsageError, match=r"8 records were skipped \(.*3 unreadable"):
        take(Records(later), 12, max_bad_records=7, state=before[-1][1])


def test_a_broken_file_costs_its_records_and_not_the_run(dataset, tmp_path):
    import shutil

    from unihetero_jax.tokenizer.sentencepiece import Tokenizer

    root = tmp_path / "data"
    shutil.copytree(dataset, root)
    shard = root / "smart_watch-train_vqa.array_record-00000-of-00001"
    content = bytearray(shard.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(byte ^ 0xFF for byte in content[middle : middle + 40])
    shard.write_bytes(content)
    stream = batch_stream(
        Mixture([Source("vqa", Dataset(root).split("train_vqa"), 1.0)], seed=0),
        Tokenizer.load(root / "tokenizer.model"),
        dict.fromkeys((Role.INPUT, Role.TARGET, Role.BOTH), 16),
        RowShape(192, 2, 32),
        batch_size=8,
        rows=list(range(8)),
        window=4,
        threads=2,
        read_ahead=1,
        max_bad_records=20,
    )
    state = None
    for _ in range(40):
        _, state = next(stream)
    stream.close()
    skipped = dict(zip(SKIP_REASONS, state["skipped"].sum(axis=0).tolist(), strict=True))
    assert skipped["unreadable"] > 0
    assert skipped["invalid"] == skipped["too_long"] == 0


def test_hosts_come_and_go_in_the_middle_of_an_epoch_and_the_rows_stay():
    rows = 60

    def made(hosts: int, count: int, state):
        """Batches and states of hosts that each have their own rows, put together."""
        parts = [list(range(host * rows // hosts, (host + 1) * rows // hosts)) for host in range(hosts)]
        takes = [take(Records(), count, rows=part, batch_size=rows, state=state) for part in parts]
        return [
            tuple(
                {name: np.concatenate([part[kind][name] for part in step]) for name in step[0][kind]} for kind in (0, 1)
            )
            for step in zip(*takes, strict=True)
        ]

    whole = made(1, 9, None)
    found, state = [], None
    for hosts in (4, 3, 5):
        found += made(hosts, 3, state)
        state = found[-1][1]
    assert_same(found, whole)
