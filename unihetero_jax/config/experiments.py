"""The experiments of ``configs/``, found by name, from a checkout and from an installed package."""

from __future__ import annotations

import os
from pathlib import Path

from unihetero_jax.errors import UsageError, nearest

_PACKAGE = Path(__file__).resolve().parents[1]
# In a checkout ``configs/`` is beside the package; a wheel carries it inside.
_FOLDERS = (_PACKAGE / "experiments", _PACKAGE.parent / "configs")


def experiments() -> dict[str, Path]:
    """List the experiments that come with the package: files by name, ``quickstart`` or ``pairings/siglip_vq``."""
    folder = next((place for place in _FOLDERS if place.is_dir()), None)
    if folder is None:
        return {}
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(folder.rglob("*.py"))}


def find_experiment(name: str | os.PathLike[str]) -> Path:
    """Return the file that ``--config`` names: a path, or the name of one of ``experiments``.

    Raises:
      UsageError: a name that is neither; names the nearest.
    """
    path = Path(name).expanduser()
    if path.suffix in (".py", ".json") or path.exists():
        return path
    known = experiments()
    if path.as_posix() in known:
        return known[path.as_posix()]
    raise UsageError(
        f"--config={path}: no such file or experiment: expected a Python file with get_config(), the config.json of a "
        f"run, or one of {', '.join(known) or 'no experiments (configs/ is not installed)'}{nearest(str(path), known)}"
    )
