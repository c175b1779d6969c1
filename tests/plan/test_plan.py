from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from unihetero_jax import cli
from unihetero_jax.config import loading as config_file
from unihetero_jax.config import table_rows
from unihetero_jax.errors import UsageError
from unihetero_jax.model import flops
from unihetero_jax.parallel import hlo
from unihetero_jax.parallel.mesh import make_mesh
from unihetero_jax.plan import estimate, planner, roofline, search
from unihetero_jax.plan.format import format_plan
from unihetero_jax.plan.hardware import parse_topology
from unihetero_jax.plan.lowering import lower

_TINY = Path(__file__).parents[1] / "fixtures" / "tiny.py"
_SMALL = [("model.decoder.layers", "1"), ("losses.pixel.weight", "0")]


@pytest.mark.parametrize(
    ("text", "kind", "chips", "slices"),
    [("v5p:8x8x4", "v5p", 256, 1), ("v6e:16x16,slices=2", "v6e", 512, 2), ("gpu:h100x64", "h100", 64, 1)],
)
def test_topologies(text, kind, chips, slices):
    hardware = parse_topology(text)
    assert (hardware.kind, hardware.chips, hardware.slices) == (kind, chips, slices)


@pytest.mark.parametrize(
    ("text", "wrap"),
    [
        ("v5p:8x8x4", (True, True, True)),
        ("v5p:2x2x4", (False, False, False)),
        ("v6e:16x16", (True, True, False)),
        ("v6e:8x16", (False, True, False)),
        ("v5e:8x8", (False, False, False)),
    ],
)
def test_which_links_go_round(text, wrap):
    assert parse_topology(text).wrap == wrap


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("v5q:8x8", "did you mean 'v5p'"),
        ("v5p:8x8", "3 dimensions"),
        ("gpu:h10x8", "did you mean 'h100'"),
        ("cpu:none", "expected a number of devices"),
        ("v5p:8x8x8,slice=2", "expected slices=N"),
        ("gpu:h100x8,slices=2", "only TPUs have slices"),
    ],
)
def test_topologies_that_are_none(text, complaint):
    with pytest.raises(UsageError, match=complaint):
        parse_topology(text)


def test_the_slowest_resource_bounds_a_step():
    hardware = parse_topology("v5p:2x2x1")
    traffic = [{"axis": "fsdp", "bytes": 600e9}, {"axis": "slice", "bytes": 6.25e9 / 2}]
    found = roofline.resource_seconds(hardware, 4 * 459e12 * 3, 2765e9, traffic)
    assert list(found.items()) == [
        ("compute", 3.0),
        ("memory", 1.0),
        ("links", 1.0),
        ("network", 0.5),
    ]


def test_xla_counts_nothing_inside_kernels_and_a_step_does_it_all_the_same():
    config = config_file.load(_TINY, [*_SMALL, ("data.seq_len", "256")])
    parts = {part.name: part for part in flops.step_parts(config, 384, "splash")}
    kernel = parts["decoder attention"].executed
    others = sum(part.executed for part in parts.values()) - kernel
    found = {"mesh": {"slice": 1, "fsdp": 4, "context": 1, "tensor": 1}, "attention": "splash", "compile_seconds": 1.0}
    found |= {"xla_flops": others / 4 * 1.01, "xla_flops_once": 1.0}
    found |= {"collectives": [{"kind": "all-gather", "axis": "fsdp", "count": 1, "bytes": 30.0}]}
    found["vocabulary_rows"] = 4 * 1000
    found["least_fsdp_bytes"] = {"float32": 40.0, "bfloat16": 30.0}
    plan = roofline.build_plan(config, 384, parse_topology("v5e:2x2"), found)
    assert plan["flops_agreement"] == pytest.approx(1 / 1.01 - 1)
    assert plan["seconds"]["compute"] * 4 * 197e12 == pytest.approx(1.01 * others + kernel)
    assert (plan["links"]["ratio_float32"], plan["links"]["ratio_bfloat16"]) == (0.75, 1.0)
    assert f"{kernel:.3e} inside kernels excluded" in format_plan(plan)
    assert plan["logits_replicated"]
    assert "each chip holds the logits of 4,000 slots" in format_plan(plan)


def test_a_mesh_from_the_command_line():
    config = planner.with_mesh(config_file.load(_TINY), "tensor=2")
    assert (config.mesh.fsdp, config.mesh.tensor) == (-1, 2)
    with pytest.raises(UsageError, match="did you mean 'tensor'"):
        planner.with_mesh(config, "tensors=2")
    with pytest.raises(UsageError, match="tensor=N"):
        planner.with_mesh(config, "tensor=two")


