"""What ``tests/baseline.py`` calls a difference."""

import baseline


def test_a_last_digit_is_a_difference_and_a_renamed_key_is_listed_apart():
    expected = {
        "metrics": {"a.py": [{"loss": 2.5, "text": 1.0}, {"loss": 2.25, "text": 1.0}]},
        "scores": {"a.py": {"spread": float("nan")}},
        "configs": {"a.py": {"data.slots": 160, "mesh.axes": [], "train.steps": 30}},
    }
    found = {
        "metrics": {"a.py": [{"loss": 2.5, "text": 1.0}, {"loss": 2.2500000000000004, "text": 1.0}]},
        "scores": {"a.py": {"spread": float("nan")}},
        "configs": {"a.py": {"data.seq_len": 160, "mesh.axes": [], "train.steps": 31}},
    }
    assert baseline.differences(expected, expected) == ([], [])
    changed, missing = baseline.differences(expected, found)
    assert changed == ["metrics.a.py.1.loss: 2.25 -> 2.2500000000000004", "configs.a.py.train.steps: 30 -> 31"]
    assert missing == [
        "only in the reference: configs.a.py.data.slots = 160",
        "only here: configs.a.py.data.seq_len = 160",
    ]
