import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from unihetero_jax.checkpoint.restore import DamagedError
from unihetero_jax.errors import UsageError
from unihetero_jax.evaluate import vqa
from unihetero_jax.evaluate.base import Result
from unihetero_jax.evaluate.common import figures, report
from unihetero_jax.evaluate.common.report import Findings
from unihetero_jax.files import json_rows
from unihetero_jax.run import evaluation as main

SCORE = vqa.Score(0.5, 0.25, 0.3, 4)
LOSSES = {"understanding": {"text": 1.5, "by": [1.0, math.nan]}}


def findings(step: int = 7) -> Findings:
    scores = {"weather": SCORE, "total": replace(SCORE, count=2000)}
    return Findings(step, {"vqa": Result({}, vqa.table(scores)), "losses": Result(LOSSES)})


def found_by(trained, changes):
    """What is found with other settings."""
    return main.run_evaluators(main.with_changes(trained, changes))


@pytest.fixture
def workdir(tmp_path):
    rows = [
        {"step": step, "loss": 3 / step, "text": 2 / step, "semantic": None, "grad_norm": 1.0, "learning_rate": 1e-3}
        for step in range(1, 20)
    ]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 20, "lo')
    return tmp_path


def test_everything_at_the_end_of_training(trained, workdir, capsys):
    main.finish(trained, workdir)
    stored = json.loads((workdir / "eval.json").read_text())
    assert list(stored) == ["step", "vqa", "answers", "losses", "generation"]
    assert stored["step"] == 7
    assert list(stored["vqa"]) == ["weather", "time", "position", "battery", "total", "battery_pos", "weather_pos"]
    assert all(set(entry) == {"score", "chance", "constant", "count"} for entry in stored["vqa"].values())
    assert stored["vqa"]["total"]["count"] == 24
    means = {"text", "semantic", "pixel", "cosine", "cosine_by_position"}
    assert set(stored["losses"]) == {"understanding", "generation"}
    assert means == set(stored["losses"]["generation"])
    assert set(stored["losses"]["understanding"]) == {"text"}
    assert stored["generation"]["count"] == 6
    assert len(stored["generation"]["free_cosine_by_position"]) == 16
    for name in ("curves.png", "samples.png"):
        with Image.open(workdir / name) as picture:
            picture.load()
            assert picture.width > 600
    assert sorted(path.name for path in workdir.iterdir()) == [
        "curves.png", "eval.json", "example.png", "metrics.jsonl", "samples.png"
    ]  # fmt: skip
    with Image.open(workdir / "example.png") as picture:
        assert picture.size == (32, 32), "an image to ask about"
    printed = capsys.readouterr().out
    assert str(workdir / "samples.png") in printed
    assert "battery" in printed


def test_evaluators_that_are_removed_leave_nothing_and_those_without_data_are_empty(trained, make_trained):
    off = {"evaluators.vqa": None, "evaluators.losses": None}
    found = main.run_evaluators(make_trained(**off, **{"data.mode": "understanding"}))
    assert found.to_json() == {"step": 7, "answers": {}, "generation": {}}
    found = found_by(trained, {**off, "evaluate.pictures": 0})
    assert found.to_json()["generation"]
    assert found.files() == {}


def test_all_generated_images_are_written_for_other_tools(trained, workdir):
    settings = {"evaluators.generation.save_images": True, "evaluators.vqa": None, "evaluators.losses": None}
    main.write(found_by(trained, settings), workdir, trained.config.losses)
    with np.load(workdir / "drawn.npz") as kept:
        assert kept["drawn"].shape == kept["real"].shape == (6, 32, 32, 3)
        assert kept["drawn"].dtype == np.uint8
        assert np.abs(kept["drawn"].astype(int) - kept["real"]).max() > 10
        assert kept["requests"].shape == (6,)


def test_the_table_has_columns():
    lines = findings().table().splitlines()
    header = next(line for line in lines if "chance" in line)
    total = next(line for line in lines if "total" in line)
    assert len(header) == len(total)
    assert total.split() == ["total", "0.500", "0.250", "0.300", "2,000"]
    for word, value in (("score", "0.500"), ("constant", "0.300"), ("count", "2,000")):
        assert header.index(word) + len(word) == total.index(value) + len(value)


def test_what_is_no_number_is_null(tmp_path):
    report.write_findings(findings(), tmp_path / "eval.json")

    def refuse(constant):
        raise AssertionError(constant)

    stored = json.loads((tmp_path / "eval.json").read_text(), parse_constant=refuse)
    assert stored["losses"] == {"understanding": {"text": 1.5, "by": [1.0, None]}}


def test_smoothing_keeps_a_line_and_removes_noise():
    line = np.linspace(5, 1, 200)
    noise = np.random.default_rng(0).normal(size=200)
    np.testing.assert_allclose(figures.smooth(line)[20:-20], line[20:-20], atol=1e-9)
    assert np.std(figures.smooth(line + noise) - line) < 0.5
    gap = line.copy()
    gap[50] = np.nan
    assert np.isfinite(figures.smooth(gap)).all()