def test_candidates_divide_what_they_split():
    config = config_file.load(_TINY)
    found = search.candidates(config, parse_topology("gpu:h100x8"))
    assert {entry.model.decoder.remat for entry in found} == {"none", "dots", "full"}
    for entry in found:
        sizes = entry.mesh
        assert sizes.slice * sizes.fsdp * sizes.context * sizes.tensor == 8
        assert entry.train.batch_size % sizes.fsdp == 0
        assert entry.model.decoder.kv_heads % sizes.tensor == 0
    with pytest.raises(UsageError, match="nearest batch size that one divides is 4096"):
        search.search_plans(config, parse_topology("gpu:h100x4096"), lambda configs, estimate: iter(()), True)


def test_the_process_that_compiles_ends_with_the_one_that_asked(tmp_path):
    requests = tmp_path / "requests.json"
    requests.write_text("[]", encoding="utf-8")
    code = (
        "import sys, time; from unihetero_jax.plan import compile_worker as c; c.json.loads = lambda _: time.sleep(60)"
    )
    command = [sys.executable, "-c", f"{code}; sys.argv[1:] = [{str(requests)!r}, 'programs']; c.main()"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=30) == 1


def test_the_command_refuses_in_one_line(capsys):
    assert cli.main(["plan", f"--config={_TINY}", "--topology=v9:2x2"]) == 2
    message = capsys.readouterr().err
    assert "--topology=v9:2x2" in message
    assert message.count("\n") == 1


def _planned(tmp_path, *arguments):
    out = tmp_path / "plan.json"
    overrides = [f"--config.{key}={value}" for key, value in _SMALL]
    code = cli.main(["plan", f"--config={_TINY}", f"--out={out}", *overrides, *arguments])
    return code, json.loads(out.read_text(encoding="utf-8")) if out.exists() else None


def test_an_estimate_says_that_it_is_one(tmp_path, capsys):
    code, plan = _planned(tmp_path, "--topology=gpu:h100x8")
    assert code == 0
    assert plan["estimate"]
    assert "estimate by formula" in capsys.readouterr().out
    assert plan["hbm_bytes_per_chip"] > plan["hbm"]["parameter_bytes"] > 0


def test_a_plan_from_python_is_the_one_that_is_stored(tmp_path):
    _, stored = _planned(tmp_path, "--topology=gpu:h100x8", "--mesh=tensor=2")
    found = planner.plan(config_file.load(_TINY, _SMALL), "gpu:h100x8", mesh={"tensor": 2})
    assert json.loads(json.dumps(found)) == stored
    assert found["mesh"] == {"slice": 1, "fsdp": 4, "context": 1, "tensor": 2}


def test_kernels_leave_no_scores_in_memory():
    config = config_file.load(_TINY, [*_SMALL, ("data.seq_len", "2048"), ("losses.text.chunk", "16")])
    mesh = {"slice": 1, "fsdp": 4, "context": 1, "tensor": 1}
    plain, cudnn, splash = (estimate.activation_bytes(config, 384, mesh, name) for name in ("xla", "cudnn", "splash"))
    # Two rows a chip: kept for a layer, and twice while one is worked on; float32, in two types, and of a mask one.
    pairs = 2 * 2048**2
    assert plain - splash == pytest.approx(3 * pairs * 4 * 8)
    assert cudnn - splash == pytest.approx(3 * pairs * 4)


def test_what_is_not_here_cannot_be_measured(tmp_path, capsys):
    assert _planned(tmp_path, "--topology=gpu:h100x8", "--measure")[0] == 2
    assert "8 gpu devices are needed" in capsys.readouterr().err


def test_what_a_search_chose_is_what_is_measured():
    config = config_file.load(_TINY)
    mesh = {"slice": 1, "fsdp": 2, "context": 2, "tensor": 1}
    chosen = planner.planned_config(config, {"remat": "full", "batch_size": 4, "mesh": mesh})
    assert (chosen.model.decoder.remat, chosen.train.batch_size, chosen.mesh.context) == ("full", 4, 2)


def test_what_does_not_fit_exits_with_3(tmp_path):
    code, plan = _planned(tmp_path, "--topology=gpu:h100x8", "--config.data.seq_len=200000")
    assert code == 3
    assert not plan["fits"]


