"""Importers: from anyone's files to shards of records (see `unihetero_jax.data.records.record`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from unihetero_jax.data.importers.celeba.importer import CelebaImporter
from unihetero_jax.data.importers.folder import FolderImporter
from unihetero_jax.data.importers.llava import LlavaImporter
from unihetero_jax.data.importers.tfds import TfdsImporter
from unihetero_jax.data.importers.webdataset import WebDatasetImporter
from unihetero_jax.data.ingest.importer import Importer

__all__ = ["IMPORTERS", "options", "rebuild"]

IMPORTERS: dict[str, type] = {
    importer.name: importer
    for importer in (CelebaImporter, FolderImporter, LlavaImporter, TfdsImporter, WebDatasetImporter)
}


def options(importer: Importer) -> dict[str, Any]:
    """What an importer was made of, to make it again elsewhere."""
    assert dataclasses.is_dataclass(importer)
    return {field.name: getattr(importer, field.name) for field in dataclasses.fields(importer)}


def rebuild(name: str, made_of: Mapping[str, Any]) -> Importer:
    """The importer of that name with those `options`, which may have been JSON since."""
    return IMPORTERS[name](**{key: _frozen(value) for key, value in made_of.items()})


def _frozen(value: Any) -> Any:
    """JSON knows no tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
