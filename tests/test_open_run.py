"""The Python door of a run: what a notebook reads, and what it is told where there is nothing."""

from __future__ import annotations

import json
import sys

import jax
import numpy as np
import pytest
import runs

import unihetero_jax
from unihetero_jax.errors import UsageError


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    place = tmp_path_factory.mktemp("opened")
    data = runs.build_dataset(place / "data")
    runs.finish(runs.start(runs.train_command(place / "run", data, "train.steps=6", "checkpoint.keep_every=5")))
    return place / "run"


def test_a_run_is_read(workdir):
    run = unihetero_jax.open_run(str(workdir))
    assert run.config.train.steps == 6
    assert run.steps == [5, 6]
    metrics = run.metrics()
    assert list(metrics.index) == list(range(1, 7))
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert metrics["loss"].tolist() == [row["loss"] for row in rows]
    assert metrics["timing.step_seconds"].tolist() == [row["timing"]["step_seconds"] for row in rows]


def test_parameters_are_those_of_a_checkpoint(workdir):
    run = unihetero_jax.open_run(workdir)
    newest, older = run.params(), run.params(5)
    trained = jax.tree.map(np.asarray, run.trained().params)
    assert jax.tree.all(jax.tree.map(np.array_equal, newest, trained))
    assert not jax.tree.all(jax.tree.map(np.array_equal, newest, older))


def test_it_answers(workdir):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    assert len(unihetero_jax.open_run(workdir).predictor().answer(images, ["What time is it?"] * 2)) == 2


def test_evaluations_have_dotted_columns(workdir, tmp_path):
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    run = unihetero_jax.open_run(tmp_path)
    with pytest.raises(UsageError, match=r"eval.json: no such file: run `unihetero eval"):
        run.evaluation()
    found = {"step": 3, "vqa": {"time": {"score": 0.5}}, "losses": {"by_position": [1, 2]}}
    (tmp_path / "eval.json").write_text(json.dumps(found))
    assert run.evaluation() == found
    assert run.evaluations().loc[3].to_dict() == {"vqa.time.score": 0.5}
    (tmp_path / "eval.json").write_text("{}")
    with pytest.raises(UsageError, match=r"eval.json: holds no rows yet"):
        run.evaluations()
    later = {**found, "step": 6, "vqa": {"time": {"score": 0.75}}}
    (tmp_path / "evals.jsonl").write_text(json.dumps(found) + "\n" + json.dumps(later) + '\n{"step": 9, "vq')
    assert run.evaluations()["vqa.time.score"].to_dict() == {3: 0.5, 6: 0.75}


def test_what_is_missing_is_said(tmp_path, workdir, monkeypatch):
    with pytest.raises(UsageError, match="nothing: no such directory; expected the --workdir"):
        unihetero_jax.open_run(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"has no config.json"):
        unihetero_jax.open_run(tmp_path)
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    with pytest.raises(UsageError, match=r"metrics.jsonl: no such file; has the run got that far\?"):
        unihetero_jax.open_run(tmp_path).metrics()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="need pandas: pip install"):
        unihetero_jax.open_run(workdir).metrics()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("[]", "config.json: holds no JSON object: expected the config of a run"),
        ("null", "config.json: holds no JSON object"),
        ('{"data": {', "config.json: cannot be read"),
        ('{"kind": []}', r"config.kind=\[\]: expected"),
        ('{"kind": "siglop"}', "config.kind='siglop': expected .*did you mean 'siglip'"),
    ],
)
def test_a_damaged_config_is_one_line(tmp_path, content, complaint):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=complaint):
        _ = unihetero_jax.open_run(tmp_path).config
    with pytest.raises(UsageError, match=r"config.json: no directory; expected the --workdir"):
        unihetero_jax.open_run(tmp_path / "config.json")


def test_torn_metrics_are_left_out(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    run = unihetero_jax.open_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo\xc3')
    assert run.metrics()["loss"].to_dict() == {1: 2.0}
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(UsageError, match=r"metrics.jsonl: holds no rows yet"):
        run.metrics()


def test_the_package_itself_imports_nothing_heavy():
    import subprocess

    told = "import sys, unihetero_jax; print(sorted({'jax', 'pandas', 'numpy'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", told], text=True, cwd=runs.ROOT).strip() == "[]"