def test_curves_of_a_single_step_and_of_numbers_that_are_none(tmp_path):
    rows = [{"step": 1, "loss": math.inf, "grad_norm": None}]
    report.write_file(figures.curves(rows, ["text"]), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_every_loss_of_the_config_has_a_curve():
    rows = [{"step": step, "loss": 3.0, "text": 2.0, "sharpness": 1.0, "grad_norm": 1.0} for step in (1, 2)]
    axes = figures.curves(rows, ["text", "semantic", "sharpness"]).axes[0]
    lines = {line.get_label(): line.get_color() for line in axes.lines if not line.get_label().startswith("_")}
    assert list(lines) == ["loss", "text", "sharpness"]
    assert len(set(lines.values())) == 3


def test_pictures_of_the_model_are_in_the_grid(tmp_path):
    truth, drawn = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3), np.uint8)
    truth[:] = (250, 10, 10)
    drawn[:] = (10, 10, 250)
    figure = figures.samples(["A $\\frac$ of it. " * 4, "Two"], truth, drawn, 3)
    report.write_file(figure, tmp_path / "samples.png")
    pixels = np.asarray(Image.open(tmp_path / "samples.png").convert("RGB")).reshape(-1, 3)
    for color in ((250, 10, 10), (10, 10, 250)):
        assert (pixels == color).all(axis=1).mean() > 0.1


@pytest.fixture
def run_of_three(monkeypatch, tmp_path, trained):
    """A run that saves steps 1, 2 and 3, of which 1 is dropped while it is read; evaluations cost nothing."""
    there: list[int] = []
    evaluated: list[int] = []

    def load(workdir, step=None):
        if step == 1:
            there.remove(1)
            raise FileNotFoundError("half a checkpoint")
        if not there:
            raise UsageError("no checkpoint")
        return replace(trained, step=there[-1] if step is None else step)

    def evaluate(trained):
        evaluated.append(trained.step)
        assert len(evaluated) < 5
        return findings(trained.step)

    monkeypatch.setattr(main, "load_trained", load)
    monkeypatch.setattr(main, "steps", lambda workdir: list(there))
    monkeypatch.setattr(main, "run_evaluators", evaluate)
    return tmp_path, there, evaluated


def test_following_a_run_evaluates_each_checkpoint_once(run_of_three, capsys):
    workdir, there, evaluated = run_of_three
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 2:  # the run begins only now
            (workdir / "config.json").write_text('{"train": {"steps": 3}}')
            there.extend([1, 2])
        elif len(waits) == 4:
            there.append(3)
        assert len(waits) < 10

    main._follow(workdir, None, sleep)
    assert evaluated == [2, 3]
    assert len(waits) == 4
    assert json.loads((workdir / "eval.json").read_text())["step"] == 3
    assert [json.loads(line)["step"] for line in (workdir / "evals.jsonl").read_text().splitlines()] == [2, 3]
    main._follow(workdir, None, sleep)
    assert evaluated == [2, 3]
    assert "complete" in capsys.readouterr().out


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path):
    path = tmp_path / "evals.jsonl"
    report.append_findings(findings(1), path)
    with path.open("a") as file:
        file.write('{"step": 2, "vq')
    report.append_findings(findings(3), path)
    report.append_findings(findings(4), path)
    assert [row["step"] for row in json_rows(path)] == [1, 3, 4]


def test_a_checkpoint_that_cannot_be_read_stops_following(run_of_three, monkeypatch):
    workdir, there, _ = run_of_three
    there.append(2)

    def broken(workdir, step=None):
        raise UsageError("another model's checkpoint")

    def sleep(seconds):
        raise AssertionError("it waits for a better one")

    monkeypatch.setattr(main, "load_trained", broken)
    with pytest.raises(UsageError, match="another model"):
        main._follow(workdir, None, sleep)


def test_a_damaged_checkpoint_is_said_and_left_out_until_it_is_another(run_of_three, monkeypatch, capsys):
    workdir, there, evaluated = run_of_three
    (workdir / "config.json").write_text('{"train": {"steps": 4}}')
    load, bad = main.load_trained, {2, 4}
    for step in (2, 3, 4):
        (workdir / "checkpoints" / str(step)).mkdir(parents=True)
    there.extend([2, 3])

    def check(workdir, step=None):
        if step in bad:
            raise DamagedError(f"checkpoints/{step}: damaged: state/a: 3 bytes, not 4")
        return load(workdir, step)

    def sleep(seconds):
        # Training went on from 1: the damaged one is moved away, and written anew.
        (workdir / "checkpoints" / "2").rename(workdir / "bad")
        (workdir / "checkpoints" / "2").mkdir()
        bad.discard(2)
        there.append(4)

    monkeypatch.setattr(main, "load_trained", check)
    with pytest.raises(UsageError, match=r"last step's checkpoint .* checkpoints/4: damaged"):
        main._follow(workdir, None, sleep)
    assert evaluated == [3, 2]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not evaluated")]
    assert [line.split(":")[:2] for line in said] == [
        ["not evaluated", " checkpoints/2"],
        ["not evaluated", " checkpoints/4"],
    ]


def test_one_checkpoint_with_a_copy_of_the_scores(run_of_three, tmp_path):
    workdir, there, evaluated = run_of_three
    there.extend([2, 3])
    out = tmp_path / "copy.json"
    found = main.run(workdir, 2, out=out)
    assert evaluated == [2]
    assert out.read_text() == (workdir / "eval.json").read_text()
    assert json.loads(out.read_text()) == found
    with pytest.raises(UsageError, match="nowhere"):
        main.run(workdir, 2, out=tmp_path / "nowhere" / "copy.json")
