"""What the verbs say on the terminal besides their results."""

from __future__ import annotations

import logging
import sys


def speak() -> None:
    """Our own messages as plain lines on stderr, and of the libraries' only errors."""
    ours = logging.getLogger("unihetero_jax")
    if not ours.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)
        ours.propagate = False
    for library in ("absl", "orbax", "jax"):
        logging.getLogger(library).setLevel(logging.ERROR)
