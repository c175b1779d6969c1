"""What a job array relies on: numbers of runs, exit codes, locks, and several runners in one workdir at once."""

from __future__ import annotations

import errno
import fcntl
import logging
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import runs

from unihetero_jax.commands import study as cli
from unihetero_jax.errors import UsageError
from unihetero_jax.study import registry, runner
from unihetero_jax.study.run_config import Run, run_config
from unihetero_jax.study.workdir import Workdir

FIXTURE = str(runs.ROOT / "tests" / "fixtures" / "study.py")
# In place of the interpreter: does what `codes` says of its job's kind and arm, and notes that it was started.
STAND_IN = """#!/bin/sh
echo "$*" >> {place}/started
code=$(grep "^$3 $6 " {place}/codes | cut -d' ' -f3)
[ "$code" = killed ] && kill -KILL $$
exit "${{code:-0}}"
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """'KIND ARM CODE'… → runs of the fixture end so; a workdir, and what says which jobs were started."""

    def use(*codes: str) -> tuple[Workdir, Path]:
        (tmp_path / "codes").write_text("\n".join(codes))
        program = tmp_path / "python"
        program.write_text(STAND_IN.format(place=tmp_path))
        program.chmod(0o755)
        monkeypatch.setattr(runner.sys, "executable", str(program))
        return Workdir(tmp_path / "w", "tiny").save(), tmp_path / "started"

    return use


def jobs(only: str = "*") -> list[Run]:
    return runner.select_runs(registry.find(FIXTURE), "tiny", 1, only)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ((), 0),
        (("run 0.0 75",), 75),
        (("run 1.0 1",), 1),
        (("run 0.0 75", "run 1.0 2"), 75),
        (("run 0.0 75", "run 1.0 killed"), 137),
    ],
)
def test_the_exit_code_says_whether_to_start_again(stand_in, codes, expected):
    place, started = stand_in(*codes)
    assert runner.run(registry.find(FIXTURE), FIXTURE, place, jobs(), 1) == expected
    assert started.read_text().count("study.worker run") == 2


@pytest.mark.parametrize("code", [75, 137])
def test_shared_parts_that_were_stopped_are_made_at_the_next_start(stand_in, code):
    place, started = stand_in(f"data 0.0 {75 if code == 75 else 'killed'}")
    study = registry.find(FIXTURE)
    assert runner.prepare(study, FIXTURE, place, jobs()) == code
    assert runner.run(study, FIXTURE, place, jobs(), 1) == code
    assert "study.worker run" not in started.read_text()
    stand_in()
    assert runner.prepare(study, FIXTURE, place, jobs()) == 0
    assert started.read_text().count("study.worker data") == 3
    assert runner.run(study, FIXTURE, place, jobs(), 1) == 0
    assert started.read_text().count("study.worker data") == 3


def test_shared_parts_that_cannot_be_made_are_named(stand_in):
    place, _ = stand_in("data 0.0 2")
    with pytest.raises(UsageError, match=r"shared/data/.* could not be made \(exit code 2\); see .*\.log"):
        runner.prepare(registry.find(FIXTURE), FIXTURE, place, jobs())


def test_processes_that_make_a_run_together(stand_in):
    """The first one alone holds the run's lock; nobody makes shared parts."""
    place, started = stand_in()
    study, (job, *_) = registry.find(FIXTURE), jobs()
    with pytest.raises(UsageError, match=r"is missing, and several processes cannot make it.*--prepare"):
        runner.run(study, FIXTURE, place, [job], 1, member=0)
    assert runner.prepare(study, FIXTURE, place, [job]) == 0
    directory = place.run(run_config(study, job, place))
    directory.mkdir(parents=True)
    with (directory / ".lock").open("a") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        assert runner.run(study, FIXTURE, place, [job], 1, member=1) == 0
    assert started.read_text().count("study.worker run") == 1
    assert (directory / "log-1").exists()


def test_several_processes_need_a_number(tmp_path, monkeypatch):
    for name, value in (("ADDRESS", "localhost:1"), ("ID", "0"), ("PROCESSES", "2")):
        names = {"ADDRESS": "JAX_COORDINATOR_ADDRESS", "ID": "JAX_PROCESS_ID", "PROCESSES": "JAX_NUM_PROCESSES"}
        monkeypatch.setenv(names[name], value)
    for more in ([], ["--prepare"]):
        options = cli.parse(["run", FIXTURE, f"--workdir={tmp_path}", *more])
        with pytest.raises(UsageError, match=r"one of 2 processes: .* expected --index=N"):
            options.run(options)


def test_numbers_of_several_studies_count_a_shared_run_once(tmp_path, monkeypatch):
    two = {name: registry.find(name) for name in ("mutual_benefit", "alignment")}
    monkeypatch.setattr(registry, "built_in", lambda: two)
    found = cli.tasks(cli.parse(["run", "all", f"--workdir={tmp_path}", "--seeds=1"]))
    place = Workdir(tmp_path, "tiny")
    wanted = {
        place.result_path(run_config(study, job, place))
        for study in two.values()
        for job in runner.select_runs(study, "tiny", 1)
    }
    listed = [place.result_path(run_config(task.study, task.run, place)) for task in found]
    assert len(listed) == len(set(listed))
    assert set(listed) == wanted
    assert len(listed) < sum(len(runner.select_runs(study, "tiny", 1)) for study in two.values())


def test_a_number_beyond_the_list_is_refused(tmp_path):
    options = cli.parse(["run", FIXTURE, f"--workdir={tmp_path}", "--seeds=3", "--index=6"])
    with pytest.raises(UsageError, match="--index=6: expected 0 to 5, as --dry_run lists them"):
        options.run(options)


def test_tasks_that_link_an_arm_at_once(tmp_path):
    study, place = registry.find(FIXTURE), Workdir(tmp_path, "tiny")
    (job, *_) = jobs()
    config = run_config(study, job, place)
    link = place.study(study) / "arms" / job.arm.name
    with ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            link.unlink(missing_ok=True)
            together = threading.Barrier(8)

            def task(together: threading.Barrier = together) -> None:
                together.wait()
                place.link(study, job.arm, config)

            for done in [pool.submit(task) for _ in range(8)]:
                done.result()
            assert link.is_symlink()
    assert [path.name for path in place.study(study).iterdir()] == ["arms"]


def test_a_file_system_without_locks_is_said_and_used(stand_in, monkeypatch, caplog):
    def flock(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    place, _ = stand_in()
    monkeypatch.setattr(runner.fcntl, "flock", flock)
    monkeypatch.setattr(logging.getLogger("unihetero_jax"), "propagate", True)
    assert runner.run(registry.find(FIXTURE), FIXTURE, place, jobs(), 1) == 0
    assert "no locks on this file system (Function not implemented); start nothing twice" in caplog.text


def test_a_report_that_follows_is_written_for_a_last_time_when_it_is_stopped(tmp_path):
    place = Workdir(tmp_path / "w", "tiny").save()
    written = place.study(registry.find(FIXTURE)) / "report.json"
    written.parent.mkdir()
    follower = runs.start(["study", "report", FIXTURE, f"--workdir={place.path}", "--follow"])
    assert runs.wait_until(written.exists, follower)
    written.unlink()
    result = place.path / "runs" / "another" / "seed-0" / "result-0.json"
    result.parent.mkdir(parents=True)
    result.touch()
    follower.send_signal(signal.SIGTERM)
    assert "wrote " in runs.finish(follower)
    assert written.exists()
