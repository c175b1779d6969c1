"""Other people's weights ↔ our parameters."""

from __future__ import annotations

from typing import Any

__all__ = ["from_hf", "from_state_dict", "to_hf"]


def __getattr__(name: str) -> Any:
    # Not imported above: the command line reads this package, and its --help should not wait for JAX.
    if name in __all__:
        from unihetero_jax.weights import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
