"""Errors meant for the person who typed, not for a programmer."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """Something the user gave is wrong: a flag, a config value, a file.

    The message is one line that names what was wrong, what was expected and, where there is one, the nearest valid
    name. The command line prints it without a traceback and exits with code 2.
    """


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint such as ``; did you mean 'steps'?``, or an empty string when nothing is close."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
