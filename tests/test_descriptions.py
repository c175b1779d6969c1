"""Every config key has a description, which ``unihetero config`` and ``docs/config.md`` print."""

import dataclasses

import pytest

from unihetero_jax.config import Config
from unihetero_jax.config.descriptions import descriptions, summary
from unihetero_jax.config.tree import fields_of
from unihetero_jax.train.towers.base import TRAINED_TOWERS


def reachable(section: type, found: dict[type, None]) -> None:
    """Add a section and all below it, of every kind that could be chosen."""
    if section in found:
        return
    found[section] = None
    for field in fields_of(section).values():
        if not (field.is_section or field.table):
            continue
        registry = field.registry
        kinds = [field.type] if registry is None else [registry.config(kind) for kind in registry.kinds()]
        for inner in kinds:
            reachable(inner, found)


def sections() -> list[type]:
    found: dict[type, None] = {}
    for root in (Config, *map(TRAINED_TOWERS.config, TRAINED_TOWERS.kinds())):
        reachable(root, found)
    return sorted(found, key=lambda section: f"{section.__module__}.{section.__name__}")


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_key_of_a_section_is_described(section):
    texts = descriptions(section)
    assert [name for name in fields_of(section) if not texts.get(name)] == []
    assert summary(section)


def test_a_description_is_the_nearest_attributes_block_and_one_line():
    @dataclasses.dataclass
    class Base:
        """A section.

        Attributes:
          size: of the base,
            on two lines.
          other: stays.
        """

        size: int = 1
        other: int = 2

    @dataclasses.dataclass
    class Derived(Base):
        """Another section, with a paragraph.

        And a second one.

        Attributes:
          size: its own.
          unknown: no field.
        """

        size: int = 3

    assert descriptions(Base) == {"size": "of the base, on two lines.", "other": "stays."}
    assert descriptions(Derived) == {"size": "its own.", "other": "stays."}
    assert summary(Derived) == "Another section, with a paragraph.\n\nAnd a second one."
