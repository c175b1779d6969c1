"""`unihetero bench --suite`: its rows, in their order; and that no row ends it, whatever becomes of it."""

from __future__ import annotations

import json
import os
import signal
import types
from typing import Any

import jax
import pytest

from unihetero_jax import cli, run
from unihetero_jax.errors import UsageError
from unihetero_jax.model.attention import base as attention
from unihetero_jax.plan.lowering import batch_shapes
from unihetero_jax.run import benchmark_rows, benchmark_suite, benchmark_worker

GPU = {
    "status": "measured",
    "platform": "gpu",
    "kind": "NVIDIA H100 80GB HBM3",
    "devices": 1,
    "memory_limit_bytes": 70 * 2**30,
    "dtype": "bfloat16",
    "peak_flops": 1000e12,
    "matmul_flops": 800e12,
    "attention": ["cudnn", "triton", "xla"],
    "jax": "0.10.2",
}
INPUT = {"status": "measured", "samples_per_second": 900.0, "image_size": 256, "cores": 16}
#: Seconds per step by remat: the fastest is not the first.
SECONDS = {"dots": 0.5, "none": 0.4, "full": 0.6}


def measured(row: benchmark_rows.Row, rows: int) -> dict[str, Any]:
    seconds = SECONDS[row.remat] + 0.1 * (row.attention == "xla")
    return {
        "status": "measured",
        "rows_per_device": rows,
        "batch_size": rows,
        "seq_len": 4096,
        "plan": {"step_seconds": seconds / 2, "hbm_bytes_per_chip": 40 * 2**30},
        "step_seconds": {"p50": seconds},
        "tokens_per_second_per_device": rows * 4096 / seconds,
        "samples_per_second": rows * 15 / seconds,
        "mfu_of_matmul": 0.5,
        "memory_bytes": 41 * 2**30,
    }


class FakeWorker:
    """Stands for the process that measures: `row(row, rows)` answers, and each answer takes `seconds` of the clock."""

    seconds = 10.0

    def __init__(self, folder):
        self.clock = 0.0

    def ask(self, left: float, name: str, *arguments: Any) -> dict[str, Any]:
        if name != "row":
            return GPU if name == "device" else INPUT
        row, rows, _, _ = arguments
        if left <= self.seconds:
            FakeWorker.now += left
            return {"status": benchmark_suite.NOT_FINISHED}
        FakeWorker.now += self.seconds
        return self.row(row, rows or 8)

    row = staticmethod(measured)

    def close(self) -> None:
        pass


@pytest.fixture
def fake(monkeypatch):
    """A GPU whose rows take ten seconds each of a clock of their own."""
    worker = type("Worker", (FakeWorker,), {})
    FakeWorker.now = 0.0
    monkeypatch.setattr(benchmark_suite, "Worker", worker)
    monkeypatch.setattr(benchmark_suite, "time", types.SimpleNamespace(monotonic=lambda: FakeWorker.now))
    return worker


def shapes(found: dict[str, Any]) -> list[tuple[str, ...]]:
    return [tuple(row[name] for name in ("size", "losses", "attention", "remat")) for row in found["rows"]]


def test_the_most_important_rows_come_first_and_the_others_with_the_best_of_them(fake, tmp_path, capsys):
    found = run.bench_suite(tmp_path / "new" / "h100")
    rows = shapes(found)
    assert rows[0] == ("1B", "text", "cudnn", "dots")
    matrix = {("1B", "text", name, remat) for name in GPU["attention"] for remat in ("dots", "none", "full")}
    assert set(rows[:9]) == matrix
    assert rows[9:12] == [("1B", f"text, semantic{pixels}", "cudnn", "none") for pixels in PIXELS]
    assert rows[12:] == [(size, "text", "cudnn", "none") for size in ("0.5B", "3B")]
    assert {row["status"] for row in found["rows"]} == {"measured"}
    assert found["rows"][0]["mfu_of_peak"] == pytest.approx(0.4)
    assert json.loads((tmp_path / "new" / "h100" / "suite.json").read_text()) == found
    table = (tmp_path / "new" / "h100" / "suite.md").read_text()
    assert capsys.readouterr().out == table
    assert (
        "Input pipeline alone: 900 samples/s with images of 256 pixels on 16 cores; the fastest row takes 300." in table
    )
    assert "| 1B | text | cudnn | dots | 8 | 0.5 | 65,536 | 40.0% | 50.0% | 41 | 0.25 | 40 |  |" in table


PIXELS = ("", ", pixel detached", ", pixel attached")


