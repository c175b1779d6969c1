"""The plans of the large experiments, stored in configs/plans/, are those of the configs as they are now.

    python tests/plan/test_stored_plans.py [NAME ...]
    python tests/plan/test_stored_plans.py --rename-keys

The first command plans them again. The second is for renamed config keys: it stores the config and its digest again,
where the FLOPs of a step show that it is still the config that was planned.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from unihetero_jax.config import loading as config_file
from unihetero_jax.model import flops
from unihetero_jax.plan.fingerprint import digest, shaping_values

ROOT = Path(__file__).resolve().parents[2]
PLANS = ROOT / "configs" / "plans"


@dataclass(frozen=True)
class Case:
    """A plan: of which config, changed how, for what."""

    config: str
    topology: str
    overrides: tuple[str, ...] = ()


# The three arms of the paper: no pixel objective, one that the decoder does not learn from, one that it does.
ARMS = {
    "off": ("losses.pixel.weight=0",),
    "detached": (),
    "attached": ("losses.pixel.gradient_to_decoder=1",),
}
CASES = {
    f"unihetero_7b_{arm}_{name}": Case("unihetero_7b.py", topology, overrides)
    for arm, overrides in ARMS.items()
    for name, topology in {"v5p-512": "v5p:8x8x4", "v6e-256": "v6e:16x16"}.items()
}
CASES |= {
    "unihetero_1b_v5e-64": Case("unihetero_1b.py", "v5e:8x8"),
    "unihetero_1b_h100x8": Case("unihetero_1b.py", "gpu:h100x8"),
}
CASES |= {
    f"llava15_clip_{drawn}{stage}_h100x8": Case(f"llava15_clip_{drawn}{stage}.py", "gpu:h100x8")
    for drawn in ("clip", "vq")
    for stage in ("", "_stage1")
}
# Paper B's Smart Watch runs at its size.
CASES |= {
    f"smartwatch_{shown}_{drawn}_h100x8": Case(f"pairings/{shown}_{drawn}.py", "gpu:h100x8")
    for shown in ("siglip", "vq")
    for drawn in ("siglip", "vq")
}


def stored(name: str) -> dict:
    return json.loads((PLANS / f"{name}.json").read_text(encoding="utf-8"))


def load(case: Case):
    return config_file.load(ROOT / "configs" / case.config, [tuple(text.split("=", 1)) for text in case.overrides])


def command(name: str, out: Path) -> list[str]:
    case = CASES[name]
    changes = [f"--config.{text}" for text in case.overrides]
    return [
        *(sys.executable, "-m", "unihetero_jax", "plan", f"--config=configs/{case.config}"),
        *(f"--topology={case.topology}", f"--out={out}", *changes),
    ]


def test_every_case_has_its_plan_and_no_other_is_there():
    assert {path.stem for path in PLANS.glob("*.json")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_of_the_config_as_it_is(name):
    plan, config = stored(name), load(CASES[name])
    changed = f"configs/plans/{name}.json is of another config: python {Path(__file__).relative_to(ROOT)} {name}"
    assert plan["config"] == shaping_values(config), changed
    assert plan["config_digest"] == digest(config), changed
    assert plan["topology"] == CASES[name].topology
    parts = flops.step_parts(config, plan["vocabulary"])
    assert plan["flops_per_step"] == pytest.approx(sum(part.model for part in parts)), changed
    assert plan["tokens_per_second"] * plan["step_seconds"] == pytest.approx(
        config.train.batch_size * config.data.seq_len
    )


@pytest.mark.parametrize("name", CASES)
def test_it_fits_with_a_tenth_to_spare(name):
    plan = stored(name)
    assert plan["fits"]
    assert plan["hbm_bytes_per_chip"] <= 0.9 * plan["hbm_limit_bytes"]
    assert plan["estimate"] == CASES[name].topology.startswith("gpu:")


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].topology.startswith("v")])
def test_what_compiling_found(name):
    plan, layers = stored(name), load(CASES[name]).model.decoder.layers
    assert plan["peak_host_bytes"] <= 8 * 2**30
    assert abs(plan["flops_agreement"]) <= 0.03
    assert plan["links"]["ratio_float32"] <= 1.05
    # Attention's result is kept, so that no layer makes it twice; an accumulated batch goes through all of them again.
    assert plan["attention"] == "splash"
    times = load(CASES[name]).train.accumulation * layers
    assert {entry["name"].split("_")[2]: entry["count"] for entry in plan["kernels"]} == dict.fromkeys(
        ("fwd", "dq", "dkv"), times
    )
    moved = [entry["bytes"] for entry in plan["collectives"] if "all-to-all" in entry["kind"]]
    # Looking up tokens in a table that is split by its width, and nothing else.
    assert sum(moved) < 0.01 * plan["links"]["fsdp_bytes"]


def main() -> None:
    """Plan again the plans that are named, or all; or store their configs by the keys' new names."""
    if sys.argv[1:] == ["--rename-keys"]:
        for name, case in CASES.items():
            plan, config = stored(name), load(case)
            work = sum(part.model for part in flops.step_parts(config, plan["vocabulary"]))
            assert plan["flops_per_step"] == pytest.approx(work), f"{name} is of another config: plan it again"
            plan |= {"config": shaping_values(config), "config_digest": digest(config)}
            (PLANS / f"{name}.json").write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
        return
    PLANS.mkdir(exist_ok=True)
    for name in sys.argv[1:] or CASES:
        print(f"== {name}", flush=True)
        subprocess.run(command(name, PLANS / f"{name}.json"), cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
