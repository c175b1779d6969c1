"""Which config a plan is of: what shapes its step and its run, as a digest that a later check can compare."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from unihetero_jax.config import Config, lookup
from unihetero_jax.config.tree import difference

# Where data lies, how it is read, what is logged: none of it changes what is compiled.
_SHAPING = ("data.slots", "data.images_per_row", "data.image_size", "model", "losses", "optimizer", "train", "mesh")


def planned(config: Config) -> dict[str, Any]:
    """Dotted keys and values of what shapes a step and the length of its run, where they are not the defaults.

    Only what differs: a key that a later version adds does not make another config of this one.
    """
    keys = difference(Config().to_dict(), config.to_dict())
    chosen = [key for key in keys if any(key == part or key.startswith(f"{part}.") for part in _SHAPING)]
    values: dict[str, Any] = json.loads(json.dumps({key: lookup(config, key) for key in chosen}))
    return values


def digest(config: Config) -> str:
    """SHA-256 of ``planned``, hexadecimal."""
    return hashlib.sha256(json.dumps(planned(config), sort_keys=True).encode()).hexdigest()
