"""The loop around the step: what is compiled, refused, stopped, kept, cleaned up and said."""

from __future__ import annotations

import io
import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import runs
from matrices import matrix

from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.config import loading as config_file
from unihetero_jax.errors import UsageError
from unihetero_jax.model.build import define
from unihetero_jax.parallel.mesh import check_sharded, make_mesh
from unihetero_jax.run import train_model as main
from unihetero_jax.train import loop
from unihetero_jax.train.monitor.telemetry import Display, MetricsLog, Throughput

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def run(dataset):
    """(workdir, overrides…) → the exit code of a run in this process, on its eight devices."""

    def start(workdir: Path, *overrides: str, finish=None) -> int:
        texts = [f"data.root={dataset}", "logging.tensorboard=false", *overrides]
        config = config_file.load(runs.TINY, [tuple(text.split("=", 1)) for text in texts])
        return main.train_model(config, workdir, finish)

    return start


@pytest.fixture(scope="module")
def ten(dataset, tmp_path_factory) -> Path:
    """A run of ten steps on eight devices with checkpoints 5 and 10; copy it before changing it."""
    workdir = tmp_path_factory.mktemp("loop") / "ten"
    values = [("data.root", str(dataset)), ("logging.tensorboard", "false"), ("train.steps", "10")]
    config = config_file.load(runs.TINY, [*values, ("optimizer.schedule", "constant")])
    assert main.train_model(config, workdir) == 0
    return workdir


TEN = ("train.steps=10", "optimizer.schedule=constant")


@pytest.fixture
def copy(ten, tmp_path) -> Path:
    """The run of ten steps, to be spoiled."""
    shutil.copytree(ten, tmp_path / "copy")
    return tmp_path / "copy"


def fall_back(workdir: Path, step: int) -> None:
    """Removes the checkpoints after a step."""
    for number in runs.checkpoint_steps(workdir):
        if number > step:
            shutil.rmtree(workdir / "checkpoints" / str(number))


def test_the_tiny_config_is_split_on_eight_devices():
    config = config_file.load(runs.TINY, [])
    model = define(config, 512)
    assert check_sharded(model.shapes(), model.shardings(make_mesh(config.mesh))) <= 0.02


def test_nothing_is_compiled_after_the_first_step(run, tmp_path, monkeypatch):
    compilations, at_row = [], []

    def count(name: str, seconds: float, **details) -> None:
        del seconds, details
        if name == COMPILED:
            compilations.append(name)

    write = MetricsLog.write
    monkeypatch.setattr(MetricsLog, "write", lambda log, row: (at_row.append(len(compilations)), write(log, row)))
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        jax.clear_caches()
        assert run(tmp_path / "run", "train.steps=5", "checkpoint.every_steps=2", "train.seed=1") == 0
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert at_row[0] > 0
    # Between the second and the third row the first checkpoint is saved, for which Orbax compiles a few copies, once.
    assert at_row == [at_row[0]] * 2 + [at_row[2]] * 3


def test_a_loss_that_is_no_number_stops_the_run(ten, copy, run, monkeypatch, capfd):
    fall_back(copy, 5)
    real = loop.make_step

    def poisoned(*arguments):
        step_function = real(*arguments)

        def step(state, batch):
            next_state, metrics = step_function(state, batch)
            spoil = jax.numpy.where(state["step"] == 7, jax.numpy.nan, 0.0)
            return next_state, {**metrics, "semantic": metrics["semantic"] + spoil, "loss": metrics["loss"] + spoil}

        return step

    monkeypatch.setattr(loop, "make_step", poisoned)
    assert run(copy, *TEN) == 1
    assert "step 8: semantic is nan; the last good checkpoint is step 5" in capfd.readouterr().err
    assert runs.checkpoint_steps(copy) == [5]
    assert runs.differing(runs.arrays(copy, 5), runs.arrays(ten, 5)) == []
    assert runs.metrics(copy)[-1]["step"] == 7
    monkeypatch.undo()
    assert run(copy, *TEN) == 0
    runs.assert_identical(copy, ten)


@pytest.mark.slow
def test_an_overflow_is_one_line_and_exit_code_1(dataset, tmp_path):
    arguments = runs.train_command(
        tmp_path / "run", dataset, "optimizer.learning_rate=1e29", "optimizer.warmup_steps=1", "train.steps=5"
    )
    output = runs.finish(runs.start(arguments), code=1)
    assert "Traceback" not in output
    assert re.search(r"^unihetero: error: step [2-5]: \w+ is (nan|inf); there is no checkpoint yet$", output, re.M)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("optimizer.learning_rate=0.5", r"optimizer\.learning_rate \(0\.002 → 0\.5\)"),
        ("model.decoder.dropout=0.2", r"model\.decoder\.dropout \(0\.1 → 0\.2\)"),
        ("train.batch_size=16", r"train\.batch_size \(8 → 16\)"),
        ("data.task_weights.vqa=2", r"data\.task_weights\.vqa \(1\.0 → 2\.0\)"),
    ],
)
def test_another_config_is_refused_by_its_keys(copy, run, override, complaint):
    before = (copy / "config.json").read_bytes()
    with pytest.raises(UsageError, match=rf"started with another config; differing: {complaint}\. Use another"):
        run(copy, *TEN, override)
    assert (copy / "config.json").read_bytes() == before


