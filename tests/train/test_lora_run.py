"""Training with LoRA: what changes, what is stored, how it goes on, and on which base."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import packed
import pytest
import runs

from unihetero_jax.checkpoint import checksums, identity
from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.config import loading as config_file
from unihetero_jax.errors import UsageError
from unihetero_jax.run import train_model as main
from unihetero_jax.run.load_model import load_trained

LORA = {"model.lora.rank": 8, "model.lora.alpha": 16.0, "model.lora.dropout": 0.1}
OVERRIDES = (
    "logging.tensorboard=false",
    "train.steps=4",
    "checkpoint.every_steps=2",
    "model.lora.rank=8",
    "model.lora.alpha=16",
    "model.lora.dropout=0.1",
    "optimizer.frozen_dtype=bfloat16",
    "optimizer.groups.adapters.learning_rate_factor=0.5",
)


def run(dataset: Path, workdir: Path, *more: str) -> int:
    texts = (f"data.root={dataset}", *OVERRIDES, *more)  # what comes later counts
    return main.train_model(
        config_file.load(runs.TINY, list(dict(text.split("=", 1) for text in texts).items())), workdir
    )


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory) -> Path:
    """A run of four steps on eight devices, with checkpoints 2 and 4."""
    workdir = tmp_path_factory.mktemp("lora") / "whole"
    assert run(dataset, workdir) == 0
    return workdir


@pytest.fixture
def broken(whole, tmp_path) -> Path:
    """The run, as if it had been killed before its last checkpoint."""
    shutil.copytree(whole, tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "4")
    return tmp_path / "broken"


def test_a_step_changes_factors_adapters_and_heads_only():
    config = packed.configure(**LORA)
    before, after, _ = packed.one_step(config)
    same = jax.tree.map(np.array_equal, before["params"], after["params"])
    for name in ("lora", "understanding_adapter", "semantic_head", "pixel_head"):
        assert not any(jax.tree.leaves(same.pop(name))), name
    assert set(same) == {"decoder", "understanding_tower"}
    assert all(jax.tree.leaves(same))


def test_split_over_devices_and_recomputed_the_numbers_are_the_same():
    _, alone, expected = packed.one_step(packed.configure(**LORA))
    _, found, metrics = packed.one_step(packed.configure(**LORA, **{"model.decoder.remat": "full"}), (1, 2, 2, 2))
    for name in metrics:
        assert metrics[name] == pytest.approx(expected[name], rel=2e-5, abs=1e-6), name
    for left, right in zip(jax.tree.leaves(found["params"]), jax.tree.leaves(alone["params"]), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-5 * np.abs(right).max())


def test_a_checkpoint_holds_what_was_trained_and_names_its_base(whole):
    names = set(runs.arrays(whole, 4, ["state"]))
    params = {name.split("'")[3] for name in names if name.startswith("state['params']")}
    assert params == {"lora", "understanding_adapter", "semantic_head", "pixel_head"}
    assert not [name for name in names if "opt_state" in name and ("tower" in name or "embedding" in name)]
    assert "state['opt_state']['1']['0']['mu']['lora']['decoder']['layers']['query']['a']" in names
    base = checkpoint.read_json(whole, 4, "base")
    assert base["source"] == "config.train.seed=0"
    assert base == checkpoint.read_json(whole, 2, "base")


def test_it_goes_on_bit_for_bit_with_dropout(whole, broken, dataset):
    assert run(dataset, broken) == 0
    runs.assert_identical(broken, whole)


def test_it_is_evaluated_merged_or_not(whole, dataset, tmp_path):
    merged = load_trained(whole)
    assert "lora" not in merged.params
    shutil.copytree(whole, tmp_path / "apart")
    path = tmp_path / "apart" / "checkpoints" / "4" / "config" / "metadata"
    values = json.loads(path.read_text())
    values["evaluate"]["merge_lora"] = False
    path.write_text(json.dumps(values))
    path = path.parents[1] / identity.ITEM / "metadata"
    path.write_text(json.dumps({**json.loads(path.read_text()), "config": identity.digest(values)}))
    checksums.write(tmp_path / "apart" / "checkpoints" / "4")
    apart = load_trained(tmp_path / "apart")
    assert set(apart.params) == {*merged.params, "lora"}
    config = dataclasses.replace(apart.config, train=dataclasses.replace(apart.config.train, batch_size=2))
    batch = packed.random_batch(config)
    made = []
    for trained in (merged, apart):

        @jax.jit
        def hidden(params, model=trained.model):
            bound = model.bind(params)
            return bound.hidden(batch, bound.encode(batch))

        with jax.default_matmul_precision("highest"):
            made.append(np.asarray(hidden(trained.params)))
    np.testing.assert_allclose(made[0], made[1], atol=2e-4 * np.abs(made[1]).max())
    first = load_trained(whole, 2).params["decoder"]["layers"]["query"]["kernel"]
    assert not np.array_equal(merged.params["decoder"]["layers"]["query"]["kernel"], first)


def test_another_base_is_refused_by_name(broken, dataset):
    path = broken / "checkpoints" / "2" / "base" / "metadata"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({"source": "another/folder", "digest": "0123456789abcdef" * 4}))
    checksums.write(broken / "checkpoints" / "2")
    complaint = (
        rf"trained on the base another/folder \(digest 0123456789abcdef\).*seed=0 \(digest {stored['digest'][:16]}"
    )
    with pytest.raises(UsageError, match=complaint):
        run(dataset, broken)
    with pytest.raises(UsageError, match=complaint):
        load_trained(broken)


@pytest.mark.slow
def test_a_base_from_another_run_is_found_again_from_anywhere(dataset, tmp_path, monkeypatch):
    assert run(dataset, tmp_path / "base", "model.lora.rank=0", "train.steps=2", "train.seed=5") == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run(dataset, tmp_path / "tuned", "init.path=../base") == 0
    monkeypatch.chdir(tmp_path)
    base, tuned = (load_trained(tmp_path / name) for name in ("base", "tuned"))
    rows = np.asarray(base.params["decoder"]["embedding"])
    np.testing.assert_array_equal(
        tuned.params["decoder"]["embedding"], rows.astype(tuned.params["decoder"]["embedding"].dtype)
    )
    shutil.rmtree(tmp_path / "tuned" / "checkpoints" / "4")
    shutil.copytree(tmp_path / "tuned", tmp_path / "again")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run(dataset, tmp_path / "again", "init.path=../base") == 0
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(UsageError, match="base"):
        load_trained(tmp_path / "again")
