"""Load grain's ``index_shuffle`` without the rest of grain.

Importing grain imports JAX: seconds and hundreds of megabytes for each process that only reads records. The shuffle is
a compiled module that needs neither.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from typing import Any

_MODULE = "grain._src.python.experimental.index_shuffle.python.index_shuffle_module"


def _load() -> Any:
    """Find the compiled module without running any package's ``__init__``; if it has moved, use its public name."""
    if _MODULE in sys.modules:
        return sys.modules[_MODULE]
    package, *folders, _ = _MODULE.split(".")
    found = importlib.util.find_spec(package)
    roots = [] if found is None else found.submodule_search_locations or []
    spec = importlib.machinery.PathFinder.find_spec(_MODULE, [str(Path(root, *folders)) for root in roots])
    if spec is None or spec.loader is None:
        # Slow, and imports JAX: only where the compiled module is not where it was.
        import grain.experimental

        return grain.experimental
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # A compiled module must not be initialized twice: a later import of grain uses this one.
    sys.modules[_MODULE] = module
    return module


index_shuffle = _load().index_shuffle
