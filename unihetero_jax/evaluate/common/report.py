"""What an evaluation leaves: a table for the screen, ``eval.json``, ``evals.jsonl`` and files in the workdir."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unihetero_jax.evaluate.base import Result
from unihetero_jax.files import write_atomic

EVAL = "eval.json"
EVALS = "evals.jsonl"
CURVES = "curves.png"
_DPI = 140


@dataclass(frozen=True)
class Findings:
    """What the evaluators found at one checkpoint.

    Attributes:
      step: of the checkpoint.
      results: by the names of ``config.evaluators``.
    """

    step: int
    results: Mapping[str, Result]

    def to_json(self) -> dict[str, Any]:
        """The numbers by evaluator; None for those that are not finite, which JSON does not have."""
        found = {"step": self.step, **{name: result.numbers for name, result in self.results.items()}}
        return {name: _finite(value) for name, value in found.items()}

    def table(self) -> str:
        """The numbers in columns, for the screen."""
        sections = ["\n".join(result.table) for result in self.results.values() if result.table]
        nothing = "  nothing was evaluated: config.evaluators is empty, or no test records are of the config's tasks"
        return f"step {self.step:,}\n" + ("".join(f"\n{section}\n" for section in sections).rstrip() or nothing)

    def files(self) -> dict[str, Any]:
        """What goes into the workdir, by file name."""
        return {name: content for result in self.results.values() for name, content in result.files.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, np.generic | np.ndarray):
        return _finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_findings(findings: Findings, path: Path) -> None:
    """Write a JSON file that is complete or absent."""
    write_atomic(path, json.dumps(findings.to_json(), indent=1) + "\n")


def append_findings(findings: Findings, path: Path) -> None:
    """Add one line of JSON to a file, on disk when this returns; a line that was cut off before stays by itself."""
    line = (json.dumps(findings.to_json()) + "\n").encode()
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def write_file(content: Any, path: Path) -> None:
    """Write a file of a ``Result``, complete or absent.

    Args:
      content: an image [H, W, 3] uint8, a matplotlib figure, or bytes.
      path: of the file; images and figures are PNG.
    """
    if not isinstance(content, bytes):
        file = io.BytesIO()
        if isinstance(content, np.ndarray):
            Image.fromarray(content).save(file, format="png")
        else:
            content.savefig(file, format="png", dpi=_DPI)
        content = file.getvalue()
    write_atomic(path, content)