def test_rows_behind_the_deadline_say_so(fake, capsys):
    found = run.bench_suite(minutes=55 / 60)
    assert [row["status"] for row in found["rows"]] == ["measured"] * 5 + ["not reached in time"] * 9
    assert FakeWorker.now < 55
    assert capsys.readouterr().out.count("| not reached in time |") == 9
    # A row that takes longer than those before it is ended.
    fake.row = staticmethod(lambda row, rows: setattr(fake, "seconds", 100) or measured(row, rows))
    FakeWorker.now, fake.seconds = 0.0, 10
    found = run.bench_suite(minutes=1)
    assert [row["status"] for row in found["rows"][:3]] == ["measured", "not finished in time", "not reached in time"]
    assert FakeWorker.now == 60


def test_out_of_memory_is_tried_with_half_the_rows_and_is_a_row(fake, capsys):
    def answer(row: benchmark_rows.Row, rows: int) -> dict[str, Any]:
        fits = {"none": 4, "full": 0}.get(row.remat, 8)
        if rows > fits:
            return {"status": "out of memory", "rows_per_device": rows, "plan": None, "note": f"no {rows} GiB"}
        return measured(row, rows)

    fake.row = staticmethod(answer)
    found = run.bench_suite()
    whole, half, none = found["rows"][:3]
    assert (whole["status"], whole["batch_size"], whole["note"]) == ("measured", 8, "")
    assert (half["status"], half["batch_size"]) == ("measured", 4)
    assert half["note"] == "out of memory at 8 rows per device: no 8 GiB"
    assert none["status"] == "out of memory"
    assert [f"no {rows} GiB" in none["note"] for rows in (8, 4, 2)] == [True] * 3
    assert len(found["rows"]) == 14
    assert "out of memory: out of memory at 8 rows per device: no 8 GiB" in capsys.readouterr().out


def test_a_device_that_cannot_be_used_is_one_line(fake, monkeypatch):
    monkeypatch.setattr(fake, "ask", lambda *arguments: {"status": "failed", "note": "RuntimeError: no GPU"})
    with pytest.raises(UsageError, match="the devices here cannot be used: RuntimeError: no GPU"):
        run.bench_suite()


class WorkerHere:
    """Measures in this process."""

    def __init__(self, folder):
        pass

    def ask(self, seconds: float, name: str, *arguments: Any) -> dict[str, Any]:
        return benchmark_worker.answer(name, *arguments)

    def close(self) -> None:
        pass


def test_the_rows_of_a_cpu(monkeypatch, tmp_path):
    compile_step_of = benchmark_worker.compile_step_of

    def limited(learner, mesh, batch):
        decoder = learner.config.model.decoder
        if decoder.remat == "none":
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 7 bytes.\nmore"
            )
        if decoder.width == 128 or decoder.attention == "xla":
            raise ValueError("\nnot this one\nmore")
        return compile_step_of(learner, mesh, batch)

    # Programs for one device compile in a third of the time.
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(benchmark_suite, "Worker", WorkerHere)
    monkeypatch.setattr(benchmark_worker, "compile_step_of", limited)
    found = run.bench_suite(tmp_path, steps=2)
    assert found["device"]["attention"] == ["cpu", "xla"]
    assert found["device"]["matmul_flops"] > 0
    assert found["input"]["samples_per_second"] > 0
    rows = dict(zip(shapes(found), found["rows"], strict=True))
    assert len(rows) == 5
    short = rows.pop(("tiny", "text", "cpu", "none"))
    assert (short["status"], short["rows_per_device"]) == ("out of memory", 1)
    assert short["note"].count("Out of memory while trying to allocate 7 bytes.") == 2
    for name in (("tiny", "text", "xla", "dots"), ("double", "text", "cpu", "dots")):
        failed = rows.pop(name)
        assert (failed["status"], failed["note"]) == ("failed", "ValueError: not this one")
    assert [losses for _, losses, _, _ in rows] == ["text", "text, semantic, pixel attached"]
    for row in rows.values():
        assert row["status"] == "measured"
        assert 0 < row["step_seconds"]["p50"] <= row["step_seconds"]["max"]
        # No step has more tokens than slots, and few of those are empty.
        slots = row["batch_size"] * row["seq_len"] / row["step_seconds"]["p50"] / found["device"]["devices"]
        assert 0.8 * slots < row["tokens_per_second_per_device"] <= slots
        assert row["mfu_of_matmul"] > 0
        # Parameters and two moments in float32.
        assert row["memory_bytes"] > 12 * row["parameters"]
        assert row["plan"]["step_seconds"] > 0
        assert row["plan"]["hbm_bytes_per_chip"] > 0
    assert "| tiny | text | cpu | none |" in (tmp_path / "suite.md").read_text()


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("RESOURCE_EXHAUSTED: Failed to allocate request for 12.00GiB on device ordinal 0", "out of memory"),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm.",
            "out of memory",
        ),
        ("INTERNAL: failed to load module: CUDA_ERROR_OUT_OF_MEMORY", "out of memory"),
        # A smaller batch would not help a kernel that asks for too much of the memory inside the chip.
        ("RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 300000, available: 232448", "failed"),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem.", "failed"),
        ("INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS", "failed"),
    ],
)
def test_errors_of_devices(text, status, monkeypatch):
    def fail(found):
        raise jax.errors.JaxRuntimeError(text)

    monkeypatch.setitem(benchmark_worker._MEASUREMENTS, "row", fail)
    assert benchmark_worker.answer("row") == {"status": status, "note": f"JaxRuntimeError: {text}"}