def test_a_step_is_compiled_for_devices_of_another_number(tmp_path, capsys):
    code, plan = _planned(tmp_path, "--topology=cpu:4", "--mesh=fsdp=2,tensor=2", "--measure")
    assert code == 0
    assert plan["measured_step_seconds"] > 0
    assert plan["mesh"] == {"slice": 1, "fsdp": 2, "context": 1, "tensor": 2}
    wanted = {"chips", "hbm_bytes_per_chip", "hbm_limit_bytes", "flops_per_step", "step_seconds", "bound_by"}
    assert wanted | {"collectives", "tokens_per_second", "compile_seconds"} <= set(plan)
    assert any("tensor" in entry["axis"] for entry in plan["collectives"])
    assert plan["vocabulary_rows"] >= 1
    assert not plan["logits_replicated"]
    # At this size what is not a matrix product still counts.
    assert abs(plan["flops_agreement"]) < 0.25
    assert "the real step, compiled" in capsys.readouterr().out


def test_a_step_is_compiled_for_a_tpu(tmp_path, capsys):
    if importlib.util.find_spec("libtpu") is None:
        assert _planned(tmp_path, "--topology=v5e:2x4")[0] == 2
        assert "pip install 'unihetero_jax[plan]'" in capsys.readouterr().err
        pytest.skip("no libtpu")
    code, plan = _planned(tmp_path, "--topology=v5e:2x4")
    assert code == 0
    assert plan["chips"] == 8
    assert plan["flops_xla"] > 0


@pytest.mark.slow
def test_tpu_slices_meet_over_the_network(tmp_path):
    pytest.importorskip("libtpu")
    # Shards of a narrow model are padded to whole tiles, of 8 by 128 numbers; at this width few are.
    wide = "--config.model.decoder.width=512"
    code, plan = _planned(tmp_path, "--topology=v5e:2x2,slices=2", "--mesh=slice=2", wide)
    assert code == 0
    assert plan["mesh"] == {"slice": 2, "fsdp": 4, "context": 1, "tensor": 1}
    summed = sum(e["bytes"] for e in plan["collectives"] if (e["kind"], e["axis"]) == ("all-reduce", "slice"))
    # The gradients of a chip's shards, and once; whole ones would be four times as much.
    assert plan["hbm"]["parameter_bytes"] <= summed <= 1.3 * plan["hbm"]["parameter_bytes"]
    assert plan["seconds"]["network"] > 0


@pytest.mark.slow
def test_a_search_compiles_the_best_candidates_for_a_tpu(tmp_path, capsys):
    pytest.importorskip("libtpu")
    code, plan = _planned(tmp_path, "--topology=v5e:2x2", "--search")
    assert code == 0
    assert not plan["estimate"]
    assert [entry["estimate"] for entry in plan["candidates"]].count(False) == 3
    assert plan["tokens_per_second"] == max(
        entry["tokens_per_second"] for entry in plan["candidates"] if not entry["estimate"]
    )
    assert "by formula" in capsys.readouterr().out


@pytest.mark.slow
def test_a_tpu_step_that_does_not_fit_exits_with_3(tmp_path, capsys):
    pytest.importorskip("libtpu")
    code, plan = _planned(tmp_path, "--topology=v5e:2x2", "--vocabulary=200000", "--config.data.seq_len=16384")
    assert code == 3
    assert not plan["fits"]
    assert plan["hbm_bytes_per_chip"] > plan["hbm_limit_bytes"]
    assert "DOES NOT FIT" in capsys.readouterr().out


@pytest.mark.slow
def test_no_device_draws_the_latents_of_all_rows():
    values = [*_SMALL[:1], ("losses.pixel.kind", "diffusion"), ("losses.pixel.width", "24")]
    values += [("losses.pixel.depth", "1"), ("losses.pixel.draws", "1")]
    config = config_file.load(_TINY, values)
    lowered, _ = lower(config, 384, make_mesh(config.mesh))
    # 8 rows of 2 images of 16 tokens, and one row of them.
    text = lowered.compile().as_text()
    assert "[1,32,24]" in text
    assert "[8,32,24]" not in text


def test_no_device_holds_the_logits_of_others():
    # 8 rows, one a device, each in chunks of 32 slots; a table has as many rows as the decoder is wide.
    values = [*_SMALL, ("losses.text.chunk", "32"), ("model.decoder.width", "16"), ("model.decoder.heads", "2")]
    values += [("model.decoder.kv_heads", "2"), ("train.batch_size", "8")]
    config = config_file.load(_TINY, values)

    lowered, _ = lower(config, 1000, make_mesh(config.mesh))
    module = hlo.parse(lowered.compile().as_text())
    assert hlo.most_rows(module, 1000, table_rows(1000)) == 32
    assert roofline.logit_rows(config, {"slice": 1, "fsdp": 8, "context": 1, "tensor": 1}) == 32
