"""``unihetero study``: runs, what they leave, what is not done twice, and what is said about it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal

import pytest
import runs

from unihetero_jax.config import EvaluateConfig
from unihetero_jax.errors import UsageError
from unihetero_jax.study import registry, report, report_data, runner, workdir
from unihetero_jax.study.definition import Claim, Study
from unihetero_jax.study.run_config import run_config
from unihetero_jax.study.workdir import Workdir

FIXTURE = runs.ROOT / "tests" / "fixtures" / "study.py"


def study(*arguments):
    return runs.start(["study", *map(str, arguments)])


def results(workdir, name="fixture"):
    """What runs gave, by arm and seed."""
    return {
        (path.parts[-3], int(path.parts[-2].removeprefix("seed-"))): json.loads(path.read_text())["evaluation"]
        for path in workdir.glob(f"{name}/arms/*/*/result-*.json")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that was killed in the middle and continued, and what its two starts said."""
    workdir = tmp_path_factory.mktemp("study")
    arguments = ("run", FIXTURE, f"--workdir={workdir}", "--seeds=2")
    killed = study(*arguments)
    runs.wait_until(lambda: results(workdir), killed, poll_s=0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("fixture/arms/*/*/result-*.json")}
    said = runs.finish(study(*arguments))
    return workdir, before, said


def test_a_killed_study_goes_on_and_does_nothing_twice(finished):
    workdir, before, said = finished
    assert len(results(workdir)) == 4
    assert before
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert f"4 runs, {len(before)} of them done" in said
    # The same dataset serves all of them.
    assert len(list((workdir / "shared" / "data").glob("*/dataset_info.json"))) == 1


def test_the_report_says_what_the_runs_gave(finished):
    workdir, _, _ = finished
    told = json.loads((workdir / "fixture" / "report.json").read_text())
    text = {run: found["losses"]["generation"]["text"] for run, found in results(workdir).items()}
    effects = [text["1.0", seed] - text["0.0", seed] for seed in (0, 1)]
    (claim,) = told["claims"]
    assert claim["effect"] == pytest.approx(sum(effects) / 2)
    assert claim["seeds"] == 2
    assert claim["interval"][0] < claim["effect"] < claim["interval"][1]
    shown = told["arms"]["0.0"]["losses.generation.text"]
    assert (shown["seeds"], shown["by_seed"]) == (2, {str(seed): text["0.0", seed] for seed in (0, 1)})
    page = (workdir / "fixture" / "report.html").read_text()
    assert "with the semantic loss the text is worse" in page
    assert page.count("data:image/png;base64,") == 3
    assert 'src="http' not in page


def test_seeds_differ_and_arms_share_them(finished):
    workdir, _, _ = finished
    first = {
        (arm, seed): json.loads(
            (workdir / f"fixture/arms/{arm}/seed-{seed}/run/metrics.jsonl").read_text().splitlines()[0]
        )
        for arm in ("0.0", "1.0")
        for seed in (0, 1)
    }
    assert first["0.0", 0]["text"] == pytest.approx(first["1.0", 0]["text"], rel=1e-6)
    assert first["0.0", 0]["text"] != first["0.0", 1]["text"]


def test_another_study_takes_the_runs_that_it_shares(finished, tmp_path):
    workdir, before, _ = finished
    own = tmp_path / "other.py"
    own.write_text(FIXTURE.read_text().replace('"fixture"', '"other"').replace('"tiny.py"', repr(str(runs.TINY))))
    said = runs.finish(study("run", own, f"--workdir={workdir}", "--seeds=2"))
    assert "4 runs, 4 of them done" in said
    assert results(workdir, "other") == results(workdir)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


@pytest.mark.slow
def test_another_evaluation_does_not_train_again(finished, tmp_path):
    workdir, _, _ = finished
    own = tmp_path / "other.py"
    text = FIXTURE.read_text().replace('"tiny.py"', repr(str(runs.TINY)))
    own.write_text(text.replace("evaluate.questions = 8", "evaluate.questions = 4"))
    metrics = workdir / "fixture/arms/1.0/seed-0/run/metrics.jsonl"
    trained = metrics.stat().st_mtime_ns
    runs.finish(study("run", own, f"--workdir={workdir}", "--seeds=1", "--only=1.0"))
    counts = {
        json.loads(path.read_text())["evaluation"]["vqa"]["weather"]["count"]
        for path in workdir.glob("fixture/arms/1.0/seed-0/result-*.json")
    }
    assert counts == {4, 8}
    assert metrics.stat().st_mtime_ns == trained


