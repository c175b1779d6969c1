"""Answers that end with a text: the same as if they were cut afterwards, and not decoded to the end."""

from __future__ import annotations

import numpy as np
import pytest
from kinds import UNTIED

from unihetero_jax.errors import UsageError
from unihetero_jax.generate import predict, stopping
from unihetero_jax.generate.predict import Predictor
from unihetero_jax.generate.requests import Request, cut
from unihetero_jax.generate.sampling_options import Choice, Sampling
from unihetero_jax.generate.stopping import is_decided

LIMIT = 44
ASKED = ["What time is it?", "Tell me where the weather icon is.", "Draw a watch."]


@pytest.fixture(scope="module")
def predictor(make_trained):
    return Predictor(make_trained(**UNTIED))


@pytest.fixture
def decoded(monkeypatch) -> list[np.ndarray]:
    """How many slots each request was decoded for, batch after batch."""
    lengths: list[np.ndarray] = []

    def decode_until(*arguments):
        made = stopping.decode_until(*arguments)
        lengths.append(np.asarray(made.length))
        return made

    monkeypatch.setattr(predict, "decode_until", decode_until)
    return lengths


@pytest.mark.parametrize(
    ("text", "stops", "decided"),
    [
        ("four o'clock", ("\n",), False),
        ("four\nfive", ("\n",), True),
        ("four\nfive", ("five", "\n"), True),
        ("a bc", ("bc", "a bcd"), False),  # cut at 0 if a d follows
        ("a bce", ("bc", "a bcd"), True),
        ("a bc", ("bc", "bcd"), True),  # both begin at the same place
        ("aab", ("b", "aabb"), False),
        ("", ("b",), False),
        ("b\ufffd", ("\ufffd",), False),  # bytes of a character that may still become another
        ("b\ufffd", ("b",), True),
    ],
)
def test_what_is_decided_is_cut_there_whatever_follows(text, stops, decided):
    assert is_decided(text, stops) == decided
    if decided:
        assert {cut([text + more], stops) for more in ("", "d", "\n", "bcd", "aabb")} == {cut([text], stops)}


@pytest.mark.parametrize("heat", [0.0, 1.5])
def test_answers_are_those_cut_afterwards_and_end_sooner(predictor, decoded, heat):
    sampling = Sampling(text=Choice(heat), max_tokens=LIMIT, max_images=0)
    free = predictor.generate(ASKED, sampling)
    assert not decoded
    # One that all of them say sooner or later, one that is said at once, and some that nobody says.
    early = sorted({made.text[3:5] for made in free if made.text[3:5].strip()})
    for stops in (tuple(early), (free[0].text[1:3], "no such text"), (*early, free[1].text[2:12] + "!")):
        found = predictor.generate(ASKED, Sampling(Choice(heat), max_tokens=LIMIT, max_images=0, stop_texts=stops))
        for made, whole in zip(found, free, strict=True):
            kept, ends = cut(whole.segments, stops)
            assert (made.segments, made.stop) == (kept, "stop" if ends else whole.stop)
    assert decoded[0].max() <= stopping._SLOTS * 2 < LIMIT
    assert decoded[1][0] <= stopping._SLOTS


def test_a_request_that_goes_on_does_not_notice_that_others_end(predictor, decoded):
    sampling = Sampling(text=Choice(1.5), max_tokens=LIMIT, max_images=0)
    free = predictor.generate(ASKED, sampling)
    (stop,) = (made.text[:6] for made in free[:1])
    assert all(stop not in made.text for made in free[1:])
    found = predictor.generate(ASKED, Sampling(Choice(1.5), max_tokens=LIMIT, max_images=0, stop_texts=(stop,)))
    assert [made.text for made in found] == ["", *(made.text for made in free[1:])]
    assert decoded[0][0] < decoded[0][1:3].min()


def test_a_stop_text_before_and_behind_pictures(predictor):
    sampling = {"text": Choice(1.5), "max_tokens": 12, "max_images": 1, "require_image": True}
    asked = [Request.of(text, seed=3) for text in ASKED]
    free = predictor.generate(asked, Sampling(**sampling))
    for said in (made.segments[0][:3] for made in free if isinstance(made.segments[0], str)):
        found = predictor.generate(asked, Sampling(**sampling, stop_texts=(said,)))
        for made, whole in zip(found, free, strict=True):
            kept, ends = cut(whole.segments, (said,))
            assert made.text == " ".join(part for part in kept if isinstance(part, str))
            assert len(made.pictures) == sum(not isinstance(part, str) for part in kept)
            assert made.stop == ("stop" if ends else whole.stop)
            for mine, theirs in zip(made.pictures, whole.pictures, strict=False):
                np.testing.assert_allclose(mine.predicted, theirs.predicted, atol=1e-4)
                assert np.abs(mine.pixels.astype(int) - theirs.pixels).max() <= 1


def test_predict_functions_take_stop_texts(predictor, decoded):
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    answers = predictor.answer(images, ASKED, LIMIT)
    stop = answers[0][2:4]
    assert predictor.answer(images, ASKED, LIMIT, [stop]) == [text.split(stop)[0].strip() for text in answers]
    told = predictor.continue_text(ASKED[:1], LIMIT)[0]
    assert predictor.continue_text(ASKED[:1], LIMIT, (told[2:4],)) == [told.split(told[2:4])[0].strip()]
    assert len(decoded) == 2
    with pytest.raises(UsageError, match=r"sampling\.stop_texts='END': expected a list or tuple of texts"):
        predictor.answer(images, ASKED, LIMIT, "END")


def test_parts_are_compiled_once(make_trained):
    """Also on a mesh: what one part leaves lies where the next one expects it."""
    predictor = Predictor(make_trained(2, **UNTIED))
    sampling = Sampling(text=Choice(1.5), max_tokens=LIMIT, max_images=0, stop_texts=("no such text",))
    predictor.generate(ASKED, sampling)
    compiled = predictor._programs["resume"]._cache_size()
    predictor.generate(ASKED, sampling)
    assert predictor._programs["resume"]._cache_size() == compiled
