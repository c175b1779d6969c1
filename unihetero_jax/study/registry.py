"""The studies there are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from unihetero_jax.config import user_files
from unihetero_jax.errors import UsageError, nearest
from unihetero_jax.study.declaration import Study
from unihetero_jax.study.studies import (
    alignment,
    input_or_output,
    llava,
    mutual_benefit,
    real_world,
    scaling,
    semantics_or_pixels,
    transfer,
)

STUDIES = {
    module.STUDY.name: module.STUDY
    for module in (
        mutual_benefit,
        alignment,
        transfer,
        scaling,
        semantics_or_pixels,
        input_or_output,
        real_world,
        llava,
    )
}


def find(name: str) -> Study:
    """The study of a name; or, of a path that ends with ``.py``, the one that the file calls ``STUDY``.

    Raises:
      UsageError: there is none; names the nearest.
    """
    if name.endswith(".py"):
        found = user_files.attribute(Path(name), "STUDY")
        if not isinstance(found, Study):
            raise UsageError(f"{name}: STUDY is {type(found).__name__}: expected unihetero_jax.study.declaration.Study")
        if found.name in STUDIES:
            raise UsageError(f"{name}: STUDY is called {found.name!r}, as one of ours is: expected another name")
        return dataclasses.replace(found, file=name)
    if name not in STUDIES:
        raise UsageError(
            f"no study {name!r}: expected {', '.join(STUDIES)} or a FILE.py with STUDY{nearest(name, STUDIES)}"
        )
    return STUDIES[name]
