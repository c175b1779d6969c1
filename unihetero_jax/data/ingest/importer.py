"""Importer: what every source of records is to the driver that writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from unihetero_jax.data.records.record import IMAGE_TOKEN, Record

# What a literal ``<image>`` in someone's words becomes: the placeholder of an image must stand for one.
ESCAPED_IMAGE = "< image >"


def escape(text: str) -> str:
    """Someone's words, in which nothing stands for an image."""
    return text.replace(IMAGE_TOKEN, ESCAPED_IMAGE)


@dataclass(frozen=True)
class Rejected:
    """A record that is left out.

    Attributes:
        key: Of the record, or of the place where it should have been.
        reason: The counter that it falls under, in snake case, such as ``missing_image``.
        detail: For the person who wonders why; not counted.
    """

    key: str
    reason: str
    detail: str = ""


class Importer(Protocol):
    """Someone's files as records.

    An importer is a frozen dataclass of options that JSON can hold, so that a worker process (or Beam) rebuilds it from
    its name and those options.
    """

    name: ClassVar[str]

    def provenance(self) -> Mapping[str, Any]:
        """JSON of what decides the records: options, and inputs by the paths given and their sizes."""
        ...

    def units(self) -> Sequence[Mapping[str, Any]]:
        """JSON of pieces of work in a fixed order, each about 64 MB of input; decided by the input alone.

        Where the input says which set its records belong to, a unit says so too: ``part`` is ``train`` or ``test``.

        Raises:
            UsageError: An option is impossible, or there is no such input.
        """
        ...

    def records(self, unit: Mapping[str, Any]) -> Iterator[Record | Rejected]:
        """The records of one unit in a fixed order; nothing that another unit did changes them."""
        ...
