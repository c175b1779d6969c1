"""The meaning of each config key, read from the docstring of its section.

A section documents its fields in a Google ``Attributes:`` block. A field that a section inherits is documented by the
section it comes from.
"""

from __future__ import annotations

import dataclasses
import inspect
import re


def summary(section: type) -> str:
    """Return the docstring of a section without its ``Attributes:`` block, on one line per paragraph."""
    text = re.split(r"^Attributes:$", _doc(section), flags=re.M)[0]
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    return "\n\n".join(filter(None, paragraphs))


def descriptions(section: type) -> dict[str, str]:
    """Return the meaning of each documented field of a section, on one line."""
    names = {entry.name for entry in dataclasses.fields(section)}
    found: dict[str, str] = {}
    for parent in reversed(section.__mro__):
        if dataclasses.is_dataclass(parent):
            found.update(_attributes(_doc(parent)))
    return {name: text for name, text in found.items() if name in names}


def _doc(section: type) -> str:
    # Not inspect.getdoc, which inherits: a parent's block would be read twice.
    return inspect.cleandoc(section.__dict__.get("__doc__") or "")


def _attributes(doc: str) -> dict[str, str]:
    """Parse a Google ``Attributes:`` block: ``name: text``, continued on lines that are indented further."""
    block = re.search(r"^Attributes:\n((?:[ \t]+\S.*(?:\n|$)|[ \t]*\n)+)", doc, re.M)
    if block is None:
        return {}
    entries = re.split(r"^(?=\w+(?: \([^)]*\))?:)", inspect.cleandoc("\n" + block[1]), flags=re.M)
    pairs = (re.match(r"(\w+)(?: \([^)]*\))?:\s*(.*)", entry, re.S) for entry in entries if entry.strip())
    return {pair[1]: " ".join(pair[2].split()) for pair in pairs if pair is not None}
