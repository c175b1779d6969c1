"""In what the watch of a caption that was found agrees with the watch that it was found for.

A retrieval counts as right or wrong; which of the things that a caption says were read shows in what wrong ones have in
common with the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from unihetero_jax.data.smart_watch import Attributes, color_name

Agreement = dict[str, dict[str, float]]

# The hour hand of 0 and that of 12 are one, and so are the two hours.
_TOLD: dict[str, Callable[[Attributes], str | int]] = {
    "weather": lambda watch: watch.weather,
    "battery": lambda watch: watch.battery,
    "battery_position": lambda watch: watch.battery_position,
    "weather_position": lambda watch: watch.weather_position,
    "color": lambda watch: color_name(watch.color),
    "hour": lambda watch: watch.hour % 12,
    "minute": lambda watch: watch.minute,
    "second": lambda watch: watch.second,
}
# Numbers agree when they are this near, minutes and seconds round the dial: a reading, and not yet luck.
_NEAR = {"battery": 5, "minute": 2, "second": 2}
_ROUND = {"minute": 60, "second": 60}


def agreement(watches: Sequence[Attributes], found: Sequence[int]) -> Agreement:
    """How often what was found shows what was looked for.

    Args:
      watches: the candidates.
      found: for each of them, the number of the one that was found for it.

    Returns:
      By attribute (``weather``, ``battery`` within 5%, ``battery_position``, ``weather_position``, ``color`` by name,
      ``hour``, ``minute`` and ``second`` within 2): ``found``, the share that agrees, and ``chance``, the share among
      all pairs of candidates, itself included.
    """
    shares: Agreement = {}
    for name, tell in _TOLD.items():
        told = np.array([tell(watch) for watch in watches])
        same = told[:, None] == told[None, :]
        if name in _NEAR:
            distance = np.abs(told[:, None] - told[None, :])
            same = np.minimum(distance, _ROUND.get(name, np.inf) - distance) <= _NEAR[name]
        own = np.arange(len(told))
        shares[name] = {"found": float(same[own, np.asarray(found)].mean()), "chance": float(same.mean())}
    return shares
