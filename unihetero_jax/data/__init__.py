"""Data: from records to packed batches, without JAX.

``packed_batches`` is the public entry. Each room imports only those before it: records, packing, sources, ingest,
importers and smart_watch, inspect.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unihetero_jax.data.pipeline import PackedBatches as PackedBatches
    from unihetero_jax.data.pipeline import packed_batches as packed_batches

__all__ = ["PackedBatches", "packed_batches"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: data workers import this package, and need none of them."""
    if name in __all__:
        return getattr(importlib.import_module("unihetero_jax.data.pipeline"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