def test_memory_of_a_program_counts_what_it_reuses_once():
    sizes = {"argument": 10, "output": 8, "alias": 6, "temp": 4, "generated_code": 1}
    found = types.SimpleNamespace(**{f"{name}_size_in_bytes": size for name, size in sizes.items()})
    assert benchmark_worker._program_bytes(types.SimpleNamespace(memory_analysis=lambda: found)) == 17
    assert benchmark_worker._program_bytes(types.SimpleNamespace(memory_analysis=lambda: None)) is None


def test_a_process_that_hangs_or_dies_is_an_answer_and_the_next_one_works(tmp_path):
    worker = benchmark_suite.Worker(tmp_path)
    try:
        assert worker.ask(0.1, "device") == {"status": "not finished in time"}
        worker._start()
        os.kill(worker._process.pid, signal.SIGKILL)
        dead = worker.ask(60, "device")
        assert dead["status"] == "failed"
        assert dead["note"].startswith("the process was ended by SIGKILL")
        assert worker.ask(120, "device")["platform"] == "cpu"
    finally:
        worker.close()
    assert worker._process is None


@pytest.mark.parametrize(
    ("platform", "expected"), [("cpu", ["cpu", "xla"]), ("gpu", ["cudnn", "triton", "xla"]), ("tpu", ["splash", "xla"])]
)
def test_attention_that_is_made_for_a_platform(platform, expected, monkeypatch):
    monkeypatch.setattr(attention, "platform", lambda mesh: platform)
    assert attention.native(None, 4096, 64, jax.numpy.bfloat16) == expected


def test_rows_have_several_segments_and_all_their_images():
    scale = benchmark_rows.scale_of("gpu")
    config = benchmark_rows.row_config(benchmark_rows.Row("1B", "text", "xla", "dots"), scale, 1)
    batch = benchmark_rows.synthetic_rows(config, 100)
    assert batch["segment"].max() > 12
    assert (batch["segment"] > 0).mean() > 0.95
    assert (batch["image"] >= 0).sum() == 12 * 256
    assert (batch["role"] > 0).all()
    assert 0 < batch["tokens"].max() < 100
    expected = {name: (shape.shape, shape.dtype) for name, shape in batch_shapes(config, None).items()}
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--suite", "--config=c.py"], "--config=c.py with --suite: expected one or the other"),
        (["--suite", "--config.train.steps=3"], "--config.train.steps with --suite: expected one or the other"),
        (["--suite", "--steps=0"], "--steps=0: expected 1 or more"),
        (["--suite", "--minutes=0"], "--minutes: '0': expected a time above 0"),
        (["--suite", f"--out={__file__}"], "is a file: expected a directory"),
        (["--config=c.py", "--minutes=3"], "--minutes=3 is for --suite"),
        (["--config=c.py", "--out=no/where.json"], "--out: no/where.json: there is no directory no"),
    ],
)
def test_wrong_flags_are_one_line(flags, expected, capsys):
    assert cli.main(["bench", *flags]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_a_job_of_several_processes_is_refused(monkeypatch):
    for name, value in (("ADDRESS", "here:1234"), ("ID", "0")):
        monkeypatch.setenv({"ADDRESS": "JAX_COORDINATOR_ADDRESS", "ID": "JAX_PROCESS_ID"}[name], value)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(UsageError, match="--suite measures the devices of one process, and this job has 2"):
        run.bench_suite()


def test_the_flags_are_handed_over(monkeypatch, tmp_path):
    noted = []
    monkeypatch.setitem(vars(run), "bench_suite", lambda out, **settings: noted.append((out, settings)))
    assert cli.main(["bench", "--suite"]) == 0
    assert cli.main(["bench", "--suite", f"--out={tmp_path / 'new'}", "--minutes=2.5", "--steps=3"]) == 0
    assert noted == [(None, {}), (tmp_path / "new", {"minutes": 2.5, "steps": 3})]
