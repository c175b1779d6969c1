"""``unihetero study``: runs, what they leave, what is not done twice, and what is said about it."""

from __future__ import annotations

import json
import signal

import pytest
import runs

from unihetero_jax.errors import UsageError
from unihetero_jax.study import registry, runner
from unihetero_jax.study.declaration import Claim, Study

FIXTURE = runs.ROOT / "tests" / "fixtures" / "study.py"


def study(*arguments):
    return runs.start(["study", *map(str, arguments)])


def results(workdir):
    return {
        path.relative_to(workdir).as_posix(): json.loads(path.read_text())["evaluation"]
        for path in workdir.glob("arms/*/*/result.json")
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
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("arms/*/*/result.json")}
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
    report = json.loads((workdir / "report.json").read_text())
    text = {name: found["losses"]["text"] for name, found in results(workdir).items()}
    effects = [text[f"arms/1.0/seed-{seed}/result.json"] - text[f"arms/0.0/seed-{seed}/result.json"] for seed in (0, 1)]
    (claim,) = report["claims"]
    assert claim["effect"] == pytest.approx(sum(effects) / 2)
    assert claim["seeds"] == 2
    assert claim["interval"][0] < claim["effect"] < claim["interval"][1]
    assert report["arms"]["0.0"]["losses.text"]["seeds"] == 2
    page = (workdir / "report.html").read_text()
    assert "with the semantic loss the text is worse" in page
    assert page.count("data:image/png;base64,") == 3
    assert 'src="http' not in page


def test_seeds_differ_and_arms_share_them(finished):
    workdir, _, _ = finished
    first = {
        (arm, seed): json.loads((workdir / f"arms/{arm}/seed-{seed}/run/metrics.jsonl").read_text().splitlines()[0])
        for arm in ("0.0", "1.0")
        for seed in (0, 1)
    }
    assert first["0.0", 0]["text"] == pytest.approx(first["1.0", 0]["text"], rel=1e-6)
    assert first["0.0", 0]["text"] != first["0.0", 1]["text"]


def test_another_config_of_the_same_run_is_refused(finished):
    workdir, _, _ = finished
    made = registry.find(str(FIXTURE))
    (job, *_) = runner.jobs(made, 1, "0.0/*")
    config = runner.experiment(made, job, workdir, "tiny")
    assert runner.result(job, workdir, config)["seed"] == 0
    with pytest.raises(UsageError, match=r"another config \(differing: train.seed\)"):
        runner.result(job, workdir, runner.experiment(made, runner.Job(job.arm, 1), workdir, "tiny"))


def test_a_workdir_belongs_to_one_study_and_scale(finished):
    workdir, _, _ = finished
    made = registry.find(str(FIXTURE))
    with pytest.raises(UsageError, match="belongs to study fixture at scale tiny; expected fixture at small"):
        runner.claim(made, workdir, "small")


def test_names_that_do_not_exist():
    with pytest.raises(UsageError, match=r"no study 'mutual_benefits': expected mutual_benefit or .*did you mean"):
        registry.find("mutual_benefits")
    with pytest.raises(UsageError, match=r"nothing\.py: no such config file"):
        registry.find("nothing.py")
    with pytest.raises(UsageError, match=r"--only=vq-\*: no run has such a name"):
        runner.jobs(registry.find("mutual_benefit"), 2, "vq-*")


def test_a_claim_has_to_be_a_contrast_of_arms():
    good = registry.find(str(FIXTURE))
    for contrast, complaint in (({"1.0": 1.0, "2.0": -1.0}, "no arm '2.0'"), ({"1.0": 1.0}, "do not add up to 0")):
        with pytest.raises(ValueError, match=complaint):
            Study(
                **{
                    **vars(good),
                    "claims": (Claim("c", "…", "losses.text", contrast),),
                }
            )


@pytest.mark.parametrize("name", registry.STUDIES)
def test_every_study_has_valid_experiments(name, tmp_path):
    made = registry.STUDIES[name]
    for scale in ("tiny", "small"):
        for job in runner.jobs(made, 1):
            config = runner.experiment(made, job, tmp_path, scale)
            assert config.evaluate.at_end
