"""The registries of components, by what a config or the command line chooses."""

from __future__ import annotations

from typing import Any

from unihetero_jax.config.registry import Registry

SOURCES: Registry[Any] = Registry("source", "unihetero_jax.data.sources", default="shards")
IMPORTERS: Registry[Any] = Registry("importer", "unihetero_jax.data.importers", module="importer")
