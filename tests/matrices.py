"""Matrices of parameters, of which the fast suite runs a part."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def matrix(values: Iterable[Any], *, fast: Collection[Any]) -> list[Any]:
    """Parameters for ``parametrize``; those that are not in ``fast`` are marked slow.

    ``fast`` holds values, or the first of several values that make one case.
    """
    cases = [value if isinstance(value, tuple | list) else (value,) for value in values]
    first = [case[0] for case in cases]
    assert set(fast) <= set(first), "a fast case that the matrix does not have"
    return [pytest.param(*case, marks=() if case[0] in fast else pytest.mark.slow) for case in cases]
