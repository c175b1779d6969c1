"""What stands beside a config field in its annotation: which values are allowed, and where values may differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Bound:
    """A condition on the value of a field.

    Attributes:
      expected: the condition as an error message states it, such as ``a value above 0``.
      holds: whether a value of the field's type is allowed.
    """

    expected: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Mark:
    """A property of a field, or of a whole section below a field.

    Attributes:
      meaning: the property, as the config reference states it.
      implies: marks that a field with this one has too.
    """

    meaning: str
    implies: tuple[Mark, ...] = ()


FREE_ON_RESUME = Mark("may differ when a run is resumed")
"""Length, place and monitoring of a run, never what is learned."""
PER_HOST = Mark("may differ between hosts", (FREE_ON_RESUME,))
"""Changes nothing that the model sees."""
SHAPES_STEP = Mark("part of what a plan is for")
"""Shapes the compiled step or the length of its run. Where data lies and what is logged does not."""

_ABOVE_ZERO = Bound("a value above 0", lambda value: value > 0)
_NOT_NEGATIVE = Bound("0 or more", lambda value: value >= 0)
_FRACTION = Bound("a value from 0 to 1", lambda value: 0 <= value <= 1)

A_PATH = Bound("a path", lambda value: True)

FilePath = Annotated[str, A_PATH]
"""A file or folder. A run records it as an absolute path, so that it is found again from anywhere."""
PositiveInt = Annotated[int, _ABOVE_ZERO]
PositiveFloat = Annotated[float, _ABOVE_ZERO]
NonNegativeInt = Annotated[int, _NOT_NEGATIVE]
NonNegativeFloat = Annotated[float, _NOT_NEGATIVE]
Fraction = Annotated[float, _FRACTION]
FractionBelowOne = Annotated[float, Bound("a value from 0, below 1", lambda value: 0 <= value < 1)]
PositiveFraction = Annotated[float, Bound("a value above 0, up to 1", lambda value: 0 < value <= 1)]
