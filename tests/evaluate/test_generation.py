from dataclasses import dataclass, replace

import numpy as np
import pytest

from unihetero_jax.data.smart_watch import draw, sample_attributes
from unihetero_jax.evaluate.common import smart_watch
from unihetero_jax.evaluate.common.held_out import Requests
from unihetero_jax.evaluate.generation.measures import (
    Instruments,
    disc_color,
    face_scores,
    measure,
    occupied_corners,
)

N = 10


@dataclass
class Made:
    embeddings: np.ndarray
    images: np.ndarray | None
    forced: np.ndarray


@pytest.fixture(scope="module")
def held_out():
    truths = [sample_attributes(0, number) for number in range(N)]
    images = np.stack([np.asarray(draw(truth, 64)) for truth in truths])
    return Requests([f"request {n}" for n in range(N)], [f"phrase {n}" for n in range(N)], images, truths)


@pytest.fixture(scope="module")
def embeddings():
    return np.random.default_rng(0).normal(size=(N, 4, 8))


def run(held_out, embeddings, drawn, taught=None):
    return measure(drawn, taught or drawn, embeddings, held_out, Instruments())


def test_a_perfect_model_and_the_same_for_another_watch(held_out, embeddings):
    made = Made(3 * embeddings, held_out.images, np.zeros(N, bool))
    found = run(held_out, embeddings, made)
    assert found["free_cosine"] == pytest.approx(1)
    assert found["taught_cosine"] == pytest.approx(1)
    assert found["free_cosine_by_position"] == pytest.approx([1] * 4)
    assert abs(found["free_cosine_other"]) < 0.3
    assert len(found["taught_cosine_other_by_position"]) == 4
    assert found["free_pixel_error"] == found["color_error"] == 0
    assert found["color_name"] == found["corners"] == 1
    assert found["free_pixel_error_other"] > 10
    assert found["color_error_other"] > 30
    assert found["color_name_other"] < 0.5
    assert found["corners_other"] < 0.6
    assert found["forced"] == 0


def test_positions_are_told_apart(held_out, embeddings):
    drawn = embeddings.copy()
    drawn[:, 2] *= -1
    found = run(held_out, embeddings, Made(drawn, None, np.ones(N, bool)), Made(embeddings, None, None))
    assert found["free_cosine_by_position"] == pytest.approx([1, 1, -1, 1])
    assert found["free_cosine"] == pytest.approx(0.5)
    assert found["taught_cosine"] == pytest.approx(1)
    assert found["free_error_by_position"] == pytest.approx([0, 0, 4, 0])
    assert (found["free_error"], found["taught_error"]) == pytest.approx((1, 0))
    assert found["drift"] == pytest.approx(0)
    assert found["forced"] == 1
    assert "corners" not in found
    assert "free_pixel_error" not in found


def test_falling_behind_from_token_to_token_is_drift(held_out, embeddings):
    other = np.random.default_rng(1).normal(size=embeddings.shape)
    late = embeddings + np.asarray([0.0, 0.5, 1.0, 3.0])[:, None] * other
    found = run(held_out, embeddings, Made(late, None, np.zeros(N, bool)), Made(embeddings, None, None))
    assert found["free_cosine_by_position"][0] == pytest.approx(1)
    assert found["drift"] == pytest.approx(1 - found["free_cosine_by_position"][3])
    assert found["drift"] > 0.3
    # All pictures alike: nothing is left to tell them apart.
    alike = run(held_out, embeddings, Made(late[:1].repeat(N, axis=0), None, np.zeros(N, bool)))
    assert alike["collapse"]["free"]["std"] == pytest.approx(0, abs=1e-9)
    assert alike["collapse"]["free"]["cosine"] == pytest.approx(1)
    assert alike["collapse"]["true"]["std"] == found["collapse"]["true"]["std"] > 0.5


def test_a_single_request_has_no_other(held_out, embeddings):
    one = Requests(held_out.requests[:1], held_out.phrases[:1], held_out.images[:1], held_out.truths[:1])
    found = run(one, embeddings[:1], Made(embeddings[:1], one.images, np.zeros(1, bool)))
    assert not any("other" in name for name in found)


@pytest.mark.parametrize("size", [32, 64, 224])
def test_true_pictures_are_read_back_without_error(size):
    truths = [replace(sample_attributes(1, number), battery=number % 3) for number in range(40)]
    images = np.stack([np.asarray(draw(truth, size)) for truth in truths])
    assert face_scores(images, truths) == {"color_error": 0.0, "color_name": 1.0, "corners": 1.0}
    wrong = face_scores(images, [replace(truth, battery_position=truth.weather_position) for truth in truths])
    assert wrong["corners"] == 0.0


def test_what_a_spoiled_picture_shows():
    truth = replace(
        sample_attributes(1, 0), color=(200, 40, 40), weather_position="top-left", battery_position="top-right"
    )
    picture = np.asarray(draw(truth, 64)).copy()
    picture[56:62, 48:58] = 60  # a third corner is occupied
    assert occupied_corners(picture) == {"top-left", "top-right", "bottom-right"}
    picture[:20, :20] = 255
    assert occupied_corners(picture) == {"top-right", "bottom-right"}
    assert disc_color(picture).tolist() == [200, 40, 40]
    other = replace(truth, color=(210, 60, 10))
    assert face_scores(picture[None], [other])["color_error"] == pytest.approx((10 + 20 + 30) / 3)


def test_requests_are_the_first_of_the_test_split(watch_data):
    asked = smart_watch.requests(watch_data, 32, 5)
    assert len(asked.requests) == len(asked.phrases) == len(asked.truths) == 5
    for request, phrase, truth, image in zip(asked.requests, asked.phrases, asked.truths, asked.images, strict=True):
        assert truth.time in request
        assert "<image>" not in request + phrase
        np.testing.assert_array_equal(image, np.asarray(draw(truth, 32)))
    assert len(smart_watch.requests(watch_data, 32, 1000).requests) == 8
