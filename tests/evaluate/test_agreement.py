"""In what the watch that was found agrees with the one that was looked for."""

import dataclasses

import pytest

from unihetero_jax.data.smart_watch import Attributes
from unihetero_jax.evaluate.common.agreement import agreement
from unihetero_jax.run.evaluate_tower import table

WATCH = Attributes(0, 59, 10, "sunny", 50, "top-left", "top-right", (220, 20, 30))


def other(**changes):
    return dataclasses.replace(WATCH, **changes)


@pytest.mark.parametrize(
    ("watch", "kind"),
    [
        (other(weather="cloudy"), "weather"),
        (other(battery=56), "battery"),
        (other(battery_position="bottom-left"), "battery_position"),
        (other(weather_position="bottom-left"), "weather_position"),
        (other(color=(30, 70, 220)), "color"),
        (other(hour=1), "hour"),
        (other(minute=2), "minute"),
        (other(second=7), "second"),
    ],
)
def test_what_differs_is_named(watch, kind):
    shares = agreement([WATCH, watch], [1, 1])
    assert {name for name, share in shares.items() if share["found"] != 1} == {kind}
    assert shares[kind] == {"found": 0.5, "chance": 0.5}
    assert all(share["chance"] == 1 for name, share in shares.items() if name != kind)


def test_what_looks_alike_agrees():
    near = other(hour=12, minute=1, second=8, battery=55, color=(240, 90, 80))
    assert all(share["found"] == 1 for share in agreement([WATCH, near], [1, 0]).values())


def test_the_table_has_a_line_an_attribute():
    lines = table({"images": 2, "share": 0.5, "agreement": agreement([WATCH, other(weather="cloudy")], [0, 1])})
    assert "agreement weather           found 1.000   chance 0.500" in lines.splitlines()
    assert len(lines.splitlines()) == 10
