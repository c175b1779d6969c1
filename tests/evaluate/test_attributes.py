from dataclasses import replace

import numpy as np
import pytest

from unihetero_jax.data.smart_watch import Attributes, color_name, draw, sample_attributes
from unihetero_jax.data.smart_watch.text import conversation
from unihetero_jax.evaluate.common.attribute_classifier import blurred
from unihetero_jax.evaluate.common.attributes import KINDS, scores, stated_kinds
from unihetero_jax.evaluate.common.held_out import Requests
from unihetero_jax.evaluate.generation.measures import Instruments, measure

TRUTH = Attributes(10, 8, 30, "sunny", 80, "top-left", "bottom-right", (220, 20, 30))


def test_what_is_right_and_what_is_wrong():
    assert scores([TRUTH], [TRUTH]) == pytest.approx(
        dict.fromkeys(
            ("weather", "time", "hour", "minute", "second", "battery", "battery_position", "weather_position"), 1.0
        )
        | {"color_error": 0.0, "color_name": 1.0, "minute_near": 1.0, "battery_near": 1.0, "total": 1.0}
    )
    other = replace(TRUTH, hour=10, minute=38, second=0, weather="cloudy", battery=30, weather_position="top-right")
    found = scores([other, TRUTH], [TRUTH, TRUTH])
    assert found["hour"] == 1
    assert found["minute"] == found["second"] == found["weather"] == found["weather_position"] == 0.5
    assert found["battery"] == pytest.approx((0.5 + 1) / 2)
    assert found["time"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["battery_position"] == 1
    assert found["total"] == pytest.approx(np.mean([0.5, 2 / 3, 0.75, 1, 0.5]))


@pytest.mark.parametrize(("minute", "battery", "right"), [(5, 90, 1.0), (11, 70, 1.0), (4, 69, 0.0), (12, 91, 0.0)])
def test_three_minutes_and_ten_percent_are_near(minute, battery, right):
    found = scores([replace(TRUTH, minute=minute, battery=battery)], [TRUTH])
    assert found["minute_near"] == found["battery_near"] == right
    assert scores([replace(TRUTH, minute=59)], [replace(TRUTH, minute=2)])["minute_near"] == 1


def test_noon_is_read_as_hour_zero():
    assert scores([replace(TRUTH, hour=0)], [replace(TRUTH, hour=12)])["hour"] == 1


def test_only_what_was_asked_for_counts():
    wrong = replace(TRUTH, weather="raining", battery=0)
    found = scores([wrong, TRUTH], [TRUTH, TRUTH], [{"time", "battery"}, {"weather", "time"}])
    assert found["weather"] == 1
    assert found["battery"] == pytest.approx(0.2)
    assert found["time"] == 1
    assert not {"color_error", "battery_position", "total"} & found.keys()


@pytest.mark.parametrize("style", ["paper", "all", "exact"])
def test_a_request_states_what_it_was_made_of(style):
    everything = {*KINDS} - ({"color"} if style == "paper" else set())
    seen = set()
    for index in range(60):
        truth = sample_attributes(0, index)
        turns, _ = conversation(truth, 0, index, "generation", style)
        stated = stated_kinds(turns[0]["value"], truth)
        assert "time" in stated
        assert style == "paper" or stated == everything
        seen |= stated
        other = replace(truth, hour=(truth.hour + 1) % 13, battery=(truth.battery + 7) % 101)
        assert not {"time", "battery"} & stated_kinds(turns[0]["value"], other)
    assert seen == everything
    assert "color" not in stated_kinds("a watch whose face is redder", TRUTH)
    assert color_name(TRUTH.color) == "red"


def test_blurring_keeps_the_mean_and_loses_detail():
    images = np.stack([np.asarray(draw(sample_attributes(0, 0), 64))])
    soft = blurred(images, 1.5)
    assert soft.dtype == np.uint8
    assert abs(soft.mean() - images.mean()) < 1
    assert np.abs(np.diff(soft.astype(int), axis=1)).mean() < np.abs(np.diff(images.astype(int), axis=1)).mean()


def test_drawn_pictures_are_read_beside_those_that_they_should_be():
    truths = [sample_attributes(0, number) for number in range(8)]
    images = np.stack([np.full((32, 32, 3), number, np.uint8) for number in range(8)])
    texts = [f"Draw a watch at {truth.time} with {truth.weather} weather." for truth in truths]

    class Made:
        embeddings, forced = np.ones((8, 4, 2)), np.zeros(8, bool)

        def __init__(self, images):
            self.images = images

    def read(pictures):
        """What the pictures' grey says; those above 100 are spoilt."""
        return [
            replace(truths[picture[0, 0, 0] % 100], **({} if picture[0, 0, 0] < 100 else {"second": 61}))
            for picture in pictures
        ]

    found = measure(
        Made(np.roll(images, 1, axis=0)),
        Made(images + 100),
        np.ones((8, 4, 2)),
        Requests(texts, texts, images, truths),
        Instruments(classify=read, reconstruct=lambda pictures: pictures),
    )
    told = found["read"]
    assert told["real"]["time"] == told["reconstructed"]["time"] == 1
    assert told["taught"]["weather"] == 1
    assert told["taught"]["second"] == 0
    assert told["drawn"]["time"] < 0.9
    assert told["another"].keys() == told["drawn"].keys()
    # Nobody asked for a battery.
    assert "battery" not in told["drawn"]
    assert "weather_position" not in told["drawn"]
