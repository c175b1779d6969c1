"""``unihetero study``: runs, what they leave, what is not done twice, and what is said about it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal

import pytest
import runs

from unihetero_jax.config import EvaluateConfig
from unihetero_jax.errors import UsageError
from unihetero_jax.study import places, registry, report, runner
from unihetero_jax.study.declaration import Claim, Study

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
    assert told["arms"]["0.0"]["losses.generation.text"]["seeds"] == 2
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
    claims = [report.make(made, places.opened(place)).as_json()["claims"] for place in (workdir, moved)]
    assert claims[0] == claims[1]
    assert claims[0][0]["seeds"] == 2


def test_a_result_of_other_defaults_is_refused(finished):
    workdir, _, _ = finished
    made, place = registry.find(str(FIXTURE)), places.opened(workdir)
    (job, *_) = runner.jobs(made, "tiny", 1, "0.0/*")
    config = places.experiment(made, job, place)
    assert places.result(place, config)["seed"] == 0
    path = place.result(config)
    found = path.read_text()
    try:
        path.write_text(found.replace('"learning_rate": 0.002', '"learning_rate": 0.003'))
        with pytest.raises(UsageError, match=r"other defaults \(differing: optimizer.learning_rate\)"):
            places.result(place, config)
    finally:
        path.write_text(found)


def test_a_workdir_has_one_scale(finished):
    workdir, _, _ = finished
    with pytest.raises(UsageError, match="has runs at scale tiny; expected --scale=tiny"):
        places.claim(places.Place(workdir, "small"))


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
    made, place = registry.find(str(FIXTURE)), places.Place(tmp_path, "tiny")
    config = places.experiment(made, runner.jobs(made, "tiny", 1)[0], place)
    assert place.runs(config) == place.runs(dataclasses.replace(config, evaluate=EvaluateConfig(pictures=3)))
    assert place.result(config) != place.result(dataclasses.replace(config, evaluate=EvaluateConfig(pictures=3)))
    before = place.result(config)
    monkeypatch.setattr(places, "MEASURES", places.MEASURES + 1)
    assert place.result(config) != before
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=7))
    assert place.runs(config) != place.runs(longer)
    other_seed = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=7))
    assert place.runs(config) == place.runs(other_seed)


def test_names_that_do_not_exist():
    with pytest.raises(UsageError, match=r"no study 'mutual_benefits': expected mutual_benefit, .*did you mean"):
        registry.find("mutual_benefits")
    with pytest.raises(UsageError, match=r"nothing\.py: no such config file"):
        registry.find("nothing.py")
    with pytest.raises(UsageError, match=r"--only=vq-\*: no run has such a name"):
        runner.jobs(registry.find("mutual_benefit"), "tiny", 2, "vq-*")


def test_a_claim_has_to_be_a_contrast_of_arms():
    good = registry.find(str(FIXTURE))
    for contrast, complaint in (({"1.0": 1.0, "2.0": -1.0}, "no arm '2.0'"), ({"1.0": 1.0}, "do not add up to 0")):
        with pytest.raises(ValueError, match=complaint):
            Study(
                **{
                    **vars(good),
                    "claims": (Claim("c", "…", "losses.generation.text", contrast),),
                }
            )
