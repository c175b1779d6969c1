"""What every test shares: eight fake devices, compiled programs, tiny datasets, tiny models with random parameters."""

# ruff: noqa: E402 - jax reads the environment when it is imported.

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_SHARED = "UNIHETERO_TESTS_SHARED"

# The first process of the session makes the directory; xdist's workers and the tests' own subprocesses inherit it.
_OWNS_SHARED = _SHARED not in os.environ
if _OWNS_SHARED:
    os.environ[_SHARED] = tempfile.mkdtemp(prefix="unihetero-tests-")
SHARED = Path(os.environ[_SHARED])

import runs

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {runs.QUICK_COMPILATION}"
# The same programs come up in many files and in the processes that they start.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(SHARED / "compilation_cache")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["MPLBACKEND"] = "Agg"

import jax
from tiny_config import random_params, tiny_config

from unihetero_jax.data.smart_watch.builder import build
from unihetero_jax.model.build import define
from unihetero_jax.model.trained_model import Trained
from unihetero_jax.parallel.mesh import evaluation_mesh
from unihetero_jax.tokenizer.sentencepiece import Tokenizer


def pytest_unconfigure(config: pytest.Config) -> None:
    del config
    if _OWNS_SHARED:
        shutil.rmtree(SHARED, ignore_errors=True)
        os.environ.pop(_SHARED, None)


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """The compiled programs of one file are no use to the next, and those of all files take 6 GB."""
    yield
    jax.clear_caches()


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Our own messages while a test runs, whatever else listens to them."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    ours = logging.getLogger("unihetero_jax")
    level = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    yield lines
    ours.removeHandler(handler)
    ours.setLevel(level)


@pytest.fixture(scope="session")
def dataset() -> Path:
    """The dataset of ``fixtures/tiny.py``, 200 training images; built once a session whichever worker comes first."""
    return runs.build_dataset(SHARED / "data")


@pytest.fixture(scope="session")
def watch_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 16 training and 8 test images of 32 px, every question about each."""
    root = tmp_path_factory.mktemp("watch") / "data"
    build(root, num_images=16, test_images=8, image_size=32, seed=0, questions="all", workers=1)
    return root


@pytest.fixture(scope="session")
def make_trained(watch_data: Path) -> Callable[..., Trained]:
    """(devices, config changes as ``**{"section.key": value}``) → a model of two layers with random parameters."""

    def make(devices: int = 1, **changes: Any) -> Trained:
        config = tiny_config(**changes)
        tokenizer = Tokenizer.load(watch_data / "tokenizer.model")
        model = define(config, tokenizer.vocabulary_size)
        mesh = evaluation_mesh(config.evaluate.batch_size, jax.devices()[:devices])
        params = jax.device_put(random_params(model.shapes()), model.shardings(mesh))
        return Trained(config, model, params, tokenizer, 7, mesh, watch_data)

    return make


@pytest.fixture(scope="session")
def trained(make_trained: Callable[..., Trained]) -> Trained:
    """The tiny model as it is by default: mixed training, semantic and pixel heads."""
    return make_trained()
