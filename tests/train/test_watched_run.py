"""What a real run tells of itself: lines, timings, traces; and what `status` and `bench` make of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal

import pytest
import runs

from unihetero_jax import cli
from unihetero_jax.config import loading as config_file
from unihetero_jax.config import lookup
from unihetero_jax.run import benchmark as bench
from unihetero_jax.run import train_model as main
from unihetero_jax.train.monitor.goodput import read_events
from unihetero_jax.train.monitor.telemetry import MetricsLog

STEPS = 8


def load(dataset, *overrides: str):
    texts = [f"data.root={dataset}", "logging.tensorboard=false", *overrides]
    return config_file.load(runs.TINY, [tuple(text.split("=", 1)) for text in texts])


@pytest.fixture(scope="module")
def watched(dataset, tmp_path_factory):
    """Workdir and log of a run: windows of four steps, a trace of two, and a signal at the fifth."""
    workdir = tmp_path_factory.mktemp("watched") / "run"
    config = load(
        dataset, f"train.steps={STEPS}", "logging.every_steps=4", "logging.profile_steps=2,3", "logging.signal_steps=1"
    )
    write = MetricsLog.write

    def write_and_signal(log: MetricsLog, row) -> None:
        write(log, row)
        if row["step"] == 5:
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsLog, "write", write_and_signal)
        assert main.train_model(config, workdir) == 0
    return workdir, (workdir / "logs" / "host-00000.log").read_text()


def test_the_formula_is_said_once_with_both_counts(watched):
    _, log = watched
    assert log.count("MFU: a step needs") == 1
    assert "a product is 2·m·k·n, causal attention counted once" in log
    assert re.search(r"of 8 × \S+ FLOP/s \(measured float32 product; no published peak for 'cpu'\)", log)
    assert "decoder linears" in log
    ours, xla = map(float, re.search(r"the program does (\S+) by our count .* and (\S+) by XLA's", log).groups())
    # At this size what is no product counts, too; and on a mesh of eight some products are made by all devices.
    assert 0.5 < ours / xla < 1.5
    assert re.search(r"8 steps: [\d,]+ samples/s, [\d,]+ tokens/s/device, MFU \d+\.\d%, step p50 ", log)
    assert "goodput " in log


def test_windows_have_quantiles_and_memory_and_every_step_its_mfu(watched):
    rows = [json.loads(line)["timing"] for line in (watched[0] / "metrics.jsonl").read_text().splitlines()]
    assert [step for step, row in enumerate(rows, 1) if "step_seconds_p99" in row] == [4, 8]
    assert all(row["mfu"] > 0 and row["tokens_per_second_per_device"] > 0 for row in rows)
    last = rows[-1]
    assert last["step_seconds_p50"] <= last["step_seconds_p90"] <= last["step_seconds_max"]
    assert last["step_seconds_max"] == max(row["step_seconds"] for row in rows[4:])
    assert last["host_memory_bytes"] > 2**26
    # What comes from the clock stands apart.
    assert not any("seconds" in name or "memory" in name for name in runs.metrics(watched[0])[-1])


def test_traces_are_where_the_log_says(watched):
    workdir, log = watched
    places = re.findall(r"profiled steps (\d+ to \d+): tensorboard --logdir=(\S+)$", log, re.M)
    assert {steps for steps, _ in places} == {"2 to 3", "6 to 6"}
    for _, place in places:
        assert list((workdir.parent / place).rglob("*.xplane.pb"))


def test_status_of_a_run_that_is_complete(watched, capsys):
    workdir, _ = watched
    assert cli.main(["status", f"--workdir={workdir}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{re.escape(str(workdir))}: step 8 of 8 \(100\.0%\), loss \d+\.\d{{4}}", lines[0])
    assert lines[1].startswith("state        complete; last update ")
    assert re.search(r"step p50 \S+ p90 .* tokens/s/device, MFU \S+; 0\.0 s to go", lines[2])
    assert lines[3] == "checkpoint   step 8"
    assert lines[4].startswith("time         goodput ")


def test_status_of_a_run_that_was_killed(watched, capsys, tmp_path):
    shutil.copytree(watched[0], tmp_path / "run")
    events = tmp_path / "run" / "events.jsonl"
    kept = [line for line in events.read_text().splitlines(keepends=True) if '"complete"' not in line]
    events.write_text("".join(kept))
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(rows[:6]) + rows[6][:20])
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    assert cli.main(["status", f"--workdir={tmp_path / 'run'}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["step"], found["steps"], found["newest_checkpoint"], found["ended"]) == (6, 8, 5, None)
    assert found["starts"] == 1
    assert found["window"]["mfu"] > 0
    assert sum(found["seconds"].values()) == pytest.approx(found["wall_seconds"])


def test_status_of_no_run_is_one_line(tmp_path, capsys):
    assert cli.main(["status", f"--workdir={tmp_path}"]) == 2
    assert "no readable config.json; expected the --workdir of a training run" in capsys.readouterr().err


def test_a_run_that_fails_says_so(dataset, tmp_path):
    config = load(dataset, "train.steps=8", "optimizer.learning_rate=1e29", "optimizer.warmup_steps=1")
    assert main.train_model(config, tmp_path / "run") == 1
    assert [event["event"] for event in read_events(tmp_path / "run")][-1] == "failed"


def test_bench_measures_input_step_and_both(dataset, tmp_path, capsys):
    out = tmp_path / "bench.json"
    config = load(dataset)
    bench.bench(config, 3, out)
    found = json.loads(out.read_text())
    text = capsys.readouterr().out
    for part in ("input pipeline alone", "step, synthetic data", "step, real data", "data wait", "memory"):
        assert part in text
    assert found["devices"] == 8
    assert found["steps"] == 3
    assert found["input_samples_per_second_per_host"] == min(found["input_samples_per_second_by_host"]) > 0
    for kind in ("synthetic", "real"):
        seconds = found[f"{kind}_step_seconds"]
        assert 0 < seconds["p50"] <= seconds["p99"] <= seconds["max"]
        assert found[f"{kind}_mfu"] > 0
        rate = found[f"{kind}_tokens_per_second_per_device"] * 8
        # No step has more tokens than slots.
        assert 0 < rate <= 1.01 * lookup(config, "train.batch_size") * config.data.seq_len / seconds["p50"] * 2
    assert found["synthetic_data_wait"] == 0
    assert found["peak_source"].startswith("measured")


def test_bench_wants_a_dataset_and_steps(capsys):
    assert cli.main(["bench", f"--config={runs.TINY}"]) == 2
    assert "config.data.root is empty: expected a dataset" in capsys.readouterr().err
    assert cli.main(["bench", f"--config={runs.TINY}", "--steps=0"]) == 2
    assert "--steps=0: expected 1 or more" in capsys.readouterr().err