def test_a_moved_workdir_still_reports(finished, tmp_path):
    workdir, _, _ = finished
    moved = tmp_path / "moved"
    shutil.copytree(workdir, moved, symlinks=True)
    made = registry.find(str(FIXTURE))
    claims = [report_data.make_report(made, Workdir.open(place)).as_json()["claims"] for place in (workdir, moved)]
    assert claims[0] == claims[1]
    assert claims[0][0]["seeds"] == 2


def test_a_result_of_other_defaults_is_refused(finished):
    workdir, _, _ = finished
    made, place = registry.find(str(FIXTURE)), Workdir.open(workdir)
    (job, *_) = runner.select_runs(made, "tiny", 1, "0.0/*")
    config = run_config(made, job, place)
    assert place.result(config)["seed"] == 0
    path = place.result_path(config)
    found = path.read_text()
    try:
        path.write_text(found.replace('"learning_rate": 0.002', '"learning_rate": 0.003'))
        with pytest.raises(UsageError, match=r"other defaults \(differing: optimizer.learning_rate\)"):
            place.result(config)
    finally:
        path.write_text(found)


@pytest.fixture
def copied(finished, tmp_path):
    """The finished study's workdir, to be damaged."""
    workdir = tmp_path / "copied"
    large = shutil.ignore_patterns("checkpoints", "compilation_cache")
    shutil.copytree(finished[0], workdir, symlinks=True, ignore=large)
    return workdir


def test_a_copied_run_and_torn_metrics_do_not_hinder_a_report(copied):
    good, place = registry.find(str(FIXTURE)), Workdir.open(copied)
    before = report.page(report_data.make_report(good, place))
    run = next(copied.glob("runs/*/seed-0"))
    shutil.copytree(run, run.with_name("seed-0.bak"))
    with (run / "run" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 7, "lo\xc3')
    assert report.page(report_data.make_report(good, place)) == before
    said = runs.finish(study("status", FIXTURE, f"--workdir={copied}"))
    assert "seeds 0 … 1" in said


@pytest.mark.parametrize("content", ["{}", "[]", "", '{"config": {'])
def test_a_damaged_result_is_named_with_what_to_do(copied, content):
    path = next(copied.glob("runs/*/seed-1/result-*.json"))
    path.write_text(content)
    expected = rf"{re.escape(path.name)} is damaged \(.*\); remove it to have the run evaluated again"
    with pytest.raises(UsageError, match=expected):
        report_data.make_report(registry.find(str(FIXTURE)), Workdir.open(copied))


@pytest.mark.parametrize("values", [{}, {"scale": "tiny", "data": None, "weights": {}}, {"scale": "huge"}, []])
def test_a_damaged_workdir_is_one_line(tmp_path, values):
    (tmp_path / workdir.STUDY_JSON).write_text(json.dumps(values))
    with pytest.raises(UsageError, match=r"no workdir of `unihetero study run` \(study\.json: "):
        Workdir.open(tmp_path)


def test_a_metric_that_no_run_has_is_said(finished):
    good = registry.find(str(FIXTURE))
    (claim,) = good.claims
    wrong = dataclasses.replace(good, claims=(dataclasses.replace(claim, metric="losses.generation.txt"),))
    made = report_data.make_report(wrong, Workdir.open(finished[0]))
    sentence = "claim text: no run has a score 'losses.generation.txt'; did you mean 'losses.generation.text'?"
    assert sentence in report.text(made)
    assert sentence.replace("'", "&#x27;") in report.page(made)
    assert not report_data.make_report(good, Workdir.open(finished[0])).unmeasured


def test_a_workdir_has_one_scale(finished):
    workdir, _, _ = finished
    with pytest.raises(UsageError, match="has runs at scale tiny; expected --scale=tiny"):
        Workdir(workdir, "small").save()


def test_a_job_array_runs_one_of_the_list(finished):
    workdir, _, _ = finished
    listed = runs.finish(study("run", FIXTURE, f"--workdir={workdir}", "--seeds=2", "--dry_run"))
    assert [line.split()[1] for line in listed.splitlines() if "fixture/" in line] == [
        f"fixture/{arm}/seed-{seed}" for seed in (0, 1) for arm in ("0.0", "1.0")
    ]
    said = runs.finish(study("run", FIXTURE, f"--workdir={workdir}", "--seeds=2", "--index=3"))
    assert "1 runs, 1 of them done" in said


def test_new_settings_leave_old_runs_as_they_are(tmp_path, monkeypatch):
    """A key that another version added, at its default, is no other run."""
    made, place = registry.find(str(FIXTURE)), Workdir(tmp_path, "tiny")
    config = run_config(made, runner.select_runs(made, "tiny", 1)[0], place)
    assert place.runs(config) == place.runs(dataclasses.replace(config, evaluate=EvaluateConfig(pictures=3)))
    assert place.result_path(config) != place.result_path(
        dataclasses.replace(config, evaluate=EvaluateConfig(pictures=3))
    )
    before = place.result_path(config)
    monkeypatch.setattr(workdir, "MEASURES", workdir.MEASURES + 1)
    assert place.result_path(config) != before
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=7))
    assert place.runs(config) != place.runs(longer)
    other_seed = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=7))
    assert place.runs(config) == place.runs(other_seed)


