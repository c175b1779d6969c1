"""Data: from records to packed batches, without a model.

``mixture``, ``split`` and ``packed_batches`` are the public entries, on grain's datasets. Each room imports only those
before it: records, packing, sources, ingest, importers and smart_watch, inspect.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unihetero_jax.data.mixing import Mixture as Mixture
    from unihetero_jax.data.mixing import Source as Source
    from unihetero_jax.data.mixing import mixture as mixture
    from unihetero_jax.data.mixing import split as split
    from unihetero_jax.data.packing.batch_dataset import PackedBatches as PackedBatches
    from unihetero_jax.data.pipeline import open_mixture as open_mixture
    from unihetero_jax.data.pipeline import packed_batches as packed_batches

_MODULES = {
    **dict.fromkeys(("Mixture", "Source", "mixture", "split"), "mixing"),
    "PackedBatches": "packing.batch_dataset",
    **dict.fromkeys(("open_mixture", "packed_batches"), "pipeline"),
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: data workers import this package, and need none of them."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"unihetero_jax.data.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
