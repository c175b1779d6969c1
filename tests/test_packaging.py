"""The experiments of configs/ are found by name, whichever way the package is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import runs

_BUILT = ("setup.py", "pyproject.toml", "README.md", "unihetero_jax", "configs")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the source tree, in which a build leaves its traces."""
    place = tmp_path_factory.mktemp("checkout")
    for name in _BUILT:
        source = runs.ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place / name)
    return place


@pytest.mark.slow
@pytest.mark.parametrize(("way", "inside"), [("build_wheel", "site"), ("build_editable", "checkout")])
def test_an_experiment_is_found_by_name(way, inside, checkout, tmp_path):
    # What pip does for `pip install .` and `pip install -e .`.
    build = f"import setuptools.build_meta as backend; print(backend.{way}({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", build], cwd=checkout, capture_output=True, text=True, check=True)
    site = tmp_path / "site"
    zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]).extractall(site)
    load = f"""
import site
site.addsitedir({str(site)!r})
import unihetero_jax
from unihetero_jax.config.experiments import find_experiment
assert unihetero_jax.config.load("quickstart").train.steps > 0
assert unihetero_jax.config.load("pairings/vq_vq", {{"train.steps": 3}}).train.steps == 3
print(find_experiment("quickstart"))
"""
    # Dependencies come from here, the package does not: an editable install is not found by PYTHONPATH.
    path = os.pathsep.join([str(site), sysconfig.get_path("purelib")])
    environment = os.environ | {"PYTHONPATH": path}
    found = subprocess.run(
        [sys.executable, "-S", "-c", load], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).is_relative_to(site if inside == "site" else checkout)