def test_what_is_not_learned_may_change(copy, run):
    free = (
        "mesh.fsdp=4",
        "mesh.slice=2",
        "checkpoint.every_steps=3",
        "checkpoint.keep_latest=7",
        "logging.every_steps=1",
    )
    more = ("data.threads=1", "data.read_ahead=1", "data.max_bad_records=5", "evaluate.questions=3")
    assert run(copy, "optimizer.schedule=constant", "train.steps=12", *free, *more) == 0
    assert [row["step"] for row in runs.metrics(copy)] == list(range(1, 13))
    assert runs.checkpoint_steps(copy)[-1] == 12


def test_fewer_steps_than_there_are_is_refused(copy, run):
    with pytest.raises(UsageError, match=r"checkpoint of step 10, beyond config\.train\.steps=4"):
        run(copy, "optimizer.schedule=constant", "train.steps=4")


def test_a_complete_run_started_again_changes_nothing(copy, ten, run):
    finished = []
    assert run(copy, *TEN, "evaluate.at_end=true", finish=lambda trained, where: finished.append(trained.step)) == 0
    assert finished == [10]
    assert (copy / "metrics.jsonl").read_bytes() == (ten / "metrics.jsonl").read_bytes()
    runs.assert_identical(copy, ten)


def test_the_log_reads_as_if_nothing_had_happened(copy, ten, run):
    fall_back(copy, 5)
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "loss": 3.0}\n{"step": 12, "lo')
    assert run(copy, *TEN) == 0
    runs.assert_identical(copy, ten)


@pytest.mark.parametrize(
    ("content", "restored", "kept"),
    [
        ('{"step": 1}\n{"step": 2}\n', 2, 2),
        ('{"step": 1}\n{"step": 2}\n{"step": 3}\n', 2, 2),
        ('{"step": 1}\n{"step": 2}\n{"st', 2, 2),
        ('{"step": 1}\n{"step": 2}', 2, 1),
        ('{"step": 1}\n\0\0\0\0\n{"step": 2}\n', 2, 1),
        ('{"step": 1}\n[]\n', 2, 1),
        ('{"step": 1}\n', 0, 0),
        ("", 3, 0),
    ],
)
def test_rows_beyond_the_checkpoint_and_torn_ones_are_cut(tmp_path, content, restored, kept):
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    log = MetricsLog(path, restored)
    log.write({"step": restored + 1})
    log.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [*({"step": step + 1} for step in range(kept)), {"step": restored + 1}]


READ_WITHOUT_US = """
import hashlib, json, sys
import jax, numpy as np, orbax.checkpoint as ocp

path = sys.argv[1]
reader = ocp.PyTreeCheckpointer()
tree = reader.metadata(path).item_metadata.tree
as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
state = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
assert len(jax.devices()) == 1 and not any(name.startswith("unihetero") for name in sys.modules)
leaves = jax.tree.leaves_with_path(state)
assert all(isinstance(leaf, (np.ndarray, np.generic)) for _, leaf in leaves)
hashes = {jax.tree_util.keystr(key): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest() for key, leaf in leaves}
print(json.dumps(hashes))
"""


def test_what_eight_devices_wrote_one_reads_with_plain_orbax(ten, tmp_path):
    import hashlib

    environment = {name: value for name, value in runs.environment(1).items() if name != "PYTHONPATH"}
    state = ten / "checkpoints" / "10" / "state"
    read = subprocess.run(
        [sys.executable, "-c", READ_WITHOUT_US, str(state)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert read.returncode == 0, read.stderr
    hashes = {f"state{name}": value for name, value in json.loads(read.stdout).items()}
    here = runs.arrays(ten, 10, ["state"])
    assert hashes == {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in here.items()}
    assert "state['params']['decoder']['embedding']" in hashes
    assert not any("time" in name for name in hashes)


def half_written(workdir: Path, kind: str) -> Path:
    """A neighbour of checkpoint 10 as a killed save or a torn copy leaves it."""
    directory = workdir / "checkpoints"
    name = "15.orbax-checkpoint-tmp" if kind == "tmp" else "15"
    shutil.copytree(directory / "10", directory / name)
    missing = {"tmp": "_CHECKPOINT_METADATA", "unfinished": "_CHECKPOINT_METADATA"}.get(kind, kind)
    path = directory / name / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return directory / name


@pytest.mark.parametrize(
    "kind", matrix(["tmp", "unfinished", "state", "data", "config", "timers"], fast=["tmp", "data"])
)
def test_a_half_written_checkpoint_is_never_taken(copy, ten, run, kind):
    half = half_written(copy, kind)
    assert checkpoint.steps(copy) == [5, 10]
    assert checkpoint.find_step(copy, None) == 10
    assert run(copy, "optimizer.schedule=constant", "train.steps=11") == 0
    assert not half.exists()
    assert [row["step"] for row in runs.metrics(copy)] == list(range(1, 12))
    assert runs.checkpoint_steps(copy)[-1] == 11


@pytest.mark.slow
def test_a_step_is_saved_where_a_half_written_one_was(copy, ten, run):
    fall_back(copy, 5)
    (copy / "checkpoints" / "10" / "state").mkdir(parents=True)
    assert run(copy, *TEN) == 0
    runs.assert_identical(copy, ten)


def test_which_checkpoints_stay(run, tmp_path):
    options = ("checkpoint.every_steps=2", "checkpoint.keep_latest=2", "checkpoint.keep_every=4", "train.steps=7")
    assert run(tmp_path / "run", *options) == 0
    assert runs.checkpoint_steps(tmp_path / "run") == [4, 6, 7]


@pytest.mark.slow
def test_the_newest_stays_whatever_else_does(run, tmp_path):
    options = ("checkpoint.every_steps=3", "checkpoint.keep_latest=1", "train.steps=7")
    assert run(tmp_path / "run", *options) == 0
    assert runs.checkpoint_steps(tmp_path / "run") == [7]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, first: int = 0) -> str:
    display = Display(first, 10, stream)
    throughput = Throughput(4, 10)
    for step in range(first + 1, 11):
        throughput.step(step, 0.0, 5.0, 100.0)
        display.step(step, 1.5, throughput)
    display.close()
    return stream.getvalue()


def test_plain_lines_where_there_is_no_terminal():
    lines = shown(io.StringIO()).splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 4/10", "step 8/10", "step 10/10"]
    assert all(re.search(r"loss 1\.5000, [\d,]+ samples/s, [\d,]+ tokens/s, data wait 0\.0%", line) for line in lines)


def test_a_bar_on_a_terminal():
    text = shown(Terminal(), first=3)
    assert "10/10" in text
    assert "loss 1.5000" in text
    assert "\r" in text
    assert "step 4/10" not in text


def assert_one_line(output: str) -> None:
    assert "Traceback" not in output, output
    assert_says_it_once(output)


def assert_says_it_once(output: str) -> None:
    assert len(re.findall(r"^unihetero: error: ", output, re.M)) == 1, output


@pytest.mark.slow
def test_a_full_disk_is_one_line(dataset, tmp_path):
    """The kernel's limit on a file's size stands in for the disk; checkpoints are what exceeds it."""
    arguments = runs.train_command(tmp_path / "run", dataset, "train.steps=7")
    most = (dataset / "tokenizer.model").stat().st_size + 4096
    done = subprocess.run(
        [sys.executable, "-m", "unihetero_jax", *arguments],
        cwd=runs.ROOT,
        env=runs.environment(1, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "cache")),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
        timeout=runs.PATIENCE_S,
    )
    assert done.returncode == 2, done.stderr
    assert_says_it_once(done.stderr)  # tensorstore's threads have their own say, at any moment
    assert str(tmp_path / "run") in done.stderr
    assert runs.checkpoint_steps(tmp_path / "run") == []


@pytest.mark.parametrize("occupied", matrix(["metrics.jsonl", "checkpoints", "config.json"], fast=["checkpoints"]))
def test_a_workdir_that_cannot_be_written_is_one_line(dataset, tmp_path, occupied):
    workdir = tmp_path / "run"
    workdir.mkdir()
    if occupied == "checkpoints":
        (workdir / occupied).write_text("a file where a directory should be")
    else:
        (workdir / occupied).mkdir()
    arguments = runs.train_command(workdir, dataset, "train.steps=3")
    output = runs.finish(runs.start(arguments), code=2)
    assert_one_line(output)
    assert str(workdir) in output


def test_a_place_where_nothing_can_be_made_is_one_line(dataset):
    output = runs.finish(runs.start(runs.train_command(Path("/proc/nowhere"), dataset)), code=2)
    assert_one_line(output)


def test_numbers_come_out_as_they_went_in(ten):
    rows = runs.metrics(ten)
    names = {"step", "loss", "text", "semantic", "pixel", "grad_norm", "learning_rate", "packed", "tokens", "samples"}
    assert all(names <= row.keys() for row in rows)
    arrays = runs.arrays(ten, 10)
    assert int(arrays["state['step']"]) == 10
    assert arrays["data['drawn']"].dtype == np.int32
    assert rows[-1]["skipped"] == 0
