"""Damage at random: what is damaged is left out or refused, never something else, and never the end of the process.

``tests/benchmarks/fuzz.py`` does the same five thousand times.
"""

from __future__ import annotations

import os
import time

import import_cases
import mutations

KINDS = {"image": mutations.image_case, "record": mutations.record_case, "shard": mutations.shard_case}


def case(number: int) -> str:
    kind = list(KINDS)[number % 3]
    return f"{kind} {KINDS[kind](number // 3)}"


def test_damage_is_left_out_or_refused():
    outcomes = mutations.run(case, range(60), limit_s=60)
    assert outcomes.keys() <= {f"{kind} {outcome}" for kind in KINDS for outcome in mutations.FINE}
    assert outcomes.total() == 60
    for kind in KINDS:
        assert outcomes[f"{kind} left out"] + outcomes[f"{kind} refused"] >= 5
    assert not outcomes["shard undetectable"]


def fail(number: int) -> str:
    if number == 1:
        time.sleep(1000)
    if number == 2:
        os._exit(7)
    if number == 3:
        raise KeyError("x")
    return "same"


def test_the_end_of_a_process_and_silence_are_findings():
    assert mutations.run(fail, range(5), limit_s=0.5) == {
        "same": 2,
        "hang: case 1": 1,
        "crash: case 2: the process ended with 7": 1,
        "crash: case 3: KeyError: 'x'": 1,
    }


def test_damaged_imports_are_exact_or_refused():
    outcomes = mutations.run(import_cases.import_case, range(90), limit_s=60)
    assert outcomes.keys() <= set(mutations.FINE)
    assert outcomes.total() == 90
    assert min(outcomes["same"], outcomes["left out"], outcomes["refused"]) >= 5
