"""Attributes in which the watch of a retrieved caption agrees with the watch that it was retrieved for.

A retrieval counts as right or wrong; which attributes the towers encode shows in what wrong ones have in common with
the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from unihetero_jax.data.smart_watch import Attributes, color_name

Agreement = dict[str, dict[str, float]]

# The hour hand of 0 and that of 12 are one, and so are the two hours.
_VALUES: dict[str, Callable[[Attributes], str | int]] = {
    "weather": lambda watch: watch.weather,
    "battery": lambda watch: watch.battery,
    "battery_position": lambda watch: watch.battery_position,
    "weather_position": lambda watch: watch.weather_position,
    "color": lambda watch: color_name(watch.color),
    "hour": lambda watch: watch.hour % 12,
    "minute": lambda watch: watch.minute,
    "second": lambda watch: watch.second,
}
# Numbers agree within these distances, minutes and seconds around the dial.
_NEAR = {"battery": 5, "minute": 2, "second": 2}
_ROUND = {"minute": 60, "second": 60}


def agreement(watches: Sequence[Attributes], found: Sequence[int]) -> Agreement:
    """How often retrieved watches have the attributes of those that they were retrieved for.

    Args:
      watches: the candidates.
      found: for each of them, the index of the candidate that was retrieved for it.

    Returns:
      By attribute (``weather``, ``battery`` within 5%, ``battery_position``, ``weather_position``, ``color`` by name,
      ``hour``, ``minute`` and ``second`` within 2): ``found``, the share that agrees, and ``chance``, the share among
      all pairs of candidates, itself included.
    """
    shares: Agreement = {}
    for name, value in _VALUES.items():
        values = np.array([value(watch) for watch in watches])
        same = values[:, None] == values[None, :]
        if name in _NEAR:
            distance = np.abs(values[:, None] - values[None, :])
            same = np.minimum(distance, _ROUND.get(name, np.inf) - distance) <= _NEAR[name]
        own = np.arange(len(values))
        shares[name] = {"found": float(same[own, np.asarray(found)].mean()), "chance": float(same.mean())}
    return shares
