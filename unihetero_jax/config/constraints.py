"""Types of config fields that allow only some values, so that a constraint stands beside its field."""

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
