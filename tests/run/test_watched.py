"""Evaluations during training: they are seen everywhere, made up after a kill, and change nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import runs
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "train"))
from test_tensorboard import events

STEPS = 6
FEW = ("evaluate.images=4", "evaluate.questions=4", "evaluate.pictures=2", "evaluate.batch_size=4")


def command(workdir: Path, dataset: Path, every: int) -> list[str]:
    made = runs.train_command(workdir, dataset, f"train.steps={STEPS}", f"evaluate.every_steps={every}", *FEW)
    return [*(part.replace("tensorboard=false", "tensorboard=true") for part in made), "--config.evaluate.at_end=true"]


@pytest.fixture(scope="module")
def watched(dataset, tmp_path_factory) -> tuple[Path, str]:
    """A run that is evaluated after steps 2 and 4, and at its end."""
    workdir = tmp_path_factory.mktemp("watched") / "run"
    return workdir, runs.finish(runs.start(command(workdir, dataset, 2)))


def evaluated(workdir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (workdir / "evals.jsonl").read_text().splitlines()]


def test_evaluations_are_on_screen_in_files_and_in_tensorboard(watched):
    workdir, said = watched
    assert evaluated(workdir) == [2, 4, 6]
    assert all(f"step {step}\n" in said for step in (2, 4, 6))
    assert (workdir / "evaluations" / "2" / "samples.png").read_bytes().startswith(b"\x89PNG")
    found = [(event.step, value) for event in events(workdir) for value in event.summary.value]
    named = {(step, value.tag): value for step, value in found if value.tag.startswith("eval/")}
    rows = [json.loads(line) for line in (workdir / "evals.jsonl").read_text().splitlines()]
    cosine = named[4, "eval/generation/free_cosine"].simple_value
    assert cosine == pytest.approx(rows[1]["generation"]["free_cosine"], rel=1e-6)
    picture = named[2, "eval/samples.png"].image
    assert picture.encoded_image_string == (workdir / "evaluations" / "2" / "samples.png").read_bytes()
    assert (picture.width, picture.height) == Image.open(workdir / "evaluations" / "2" / "samples.png").size


def test_the_run_is_the_same_without_them_and_its_time_is_accounted_for(watched, dataset, tmp_path):
    runs.finish(runs.start(command(tmp_path / "plain", dataset, 0)))
    assert not (tmp_path / "plain" / "evals.jsonl").exists()
    assert runs.metrics(watched[0]) == runs.metrics(tmp_path / "plain")
    last = json.loads((watched[0] / "events.jsonl").read_text().splitlines()[-1])
    assert last["seconds"]["evaluate"] > 0


@pytest.mark.slow
def test_an_evaluation_that_was_cut_off_is_made_up(dataset, tmp_path):
    workdir = tmp_path / "run"
    process = runs.start(command(workdir, dataset, 4))
    saved = workdir / "checkpoints" / "4"
    assert runs.wait_until(saved.exists, process)
    process.kill()
    process.communicate()
    assert not (workdir / "evals.jsonl").exists()
    runs.finish(runs.start(command(workdir, dataset, 4)))
    assert evaluated(workdir) == [4, 6]


@pytest.mark.slow
def test_on_several_hosts_the_others_wait(dataset, tmp_path):
    watched, plain = (tmp_path / name for name in ("watched", "plain"))
    runs.finish(runs.launch(2, 2, command(watched, dataset, 2)))
    runs.finish(runs.launch(2, 2, command(plain, dataset, 0)))
    assert evaluated(watched) == [2, 4, 6]
    assert runs.metrics(watched) == runs.metrics(plain)
