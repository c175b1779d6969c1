"""What every computing verb does first: logging, and the cache of compiled programs."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path


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
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def cache_compilations(workdir: Path) -> None:
    """Cache compiled programs in the workdir, so that a restart does not compile; the environment's own cache wins."""
    import jax  # only here: verbs that set up logging alone start faster without it

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str((workdir / "compilation_cache").absolute()))
