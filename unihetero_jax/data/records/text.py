"""Clean the texts of records before they are tokenized: valid Unicode without invisible characters."""

from __future__ import annotations

import re

from unihetero_jax.data.records.invalid import InvalidRecord

# A longer record cannot fit a row, and tokenizing it would only cost time (up to 2 µs per character).
MAX_CHARACTERS = 200_000

_LINE_BREAK = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
# Control characters except tab and newline; zero-width spaces; bidirectional controls, which can hide what a text says
# (Unicode TR 36, 2.3); interlinear annotation; noncharacters. Joiners stay: many scripts need them.
_INVISIBLE = re.compile(
    "[\0-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u200b\u202a-\u202e\u2060\u2066-\u2069\ufdd0-\ufdef\ufeff\ufff9-\ufffb"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17))
    + "]"
)


def read_text(value: str | bytes) -> str:
    """Return a stored text as a ``str``.

    Raises:
        InvalidRecord: The text is not UTF-8, or contains half a surrogate pair.
    """
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        value.encode("utf-8")
        return value
    except UnicodeError as error:
        raise InvalidRecord("invalid", f"text is not UTF-8: {error}") from error


def clean_text(text: str) -> str:
    """Replace every kind of line break by a newline, and remove control and other invisible characters.

    Removing a character joins its neighbors, so search for ``<image>`` before cleaning, not after.
    """
    if text.isprintable():  # so without a newline; most captions are
        return text
    return _INVISIBLE.sub("", _LINE_BREAK.sub("\n", text))
