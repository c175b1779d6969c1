"""The texts of records before they are tokenised: valid Unicode without what nobody sees."""

from __future__ import annotations

import re

from unihetero_jax.data.records.invalid import InvalidRecord

# A record with more cannot fit a row, and would only cost the time to tokenise it (up to 2 µs a character).
MAX_CHARACTERS = 200_000

_LINE_BREAK = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
# Control characters but tab and newline; spaces without width; what turns the reading direction of others, and can hide
# what a text says (Unicode TR 36, 2.3); interlinear annotation; noncharacters. Joiners stay: many scripts need them.
_UNSEEN = re.compile(
    "[\0-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u200b\u202a-\u202e\u2060\u2066-\u2069\ufdd0-\ufdef\ufeff\ufff9-\ufffb"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17))
    + "]"
)


def read_text(value: str | bytes) -> str:
    """A text as it was stored.

    Raises:
      InvalidRecord: it is not UTF-8, or holds half a surrogate pair.
    """
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        value.encode("utf-8")
        return value
    except UnicodeError as error:
        raise InvalidRecord("invalid", f"text is not UTF-8: {error}") from error


def clean_text(text: str) -> str:
    """A text with a newline for every kind of line break, and without control and other unseen characters.

    What is left out may join what it stood between: look for ``<image>`` before, not after.
    """
    if text.isprintable():  # also no newline; most captions
        return text
    return _UNSEEN.sub("", _LINE_BREAK.sub("\n", text))
