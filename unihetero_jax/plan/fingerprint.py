"""The config that a plan is for: the values that shape its step and its run, and their digest for a later check."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from unihetero_jax.config import Config
from unihetero_jax.config.changed_keys import changed_values
from unihetero_jax.config.constraints import SHAPES_STEP
from unihetero_jax.config.tree import is_below, marked_keys


def shaping_values(config: Config) -> dict[str, Any]:
    """Return the dotted keys and values that shape a step and the length of its run, where they are not the defaults.

    Defaults are left out so that a key added by a later version does not make this another config.
    """
    changed = changed_values(config.to_dict())
    shaping = list(marked_keys(Config, SHAPES_STEP))
    return {key: changed[key] for key in sorted(changed) if is_below(key, shaping)}


def digest(config: Config) -> str:
    """Return the SHA-256 of ``shaping_values``, hexadecimal."""
    return hashlib.sha256(json.dumps(shaping_values(config), sort_keys=True).encode()).hexdigest()
