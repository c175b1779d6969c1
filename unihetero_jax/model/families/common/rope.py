"""Rotary positions in a published ``config.json``, in and out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unihetero_jax.config import DecoderConfig
from unihetero_jax.errors import UsageError

# rope_type → our kind of scaling, and by our names the keys that it needs.
_SCALINGS: dict[str, tuple[str, dict[str, str]]] = {
    "default": ("none", {}),
    "linear": ("linear", {"factor": "factor"}),
    "llama3": (
        "llama3",
        {
            "factor": "factor",
            "low_frequency_factor": "low_freq_factor",
            "high_frequency_factor": "high_freq_factor",
            "original_positions": "original_max_position_embeddings",
        },
    ),
}


def read_rope(file: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Read rotary positions from ``rope_parameters`` (transformers 5), else ``rope_scaling`` and the top level."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise UsageError(f"{file}: rope_parameters={rope!r}: expected an object with rope_theta")
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    if kind not in _SCALINGS:
        raise UsageError(f"{file}: rope_type={kind!r} is not supported: expected one of {', '.join(_SCALINGS)}")

    def positive(key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise UsageError(f"{file}: {key}={value!r}: expected a number above 0")
        return float(value)

    ours, keys = _SCALINGS[kind]
    scaling: dict[str, Any] = {name: positive(key, rope.get(key)) for name, key in keys.items()}
    if "original_positions" in scaling:
        scaling["original_positions"] = int(scaling["original_positions"])
    theta = positive("rope_theta", rope.get("rope_theta", values.get("rope_theta", 10_000.0)))
    return {"rope_theta": theta, "rope_scaling": {"kind": ours, **scaling}}


def published_rope(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys of a ``config.json`` that define what ``read_rope`` reads."""
    scaling = config.rope_scaling
    kind, keys = next((kind, keys) for kind, (ours, keys) in _SCALINGS.items() if ours == scaling.kind)
    values = {"rope_type": kind, **{key: getattr(scaling, name) for name, key in keys.items()}}
    # Both places: transformers 5 reads the second, what came before it the first.
    theirs: dict[str, Any] = {"rope_theta": config.rope_theta}
    if keys:
        theirs["rope_scaling"] = values
    if "original_positions" in keys:
        theirs["max_position_embeddings"] = int(scaling.original_positions * scaling.factor)
    return {**theirs, "rope_parameters": {**values, "rope_theta": config.rope_theta}}
