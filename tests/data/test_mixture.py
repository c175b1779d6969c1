"""Mixtures: shares, epochs, both directions of a pair, and what is drawn for a position."""

from __future__ import annotations

import collections

import pytest

from unihetero_jax.data.mixing import Mixture, Source, reverse_caption, with_generation_share
from unihetero_jax.data.packing.sample import TRANSFORM
from unihetero_jax.data.packing.slots import Transform
from unihetero_jax.data.records.invalid import InvalidRecord
from unihetero_jax.errors import UsageError


def mixture(sources, weights, seed: int) -> Mixture:
    return Mixture([Source(name, source, weights[name]) for name, source in sources.items()], seed)


class Numbers:
    """A random-access source of numbers."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return index


def test_every_epoch_is_another_permutation():
    samples = mixture({"a": Numbers(101)}, {"a": 1.0}, seed=3)
    epochs = [[samples[101 * epoch + index] for index in range(101)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(101)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])
    again = mixture({"a": Numbers(101)}, {"a": 1.0}, seed=3)
    assert [again[101 + index] for index in range(101)] == epochs[1]
    assert [mixture({"a": Numbers(101)}, {"a": 1.0}, seed=4)[index] for index in range(101)] != epochs[0]


def test_shares_of_a_mixture():
    sources = {"a": [("a", index) for index in range(50)], "b": [("b", index) for index in range(70)], "c": [("c", 0)]}
    samples = mixture(sources, {"a": 3.0, "b": 1.0, "c": 0.0}, seed=0)
    drawn = [samples[index] for index in range(4000)]
    counts = collections.Counter(name for name, _ in drawn)
    assert abs(counts["a"] - 3000) <= 2
    assert abs(counts["b"] - 1000) <= 2
    assert counts["c"] == 0
    first = [index for name, index in drawn if name == "a"][:50]
    assert sorted(first) == list(range(50)), "each source goes through its own epochs"


def test_two_sources_of_one_length_are_not_shuffled_alike():
    sources = {name: [(name, index) for index in range(50)] for name in "ab"}
    samples = mixture(sources, {"a": 1.0, "b": 1.0}, seed=0)
    drawn = [samples[index] for index in range(100)]
    orders = [[index for name, index in drawn if name == wanted] for wanted in "ab"]
    assert orders[0] != orders[1]


def caption(number: int):
    turns = {"from": [b"human", b"gpt"], "value": [b"<image>\nDescribe it.", f"thing {number}".encode()]}
    return {"images": [b"pixels"], "conversations": turns}


CAPTIONS = [caption(number) for number in range(40)]


def test_both_directions_of_a_pair_come_from_one_record():
    parts = [
        Source("a/caption", CAPTIONS, 3.0),
        Source("a/caption/turned", CAPTIONS, 1.0, generation=True, reverse=True),
    ]
    samples = Mixture(parts, seed=1)
    drawn = [samples[position]["conversations"]["value"] for position in range(400)]
    turned = [asked for asked, answer in drawn if answer == "<image>"]
    assert len(turned) == 100
    assert len({asked.split("thing")[0] for asked in turned}) == 5, "every phrasing is drawn"
    assert {asked.split("thing")[1] for asked in turned} == {f" {number}" for number in range(40)}
    shown = [(asked, answer) for asked, answer in drawn if answer != "<image>"]
    assert {asked for asked, _ in shown} == {b"<image>\nDescribe it."}
    again = Mixture(parts, seed=1)
    assert [again[position]["conversations"]["value"] for position in range(400)] == drawn


@pytest.mark.parametrize(
    ("turns", "complaint"),
    [
        ({"from": ["human", "gpt", "human", "gpt"], "value": ["<image>", "a", "b", "c"]}, "turns of human, gpt, human"),
        ({"from": ["human", "gpt"], "value": ["draw", "<image>"]}, "no caption"),
        ({"from": ["human", "gpt"], "value": ["<image>", b"\xff"]}, "not UTF-8"),
        ({"from": [], "value": []}, "turns of nobody"),
    ],
)
def test_what_is_no_caption_is_not_turned(turns, complaint):
    with pytest.raises(InvalidRecord, match=complaint):
        reverse_caption({"images": [b""], "conversations": turns}, "Draw: {caption}")


def test_a_share_of_the_samples_asks_for_pictures():
    weights = {"a": (5.0, False), "b": (3.0, True), "c": (1.0, True)}
    parts = [Source(name, CAPTIONS, weight, generation=asks) for name, (weight, asks) in weights.items()]
    shares = Mixture(with_generation_share(parts, 0.2), seed=0).shares
    assert shares == pytest.approx({"a": 0.8, "b": 0.15, "c": 0.05})
    with pytest.raises(UsageError, match="no source has a record that asks for images"):
        with_generation_share(parts[:1], 0.2)
    with pytest.raises(UsageError, match="no source has a record that reads images or text"):
        with_generation_share(parts[1:], 0.2)


def test_crops_and_flips_are_drawn_of_the_position_alone():
    fixed = Mixture([Source("a", CAPTIONS, 1.0, fit="crop")], seed=0)
    assert fixed[3][TRANSFORM] == Transform("crop")
    drawn = Mixture([Source("a", CAPTIONS, 1.0, fit="crop", random=True, flip=True)], seed=0)
    made = [drawn[position][TRANSFORM] for position in range(200)]
    assert made == [drawn[position][TRANSFORM] for position in range(200)]
    assert 60 < sum(one.flip for one in made) < 140
    assert len({one.crop for one in made}) == 200
    assert all(0 <= part < 1 for one in made for part in one.crop)
    upright = Mixture([Source("a", CAPTIONS, 1.0, fit="crop", random=True)], seed=0)
    assert not any(upright[position][TRANSFORM].flip for position in range(40))


def test_an_empty_mixture_is_refused():
    with pytest.raises(UsageError, match="the mixture is empty"):
        Mixture([Source("a", CAPTIONS, 0.0), Source("b", [], 1.0)], seed=0)
