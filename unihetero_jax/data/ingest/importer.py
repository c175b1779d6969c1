"""Importer: reads someone's files as records; the driver (`unihetero_jax.data.ingest.write`) stores them.

An importer is a frozen dataclass of options that JSON can hold, so that a worker process (or Beam) makes it again from
its name and those options. It is registered under its name, and declares its options for the command line:

    @IMPORTERS.register("lines")
    @dataclass(frozen=True)
    class LineImporter(Importer):
        name = "lines"
        summary = "texts, one per line"
        file: str = option(metavar="FILE", help="the text file", positional=True)
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from unihetero_jax.config.components import IMPORTERS
from unihetero_jax.data.records.record import IMAGE_TOKEN, Record

# Replaces a literal ``<image>`` in someone's text: the placeholder must stand for an image.
ESCAPED_IMAGE = "< image >"
# Input of a unit of work, about, in bytes.
UNIT_BYTES = 64_000_000
# Images and texts of a record, unless --max_record_mb says otherwise. An Example must stay below protobuf's 2 GB.
MAX_RECORD_MB = 64


def escape(text: str) -> str:
    """Return someone's text with every literal ``<image>`` escaped."""
    return text.replace(IMAGE_TOKEN, ESCAPED_IMAGE)


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A record that is left out.

    Attributes:
        key: Key of the record, or of the place where it should have been.
        reason: The counter that it falls under, in snake case, such as ``missing_image``.
        detail: Explanation for the user; not counted.
    """

    key: str
    reason: str
    detail: str = ""


class Refused(Exception):
    """Raised where a record cannot be imported.

    Attributes:
        reason: The counter that it falls under, see `Rejected`.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason

    def of(self, key: str) -> Rejected:
        """Return the ``Rejected`` of the record with this key, or at this place."""
        return Rejected(key, self.reason, str(self))


def attempt(place: str, make: Callable[..., Record], *arguments: Any) -> Record | Rejected:
    """Return what ``make`` returns, or the ``Rejected`` of the place in the input for the record that it refuses."""
    try:
        return dataclasses.replace(make(*arguments), place=place)
    except Refused as refused:
        return refused.of(place)
    except RecursionError:
        return Rejected(place, "nested_too_deep", "expected values nested at most a few hundred deep")


@dataclasses.dataclass(frozen=True)
class Option:
    """How the command line sets a field of an importer; see `option`."""

    metavar: str
    help: str
    flag: str = ""
    parse: Callable[[str], Any] = str
    positional: bool = False
    many: bool = False
    exists: Literal["", "file", "directory"] = ""
    without_value: Any = None
    limits: tuple[float, float] | None = None


def option(default: Any = dataclasses.MISSING, **about: Any) -> Any:
    """Declare a dataclass field that the command line can set.

    Args:
        default: Default of the field; without, the option is required.
        **about: Fields of an `Option`: ``metavar`` and ``help`` as in argparse; ``flag``, the name of the flag where it
            differs from the field's; ``parse``, which converts the text; ``positional``; ``many``, for any number of
            positional values; ``exists``, ``"file"`` or ``"directory"`` that must be there; ``without_value``, the
            value of a flag that is given without one; ``limits``, of a number.
    """
    return dataclasses.field(default=default, metadata={"option": Option(**about)})


def names(text: str) -> tuple[str, ...]:
    """Parse a list separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


class Importer(abc.ABC):
    """Someone's files as records.

    Attributes:
        name: Name under which the importer is registered.
        summary: What it imports, for ``unihetero data import --help``.
        examples: Command lines, for its own ``--help``.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    examples: ClassVar[str] = ""

    @abc.abstractmethod
    def provenance(self) -> Mapping[str, Any]:
        """Return JSON of everything that decides the records: options, and inputs by their paths and sizes."""

    @abc.abstractmethod
    def units(self) -> Sequence[Mapping[str, Any]]:
        """Return JSON of pieces of work in a fixed order, each about 64 MB of input; decided by the input alone.

        Where the input says which set its records belong to, a unit says so too: ``part`` is ``train`` or ``test``.

        Raises:
            UsageError: An option is impossible, or there is no such input.
        """

    @abc.abstractmethod
    def records(self, unit: Mapping[str, Any]) -> Iterator[Record | Rejected]:
        """Yield the records of one unit in a fixed order that does not depend on other units.

        The driver adds ``max_bytes`` to the unit: a record with more bytes than that should be left out unread.
        """

    @staticmethod
    def max_bytes(unit: Mapping[str, Any]) -> int:
        """Return the most bytes of a record, as the driver or the default says."""
        return int(unit.get("max_bytes", MAX_RECORD_MB * 1_000_000))

    def options(self) -> dict[str, Any]:
        """Return the options, from which `rebuild` makes the importer again."""
        assert dataclasses.is_dataclass(self)
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def rebuild(name: str, options: Mapping[str, Any]) -> Importer:
    """Return the importer of that name with those options, which may have been JSON since."""
    importer: Importer = IMPORTERS.find(name)(**{key: _frozen(value) for key, value in options.items()})
    return importer


def _frozen(value: Any) -> Any:
    """Convert lists to tuples, which JSON does not have."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
