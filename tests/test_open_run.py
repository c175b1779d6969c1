"""The Python door of a run: what a notebook reads, and what it is told where there is nothing."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import runs

import unihetero_jax
from unihetero_jax.config.components import LOSSES, TOWERS
from unihetero_jax.errors import UsageError


@pytest.fixture(scope="module")
def workdir(dataset, tmp_path_factory):
    place = tmp_path_factory.mktemp("opened")
    changes = {"train.steps": 6, "checkpoint.keep_every": 5, "data.root": str(dataset), "logging.tensorboard": False}
    assert unihetero_jax.run.train(unihetero_jax.config.load(runs.TINY, changes), place / "run") == 0
    return place / "run"


def test_a_run_is_read(workdir, dataset):
    run = unihetero_jax.open_run(str(workdir))
    assert run.data_root == dataset
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


def test_the_verbs_are_functions(workdir, capsys):
    off = dict.fromkeys(("evaluators.vqa", "evaluators.answers", "evaluators.generation"))
    found = unihetero_jax.run.evaluate(workdir, changes=off | {"evaluators.losses.kind": "losses"})
    assert found["step"] == 6
    assert found == unihetero_jax.open_run(workdir).evaluation()
    made = unihetero_jax.run.generate(workdir, "What time is it?", step=5, max_tokens=4, max_images=0)
    assert capsys.readouterr().out.endswith(f"{made.text}\n")
    state = unihetero_jax.run.status(workdir)
    assert (state["step"], state["checkpoints"], state["ended"]) == (6, [5, 6], "complete")


def test_a_name_that_the_package_lacks_is_an_error():
    for place in (unihetero_jax, unihetero_jax.run):
        with pytest.raises(AttributeError, match="has no attribute 'trian'"):
            _ = place.trian
    assert {unihetero_jax.register_loss.__self__, unihetero_jax.register_tower.__self__} == {LOSSES, TOWERS}
    assert all(callable(getattr(unihetero_jax.run, name)) for name in unihetero_jax.run.__all__)


def test_a_model_and_its_batches_take_five_lines(dataset):
    config = unihetero_jax.config.resolve({"data": {"root": str(dataset)}, "train": {"batch_size": 4}})
    batches = unihetero_jax.data.packed_batches(unihetero_jax.data.open_mixture(config), config, workers=0)
    with contextlib.closing(iter(batches)) as it:
        batch = next(it)
    model = unihetero_jax.run.define_model(config)
    params = model.init(jax.random.key(0))
    assert batch["tokens"].shape == (4, config.data.seq_len)
    assert params["decoder"].keys() == model.shapes()["decoder"].keys()


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
        ('{"kind": []}', r"config.kind='\[\]': expected"),
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
    code = "import sys, unihetero_jax.run; print(sorted({'jax', 'pandas', 'numpy'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=runs.ROOT).strip() == "[]"
