"""Initializers whose parameters carry their logical axes as metadata (``axes``); ``parallel.mesh`` maps them."""

from __future__ import annotations

from typing import Any

from flax import nnx


def fan_in(*axes: str | None, scale: float = 1.0) -> Any:
    """Return an initializer: truncated normal of variance scale / fan-in."""
    return nnx.with_metadata(nnx.initializers.variance_scaling(scale, "fan_in", "truncated_normal"), axes=axes)


def zeros(*axes: str | None) -> Any:
    """Return an initializer of zeros."""
    return nnx.with_metadata(nnx.initializers.zeros_init(), axes=axes)


def ones(*axes: str | None) -> Any:
    """Return an initializer of ones."""
    return nnx.with_metadata(nnx.initializers.ones_init(), axes=axes)
