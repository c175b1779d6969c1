import numpy as np
import pytest

from unihetero_jax.data.smart_watch import Attributes, sample_attributes
from unihetero_jax.errors import UsageError
from unihetero_jax.evaluate import vqa
from unihetero_jax.evaluate.common.attributes import read_battery, read_time, time_score
from unihetero_jax.evaluate.vqa import Question, score, score_answers

WATCH = Attributes(9, 5, 58, "cloudy", 40, "top-left", "bottom-right", (1, 2, 3))


@pytest.mark.parametrize(
    ("kind", "answer", "expected"),
    [
        ("time", "09:05:58", 1.0),
        ("time", "It is 21:05:58.", 1.0),
        ("time", "03:05:58", 1 - (6 / 6) / 3),
        ("time", "09:35:58", 1 - (30 / 30) / 3),
        ("time", "09:05:03", 1 - (5 / 30) / 3),
        ("time", "10:04:58", 1 - (1 / 6 + 1 / 30) / 3),
        ("time", "09:05", 0.0),
        ("time", "09:65:58", 0.0),
        ("time", "009:05:58", 0.0),
        ("time", "", 0.0),
        ("battery", "40%", 1.0),
        ("battery", "The battery is at 50%.", 0.9),
        ("battery", "0", 0.6),
        ("battery", "140%", 0.0),
        ("battery", "full", 0.0),
        ("battery", "09:05:58", 0.0),
        ("weather", "cloudy", 1.0),
        ("weather", "It is cloudy outside.", 1.0),
        ("weather", "sunny", 0.0),
        ("weather", "", 0.0),
        ("weather_pos", "top-left", 1.0),
        ("weather_pos", "bottom-right", 0.0),
        ("battery_pos", "bottom-right", 1.0),
        ("battery_pos", "top-left", 0.0),
    ],
)
def test_the_score_of_an_answer(kind, answer, expected):
    assert score(kind, WATCH, answer) == pytest.approx(expected)


def test_hours_count_modulo_twelve():
    assert time_score((0, 0, 0), read_time("12:00:00")) == 1.0
    assert time_score((12, 0, 0), (0, 0, 0)) == 1.0
    assert time_score((0, 0, 0), (23, 0, 0)) == pytest.approx(1 - (1 / 6) / 3)
    assert time_score((11, 59, 59), (0, 0, 0)) == pytest.approx(1 - (1 / 6 + 1 / 30 + 1 / 30) / 3)
    assert read_battery("-5%") is None


def watches(count: int = 60) -> list[Attributes]:
    return [sample_attributes(3, number) for number in range(count)]


def test_chance_is_what_guessing_scores():
    shown = watches()
    rng = np.random.default_rng(0)
    guesses = {
        "time": lambda: f"{rng.integers(12):02d}:{rng.integers(60):02d}:{rng.integers(60):02d}",
        "battery": lambda: f"{rng.integers(101)}%",
        "weather": lambda: rng.choice(["sunny", "cloudy", "raining"]),
        "weather_pos": lambda: rng.choice(["top-left", "top-right", "bottom-left", "bottom-right"]),
    }
    for kind, guess in guesses.items():
        scored = np.mean([score(kind, truth, str(guess())) for truth in shown for _ in range(100)])
        assert vqa.chance([(kind, truth) for truth in shown]) == pytest.approx(scored, abs=0.02)


def test_constant_is_the_best_single_answer():
    shown = watches()
    candidates = {
        "battery": [f"{charge}%" for charge in range(101)],
        "weather": ["sunny", "cloudy", "raining"],
        "battery_pos": ["top-left", "top-right", "bottom-left", "bottom-right"],
    }
    for kind, answers in candidates.items():
        best = max(np.mean([score(kind, truth, answer) for truth in shown]) for answer in answers)
        assert vqa.constant([(kind, truth) for truth in shown]) == pytest.approx(best)
    times = [(truth.hour, truth.minute, truth.second) for truth in shown]
    rng = np.random.default_rng(0)
    tried = [tuple(rng.integers(0, (12, 60, 60))) for _ in range(300)]
    best_tried = max(np.mean([time_score(truth, guess) for truth in times]) for guess in tried)
    found = vqa.constant([("time", truth) for truth in shown])
    assert best_tried <= found <= best_tried + 0.06
    assert vqa.constant([("time", WATCH)] * 3) == 1.0


def test_each_question_is_asked_alone_about_its_own_picture(watch_data):
    images, questions = vqa.questions(watch_data, 32, 5)
    asked = []

    def answer(shown, texts):
        asked.extend(texts)
        for picture, question in zip(shown, questions, strict=True):
            np.testing.assert_array_equal(picture, images[question.image])
        # The same watch, whatever the order in which they came: the disc's colour tells which picture it is.
        for picture, question in zip(shown, questions, strict=True):
            assert np.abs(picture[16, 7].astype(int) - question.truth.color).max() <= 40
        return [question.truth.answer(question.kind) for question in questions]

    scores = score_answers(answer, images, questions)
    places = {name: scores[name].count for name in ("battery_pos", "weather_pos")}
    assert sum(places.values()) == 5
    assert {name: found.count for name, found in scores.items()} == {
        "weather": 5, "time": 5, "position": 5, "battery": 5, "total": 20, **places
    }  # fmt: skip
    assert all(found.score == 1.0 for found in scores.values())
    assert not any("<image>" in text or "\n" in text for text in asked)
    assert vqa.questions(watch_data, 32, 5)[1] == questions
    assert {question.kind for question in questions} >= {"battery_pos", "weather_pos"}


def test_kinds_of_a_group_are_scored_apart_too():
    shown = [Question(kind, "?", 0, WATCH) for kind in ("weather_pos", "battery_pos", "battery_pos")]
    said = WATCH.battery_position
    scores = score_answers(lambda images, texts: [said] * 3, np.zeros((1, 4, 4, 3), np.uint8), shown)
    assert {name: found.score for name, found in scores.items()} == {
        "position": pytest.approx(2 / 3), "total": pytest.approx(2 / 3), "battery_pos": 1.0, "weather_pos": 0.0
    }  # fmt: skip


def test_total_is_a_mean_over_questions_not_over_kinds():
    shown = [Question("weather", "?", 0, WATCH)] * 3 + [Question("battery", "?", 0, WATCH)]
    scores = score_answers(lambda images, texts: ["cloudy"] * 3 + ["none"], np.zeros((1, 4, 4, 3), np.uint8), shown)
    assert scores["weather"].score == 1.0
    assert scores["battery"].score == 0.0
    assert scores["total"].score == 0.75
    assert scores["total"].chance == pytest.approx((3 / 3 + scores["battery"].chance) / 4)
    assert scores["total"].count == 4


def test_all_questions_are_asked_when_there_are_fewer_than_wanted(watch_data):
    images, questions = vqa.questions(watch_data, 32, 1000)
    assert len(questions) == 8 * 5
    assert len(images) == 8


def test_a_directory_without_a_dataset_is_named(tmp_path):
    with pytest.raises(UsageError, match="no dataset"):
        vqa.questions(tmp_path, 32, 5)
