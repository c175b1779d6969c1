"""grain in the open: datasets of a user's own, mixed, packed and carried on as ours are."""

from __future__ import annotations

import hashlib
import json

import grain
import numpy as np
import pytest
import simplejpeg
from test_mixture import CAPTIONS

from unihetero_jax import data
from unihetero_jax.config import resolve
from unihetero_jax.data.mixing import Mixture
from unihetero_jax.data.packing import row_stream
from unihetero_jax.data.records.invalid import FILTERED, SKIP_REASONS
from unihetero_jax.errors import UsageError

COUNT = 60


class Numbers:
    """A random-access source as grain knows them."""

    def __init__(self, count: int = COUNT):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, int]:
        return {"number": number}


def to_record(element: dict[str, int]) -> dict[str, object]:
    image = simplejpeg.encode_jpeg(np.full((16, 16, 3), element["number"], np.uint8))
    words = "word " * (element["number"] % 11)
    turns = [{"from": "human", "value": f"<image> {words}"}, {"from": "gpt", "value": f"n {element['number']}"}]
    return {**element, "images": [image], "conversations": turns}


def mixture(dataset, keep=lambda record: record["number"] % 3 != 0):
    mine = grain.MapDataset.source(Numbers()).map(to_record).filter(keep)
    return data.mixture(
        [data.Source("mine", mine, weight=1, reverse=False), data.Source("watch", data.split(dataset, "train_vqa"), 2)],
        seed=3,
    )


@pytest.fixture
def config(dataset):
    values = {"data": {"root": str(dataset), "seq_len": 192, "image_size": 32}, "train": {"batch_size": 6}}
    return resolve(values)


def take(batches, count, state=None):
    """Some batches, and the state after each."""
    it = iter(batches)
    try:
        if state is not None:
            it.set_state(state)
        return [({name: np.array(array) for name, array in next(it).items()}, it.get_state()) for _ in range(count)]
    finally:
        it.close()


def assert_same(left, right, rows=slice(None)):
    for (batch, state), (other, other_state) in zip(left, right, strict=True):
        for name, array in batch.items():
            np.testing.assert_array_equal(array, other[name][rows], err_msg=name)
        for name, array in state.items():
            np.testing.assert_array_equal(array[rows], other_state[name][rows], err_msg=name)


def test_the_order_is_that_of_every_version():
    samples = data.mixture(
        [
            data.Source("a/caption", CAPTIONS, 3.0, fit="crop", share=0.875, random=True, flip=True),
            data.Source("a/caption/turned", CAPTIONS, 1.0, generation=True, reverse=True, fit="pad"),
            data.Source("b/vqa", CAPTIONS[:7], 0.37),
        ],
        seed=5,
    )
    found = hashlib.sha256()
    for position in [*range(3000), *range(10**9, 10**9 + 500), 3 * 10**12]:
        found.update(repr(samples[position]).encode())
    assert found.hexdigest() == "e4348b5cf78164534bb2f64347cfb84f38e342c4da4900b700c713f52705e525"


def test_mixtures_and_splits_are_datasets_of_grain(dataset):
    samples, watch = mixture(dataset), data.split(dataset, "train_vqa")
    assert isinstance(samples, grain.MapDataset)
    assert isinstance(watch, grain.MapDataset)
    assert watch[len(watch)] == watch[0], "as in grain, the next epoch"
    assert list(watch[3:5]) == [watch[3], watch[4]]
    images = watch.map(lambda record: record["image"]).shuffle(seed=1)
    assert sorted(images) == sorted(record["image"] for record in watch)
    lengths = samples.map(len)
    assert [lengths[index] for index in range(9)] == [samples[index] and len(samples[index]) for index in range(9)]
    with pytest.raises(UsageError, match=r"two sources of the mixture are called 'a'"):
        data.mixture([data.Source("a", watch), data.Source("a", watch)])
    with pytest.raises(UsageError, match=r"the source 'a' is endless: leave out .repeat\(\)"):
        data.mixture([data.Source("a", watch.repeat())])


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_lambdas_and_filters_reach_the_workers(config, dataset, workers):
    whole = take(data.packed_batches(mixture(dataset), config, workers=0), 8)
    assert_same(take(data.packed_batches(mixture(dataset), config, workers=workers), 8), whole)


