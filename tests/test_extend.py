"""The manual's page on extensions: files outside the package, and commands that train, evaluate and draw with them.

One component of each kind takes part in every run: tower, loss with a head, evaluator, source, importer, optimizer,
attention.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import runs
from PIL import Image

PAGE = (runs.ROOT / "docs" / "extend.md").read_text("utf-8")
FILES = dict(re.findall(r"^```python\n# my_lab/(\w+\.py)\n(.*?)^```$", PAGE, re.M | re.S))
STEPS, EVERY = 24, 4

# What makes the page's run small; some of it in the sections of the page's own components.
SMALL = (
    *("data.image_size=32", "data.seq_len=128", "data.images_per_row=2", "data.sources.mine.records=60"),
    *("model.understanding_tower.width=24", "model.decoder.width=32", "model.decoder.mlp_width=64"),
    *("model.decoder.layers=2", "model.decoder.heads=4", "model.decoder.kv_heads=2", "model.decoder.dtype=float32"),
    *("losses.pixel.width=32", "losses.sharpness.weight=0.2", "optimizer.beta2=0.99", "logging.tensorboard=false"),
    *(f"train.steps={STEPS}", f"checkpoint.every_steps={EVERY}", "train.batch_size=8", "evaluate.at_end=false"),
    *("evaluate.questions=4", "evaluate.images=4", "evaluate.batch_size=8", "evaluators.colors.images=3"),
    *("evaluators.vqa=none", "evaluators.generation=none"),
)


def _commands() -> Iterator[list[str]]:
    """The arguments of each ``unihetero`` command of the page."""
    for block in re.findall(r"^```bash\n(.*?)^```$", PAGE, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            name, *arguments = shlex.split(line)
            assert name == "unihetero", line
            yield arguments


IMPORT, TRAIN, EVAL, GENERATE = _commands()


def command(arguments: list[str], workdir: str) -> list[str]:
    """A command of the page, about another workdir; small, if it is the one that trains."""
    words = [re.sub(r"^--workdir=.*", f"--workdir={workdir}", word) for word in arguments]
    return [*words, *(f"--config.{change}" for change in SMALL)] if arguments is TRAIN else words


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the page's files in ``my_lab``, pictures with captions in ``photos``, and the latter imported."""
    folder = tmp_path_factory.mktemp("extend")
    (folder / "my_lab").mkdir()
    for name, text in FILES.items():
        (folder / "my_lab" / name).write_text(text, "utf-8")
    (folder / "photos").mkdir()
    for number in range(12):
        name, color = f"{number:02}", ("red", "green", "blue")[number % 3]
        Image.new("RGB", (40, 32), color).save(folder / "photos" / f"{name}.png")
        (folder / "photos" / f"{name}.txt").write_text(f"a {color} picture number {number}", "utf-8")
    (folder / "photos" / "07.txt").unlink()
    said = runs.finish(runs.start(IMPORT, cwd=folder))
    assert "11 records (train_caption 11), 1 rejected (missing_text 1)" in said
    return folder


@pytest.fixture(scope="module")
def undisturbed(place) -> Path:
    """The workdir of a run on one device that nothing happened to."""
    runs.finish(runs.start(command(TRAIN, "undisturbed"), cwd=place))
    return place / "undisturbed"


def train_killed(place: Path, name: str, devices: int) -> Path:
    """The workdir of a run that was killed behind its first checkpoint, and started again."""
    workdir, arguments = place / name, command(TRAIN, name)
    process = runs.start(arguments, devices, cwd=place)
    saved = workdir / "checkpoints" / str(EVERY)
    happened = runs.wait_until(lambda: saved.exists() and runs.rows_written(workdir) > EVERY, process)
    assert happened, process.communicate()
    process.kill()
    process.wait()
    assert runs.rows_written(workdir) < STEPS
    runs.finish(runs.start(arguments, devices, cwd=place))
    return workdir


def check_answers(place: Path, workdir: Path, devices: int) -> None:
    """Evaluate the run and let it draw, by the page's commands."""
    said = runs.finish(runs.start(command(EVAL, workdir.name), devices, cwd=place))
    found = json.loads((workdir / "eval.json").read_text("utf-8"))
    assert 0 < found["colors"]["error"] < 255
    assert f"mean color: off by {found['colors']['error']:.1f} of 255" in said
    assert found["losses"]["generation"]["sharpness"] > 0
    with Image.open(workdir / "colors.png") as plot:
        assert plot.size[0] > 100
    runs.finish(runs.start(command(GENERATE, workdir.name), devices, cwd=place))
    with Image.open(place / "red.png") as drawn:
        assert drawn.size == (32, 32)
    (place / "red.png").unlink()


def test_the_page_has_a_file_for_each_kind_of_component():
    registered = re.findall(r"@unihetero_jax\.register_(\w+)", "".join(FILES.values()))
    assert sorted(registered) == ["attention", "evaluator", "importer", "loss", "optimizer", "source", "tower"]


def test_killed_and_resumed_it_is_the_run_that_was_not_and_it_answers(place, undisturbed):
    workdir = train_killed(place, "killed", devices=1)
    runs.assert_identical(workdir, undisturbed)
    names = runs.arrays(workdir, items=["state"]).keys()
    for part in ("understanding_tower", "sharpness_head"):
        assert any(part in name and "nu" in name for name in names), f"{part} is trained, by the page's optimizer"
    assert {"text", "semantic", "pixel", "sharpness"} <= runs.metrics(workdir)[0].keys()
    check_answers(place, workdir, devices=1)


def compare_first_steps(workdir: Path, reference: Path) -> None:
    """Losses of the first steps are the same to rounding, and there are some of each kind of sample."""
    for ours, theirs in zip(runs.metrics(workdir)[:3], runs.metrics(reference)[:3], strict=True):
        for name in ("loss", "text", "semantic", "pixel", "sharpness"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-5, err_msg=name)
            assert theirs[name] > 0


def test_the_first_steps_on_eight_devices_are_those_on_one(place, undisturbed):
    runs.finish(runs.start(command(TRAIN, "eight"), 8, cwd=place))
    compare_first_steps(place / "eight", undisturbed)


@pytest.mark.slow
def test_killed_and_resumed_on_eight_devices_it_answers(place, undisturbed):
    workdir = train_killed(place, "killed_eight", devices=8)
    compare_first_steps(workdir, undisturbed)
    assert runs.metrics(workdir)[-1]["step"] == STEPS
    check_answers(place, workdir, devices=8)


def test_an_unknown_kind_is_one_line_that_names_the_nearest(place):
    arguments = ["config", "my_lab/experiment.py", "--config.optimizer.kind=adabelif"]
    said = runs.finish(runs.start(arguments, cwd=place), code=2)
    expected = "expected one of 'adabelief', 'adamw', 'lion', 'muon'; did you mean 'adabelief'?"
    assert f"optimizer.kind='adabelif': {expected}" in said
    assert said.count("\n") == 1
