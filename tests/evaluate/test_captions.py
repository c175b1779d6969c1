import pytest

from unihetero_jax.data.smart_watch import Attributes, color_name, sample_attributes
from unihetero_jax.data.smart_watch.text import conversation
from unihetero_jax.evaluate import captions

TRUTH = Attributes(10, 8, 30, "sunny", 80, "top-left", "bottom-right", (220, 20, 30))
SAID = "It is 10:08:30. The weather icon sits top-left. It is sunny outside. The charge is 80%. The disc is red."


@pytest.mark.parametrize("task", ["caption", "generation"])
@pytest.mark.parametrize("style", ["paper", "all"])
def test_what_the_data_says_is_read_back(style, task):
    seen = set()
    for index in range(150):
        watch = sample_attributes(1, index)
        turns, _ = conversation(watch, 1, index, task, style)
        text = turns[1 if task == "caption" else 0]["value"]
        said = captions.parse(text)
        expected = {kind: watch.answer(kind) for kind in said if kind != "color"}
        if "color" in said:
            expected["color"] = color_name(watch.color)
        assert said == expected, text
        assert "time" in said
        assert style == "paper" or len(said) == 6, text
        seen |= said.keys()
    assert {"battery_pos", "weather_pos", "battery", "weather"} <= seen


def test_what_cannot_be_read_is_not_stated():
    assert captions.parse("") == {}
    assert captions.parse("10:8, 140%, rainy, in the top-left corner; a redder face") == {}
    both = captions.parse("the battery in the top-left and the icon at the bottom-left")
    assert both == {"battery_pos": "top-left", "weather_pos": "bottom-left"}


def test_scores_of_captions():
    found = captions.score([SAID, "The watch shows 10:38:30."], [SAID, SAID], [TRUTH, TRUTH])
    assert found["time"] == pytest.approx({"score": 1 - 1 / 6, "stated": 1, "expected": 1})
    assert found["weather"] == {"score": 1, "stated": 0.5, "expected": 1}
    assert found["color"] == {"score": 1, "stated": 0.5, "expected": 1}
    assert "battery_pos" not in found
    assert found["total"]["count"] == 2
    assert found["total"]["found"] == pytest.approx((5 + 2 / 3) / 10)
    assert found["total"]["score"] == pytest.approx((5 + 2 / 3) / 6)
    wrong = captions.score(
        [SAID.replace("sunny", "cloudy").replace("80", "30").replace("red", "blue")], [SAID], [TRUTH]
    )
    assert wrong["weather"]["score"] == wrong["color"]["score"] == 0
    assert wrong["battery"]["score"] == 0.5
    nothing = captions.score(["hello"], [SAID], [TRUTH])
    assert nothing["weather"] == {"stated": 0, "expected": 1}
    assert nothing["total"] == {"count": 1, "found": 0}