def test_batches_go_on_with_other_workers_and_hosts(config, dataset):
    whole = take(data.packed_batches(mixture(dataset), config, workers=0), 9)
    state = whole[2][1]
    parts = ([0, 3, 5], [1, 2, 4])
    for rows, workers in zip(parts, (0, 2), strict=True):
        here = take(data.packed_batches(mixture(dataset), config, rows=rows, workers=workers), 6, state)
        assert_same(
            [(batch, _only(state, rows)) for batch, state in here],
            [({n: a[rows] for n, a in b.items()}, _only(s, rows)) for b, s in whole[3:]],
        )
    # JSON is what grain's own checkpoints would make of a state.
    stored = json.loads(json.dumps({name: array.tolist() for name, array in state.items()}))
    assert_same(take(data.packed_batches(mixture(dataset), config, workers=2), 6, stored), whole[3:])


def _only(state, rows):
    return {name: array[rows] for name, array in state.items()}


def test_a_map_on_batches_carries_their_state(config, dataset):
    batches = data.packed_batches(mixture(dataset), config, workers=2)
    assert isinstance(batches, grain.IterDataset)
    plain = take(batches, 6)
    mapped = batches.map(lambda batch: {"tokens": batch["tokens"][:, ::-1], "skipped": batch["skipped"]})
    there = take(mapped, 6)
    for (batch, state), (other, other_state) in zip(there, plain, strict=True):
        np.testing.assert_array_equal(batch["tokens"], other["tokens"][:, ::-1])
        assert all((state[name] == array).all() for name, array in other_state.items())
    assert_same(take(mapped, 4, there[1][1]), there[2:])


def test_what_a_filter_drops_keeps_its_turn_and_is_no_bad_record(config, dataset, caplog):
    drops = lambda record: record["number"] % 3 != 0  # noqa: E731
    kept = data.mixture([data.Source("mine", grain.MapDataset.source(Numbers()).map(to_record))], seed=0)
    some = data.mixture([data.Source("mine", grain.MapDataset.source(Numbers()).map(to_record).filter(drops))], seed=0)
    assert [some[index] for index in range(90)] == [kept[i] if drops(kept[i]) else None for i in range(90)]
    config = resolve({**config.to_dict(), "data": {**config.to_dict()["data"], "max_bad_records": 0}})
    for workers in (0, 2):
        batch, state = take(data.packed_batches(some, config, workers=workers), 4)[-1]
        counts = dict(zip(SKIP_REASONS, state["skipped"].sum(axis=0).tolist(), strict=True))
        gone = sum(not drops(kept[row + 6 * count]) for row in range(6) for count in range(state["drawn"][row]))
        assert counts == {**dict.fromkeys(SKIP_REASONS, 0), FILTERED: gone}
        assert gone > 10
        np.testing.assert_array_equal(batch["skipped"], state["skipped"])
    assert not caplog.messages


def test_a_filter_that_drops_everything_is_an_error(config, dataset, monkeypatch):
    monkeypatch.setattr(row_stream, "_MOST_LEFT_OUT", 500)
    nothing = grain.MapDataset.source(Numbers()).map(to_record).filter(lambda record: False)
    it = iter(data.packed_batches(data.mixture([data.Source("mine", nothing)]), config, workers=0))
    with pytest.raises(UsageError, match=r"500 records were left out for one row.*expected a filter that keeps more"):
        next(it)
    it.close()


def test_a_state_of_another_run_is_refused(config, dataset):
    it = iter(data.packed_batches(mixture(dataset), config, workers=0))
    state = it.get_state()
    older = {**state, "skipped": state["skipped"][:, :3] + 1}
    it.set_state(older)
    assert it.get_state()["skipped"].sum(axis=0).tolist() == [6, 6, 6, 0, 0, 0, 0]
    for name, array in (("drawn", state["drawn"][:4]), ("pending", state["pending"][:, :2])):
        with pytest.raises(UsageError, match=rf"the data state has '{name}' of shape .*: expected "):
            it.set_state({**state, name: array})
    next(it)
    it.close()
    with pytest.raises(ValueError, match="closed"):
        next(it)


def test_the_mixture_of_a_config_may_be_transformed(config):
    samples = data.open_mixture(config)
    assert isinstance(samples, Mixture)
    whole = take(data.packed_batches(samples, config, workers=0), 3)
    assert_same(take(data.packed_batches(samples.map(lambda record: dict(record)), config, workers=2), 3), whole)
    texts = samples.filter(lambda record: len(record["image"]) % 2 == 0)
    state = take(data.packed_batches(texts, config, workers=0), 3)[-1][1]
    assert state["skipped"][:, SKIP_REASONS.index(FILTERED)].sum() > 0


def test_workers_start_without_jax(config, dataset):
    def modules(record):
        with open("/proc/self/cmdline") as file:
            assert "row_worker" not in file.read() or "jax" not in __import__("sys").modules
        return record

    watch = data.split(dataset, "train_vqa").map(modules)
    take(data.packed_batches(data.mixture([data.Source("watch", watch)]), config, workers=1), 2)
