"""How far our numbers are from published ones."""

from __future__ import annotations

from typing import Any

import numpy as np


def relative_error(found: Any, expected: Any) -> float:
    """Largest error as a part of the largest value expected."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, f"{found.shape} in place of {expected.shape}"
    return float(np.abs(found - expected).max() / np.abs(expected).max())
