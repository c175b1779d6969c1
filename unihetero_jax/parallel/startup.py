"""What every computing verb does first: logging, and the cache of compiled programs."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

_HUGE_PAGES = "glibc.malloc.hugetlb=1"


def set_up_logging() -> None:
    """Log our own messages as plain lines on stderr, and only errors of the libraries."""
    ours = logging.getLogger("unihetero_jax")
    if not ours.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)
        ours.propagate = False
    for library in ("absl", "orbax", "jax"):
        logging.getLogger(library).setLevel(logging.ERROR)


def end_with_parent(end: Callable[[], None]) -> None:
    """Call ``end`` when the parent process, which holds this one's standard input open, has exited in any way."""

    def watch() -> None:
        # Not `sys.stdin`: this thread would hold its lock when the interpreter exits, which then aborts.
        while os.read(0, 1):
            pass
        end()

    threading.Thread(target=watch, daemon=True).start()


def use_huge_pages() -> None:
    """Start this process again with huge pages for large allocations, which glibc reads only at the start.

    On CPU, XLA takes its temporary memory anew each step; in 4 KiB pages the kernel's clearing of them costs about a
    quarter of a step. Without glibc the variable means nothing; one that is set already is left alone.
    """
    if not huge_pages_chosen():
        os.environ["GLIBC_TUNABLES"] = _HUGE_PAGES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def huge_pages_chosen() -> bool:
    """Return whether the environment says something about huge pages, or nothing needs to be said."""
    return sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ


def hint_at_huge_pages() -> None:
    """Log what a Python process on CPU lacks that the command line has; it cannot be set after the start."""
    if not huge_pages_chosen():
        log.info("a step on CPU is about a quarter faster if Python is started with GLIBC_TUNABLES=%s", _HUGE_PAGES)


def cache_compilations(workdir: Path) -> None:
    """Cache compiled programs in the workdir, so that a restart does not compile; the environment's own cache wins."""
    import jax  # only here: verbs that set up logging alone start faster without it

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str((workdir / "compilation_cache").absolute()))
