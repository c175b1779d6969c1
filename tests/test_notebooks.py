"""The notebooks run from top to bottom; and what is stored with them is whole."""

from __future__ import annotations

import os
from pathlib import Path

import nbclient
import nbformat
import pytest
import runs

NOTEBOOKS = sorted((runs.ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run that has all that the quickstart's has, of the smallest model."""
    workdir = tmp_path_factory.mktemp("notebooks") / "run"
    options = ("train.steps=20", "evaluate.at_end=true", "evaluate.questions=12", "evaluate.images=4")
    runs.finish(runs.start(runs.train_command(workdir, runs.build_dataset(workdir.parent / "data"), *options)))
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, trained, monkeypatch):
    for name, value in (runs.environment() | {"UNIHETERO_RUN": os.fspath(trained)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPLBACKEND", raising=False)  # figures into the notebook, as for its reader
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count, cell.outputs = None, []
    nbclient.NotebookClient(notebook, timeout=runs.PATIENCE_S, kernel_name="python3").execute(cwd=path.parent)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    # It shows as many pictures as the stored one.
    stored = nbformat.read(path, as_version=4)
    assert _pictures(notebook) == _pictures(stored)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_its_pictures(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert _pictures(notebook)
    assert not any(output.output_type == "error" for output in outputs)
    text = path.read_text(encoding="utf-8")
    assert "/root/" not in text
    assert "/home/" not in text


def _pictures(notebook) -> int:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)
