"""Other people's weights ↔ our parameters."""

from unihetero_jax.weights.registry import from_hf, to_hf

__all__ = ["from_hf", "to_hf"]