def test_names_that_do_not_exist(tmp_path):
    with pytest.raises(
        UsageError, match=r"no study 'mutual_benefits': expected alignment, .*did you mean 'mutual_benefit'"
    ):
        registry.find("mutual_benefits")
    with pytest.raises(UsageError, match=r"nothing\.py: no such file, expected one with STUDY"):
        registry.find("nothing.py")
    path = tmp_path / "ours.py"
    path.write_text(FIXTURE.read_text().replace('name="fixture"', 'name="scaling"'))
    with pytest.raises(UsageError, match=r"STUDY has the name 'scaling' of a built-in study"):
        registry.find(str(path))
    with pytest.raises(UsageError, match=r"--only=vq-\*: no run has such a name"):
        runner.select_runs(registry.find("mutual_benefit"), "tiny", 2, "vq-*")


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"claims": (Claim("c", "…", "m", {"1.0": 1.0, "2.0": -1.0}),)}, "no arm '2.0'"),
        ({"claims": (Claim("c", "…", "m", {"1.0": 1.0}),)}, "do not add up to 0"),
        ({"claims": (Claim("c", "…", "m", {}),)}, "claim c: expected arms in its contrast"),
        ({"factors": {"weight": ()}}, "factor weight: expected a tuple of levels, got ()"),
        ({"factors": {"weight": "none"}}, "factor weight: expected a tuple of levels, got 'none'"),
        ({"factors": {}}, "expected factors whose arms have different names"),
        ({"factors": {"weight": ("1.0", "0.0", "1.0")}}, "arms have different names, got ['1.0', '0.0']"),
        ({"factors": {"a": ("x", "x-y"), "b": ("y-z", "z")}}, "arms have different names"),
        ({"factors": {"weight": ("1.0", "0.0/x")}}, "'0.0/x': expected another name: a letter or digit, then"),
        ({"factors": {"weight": (1.0, 0.0)}}, "1.0: expected another name"),
        ({"name": "../elsewhere"}, "'../elsewhere': expected another name"),
        ({"name": "runs"}, "'runs': expected another name"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(changed, complaint):
    good = registry.find(str(FIXTURE))
    with pytest.raises(ValueError, match=re.escape(complaint)):
        Study(**{**vars(good), **changed})


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("config.train.stps = 3", r"STUDY\.py:15: unknown config key config\.train\.stps; did you mean"),
        ("levels['wait']", r"STUDY\.py:15: KeyError: wait"),
        ("config.train.steps = -3; return config", r"STUDY\.py, arm 0\.0: config\.train\.steps=-3: expected"),
        ("import helpers; helpers.fail()", r"STUDY\.py:15: RuntimeError: no \(at .*helpers\.py:2\)"),
        ("return {}", r"STUDY\.py: experiment\(\) returned dict: expected unihetero_jax\.config\.defaults\(\)"),
    ],
)
def test_a_mistake_in_an_experiment_is_a_line_of_its_file(tmp_path, monkeypatch, line, complaint):
    (tmp_path / "helpers.py").write_text("def fail():\n    raise RuntimeError('no')\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = FIXTURE.read_text()
    start = "def experiment(levels: Levels, scale: Scale) -> ml_collections.ConfigDict:\n"
    before, _, behind = text.partition(start)
    assert behind
    path = tmp_path / "STUDY.py"
    imported = "    from unihetero_jax.config import defaults\n\n    config = defaults()\n"
    path.write_text(f"{before}{start}{imported}    {line}\n{behind}")
    made = registry.find(str(path))
    with pytest.raises(UsageError, match=complaint):
        run_config(made, runner.select_runs(made, "tiny", 1)[0], Workdir(tmp_path, "tiny"))
