"""The manual's page on grain datasets: its files, its Python, and a run that is killed, continued and evaluated."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
from test_extend import SMALL

from unihetero_jax import data
from unihetero_jax.config import resolve, user_files
from unihetero_jax.data.sources.grain import GrainConfig
from unihetero_jax.errors import UsageError

PAGE = (runs.ROOT / "docs" / "howto" / "grain.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
FILES = {block.split("\n", 1)[0].removeprefix("# "): block for block in BLOCKS if block.startswith("# ")}
(PYTHON,) = (block for block in BLOCKS if block.startswith("import grain"))
CHANGES = [
    change for change in SMALL if ".sharpness." not in change and "optimizer" not in change and "mine" not in change
]
CHANGES = [change for change in CHANGES if "colors" not in change]


@pytest.fixture(scope="module")
def place(tmp_path_factory, dataset) -> Path:
    """A folder with the page's files, and a stored dataset."""
    folder = tmp_path_factory.mktemp("grain")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    (folder / "data").mkdir()
    (folder / "data" / "cc12m").symlink_to(dataset, target_is_directory=True)
    return folder


def test_the_example_of_the_page_runs_as_written(place):
    code = PYTHON + "it.set_state(state); again = next(it); it.close(); print(len(state['drawn']), *sorted(batch))\n"
    paths = os.pathsep.join([str(place), str(runs.ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=place,
        env=runs.environment() | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=runs.PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    size, *names = done.stdout.split()
    assert int(size) > 1
    assert {"tokens", "images", "segment"} <= set(names)


def train(place: Path, name: str, *more: str) -> list[str]:
    return ["train", "--config=squares.py", f"--workdir={name}", *(f"--config.{c}" for c in (*CHANGES, *more))]


def test_a_run_on_a_users_dataset_goes_on_and_is_evaluated(place):
    whole, killed = place / "whole", place / "killed"
    runs.finish(runs.start(train(place, "whole", "data.workers=2"), cwd=place))
    process = runs.start(train(place, "killed", "data.workers=2"), cwd=place)
    assert runs.wait_until(lambda: (killed / "checkpoints" / "4" / "_CHECKPOINT_METADATA").exists(), process)
    process.kill()
    process.communicate()
    module = place / "my_lab" / "data.py"
    said = FILES["my_lab/data.py"]
    try:
        module.write_text(said.replace("> 50", "> 60"), "utf-8")
        refused = runs.finish(runs.start(train(place, "killed"), cwd=place), code=2)
        assert "my_lab.data has changed since killed was started" in refused
    finally:
        module.write_text(said, "utf-8")
    refused = runs.finish(runs.start(train(place, "killed", "data.sources.mine.version=2"), cwd=place), code=2)
    assert "data.sources.mine.version ('' → '2')" in refused
    runs.finish(runs.start(train(place, "killed", "data.workers=-1"), cwd=place))
    assert runs.metrics(killed) == runs.metrics(whole)
    assert runs.metrics(whole)[-1]["filtered"] > 0
    ours, theirs = runs.arrays(killed), runs.arrays(whole)
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        np.testing.assert_array_equal(array, theirs[path], err_msg=path)
    said = runs.finish(runs.start(["eval", "--workdir=killed"], cwd=place))
    assert "mine/vqa, F1" in said


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The current folder of a process that forgets what it imported from there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(user_files, "_imported", {})
    return tmp_path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"config.data.sources.mine.dataset='': expected MODULE:FUNCTION, such as 'my_lab.data:make'"),
        ({"dataset": "my_lab/data.py:make"}, "expected MODULE:FUNCTION"),
        (
            {"dataset": "no_lab.data:make"},
            r"config.data.sources.mine.dataset: no_lab.data cannot be imported: .*no_lab",
        ),
        ({"dataset": "page_data:mak"}, r"no function mak in page_data; did you mean 'make'"),
        ({"dataset": "page_data:make", "tasks": "vqa"}, "unknown config key config.data.sources.mine.tasks"),
    ],
)
def test_what_is_wrong_with_a_users_function_is_named(here, values, message):
    (here / "page_data.py").write_text(FILES["my_lab/data.py"], "utf-8")
    with pytest.raises(UsageError, match=message):
        resolve({"data": {"sources": {"mine": {"kind": "grain", **values}}}})


def test_a_function_may_return_one_dataset_and_nothing_else(here, dataset):
    (here / "page_more.py").write_text(
        FILES["my_lab/data.py"] + "\n\ndef one():\n    return make()['train_vqa']\n\n\ndef none():\n    return 7\n\n\n"
        "def odd():\n    return {'validation': make()['test_vqa']}\n",
        "utf-8",
    )
    config = resolve({"data": {"sources": {"mine": {"kind": "grain", "dataset": "page_more:one", "task": "caption"}}}})
    assert config.data.sources["mine"] == GrainConfig(dataset="page_more:one", task="caption")
    assert config.modules == ("page_more",)
    [entry] = data.open_mixture(config, dataset).entries
    assert (entry.name, len(entry.records)) == ("mine/caption", 270)
    for name, message in (("none", "page_more:none: a int for train_vqa"), ("odd", "a split 'validation'")):
        config = resolve({"data": {"sources": {"mine": {"kind": "grain", "dataset": f"page_more:{name}"}}}})
        with pytest.raises(UsageError, match=message):
            data.open_mixture(config, dataset)
