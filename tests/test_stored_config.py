"""Configs as a workdir stores them: what comes back as it was written, and what a resumed run may change."""

from __future__ import annotations

import dataclasses
import json

import pytest

from unihetero_jax import config
from unihetero_jax.config.constraints import FREE_ON_RESUME, PER_HOST
from unihetero_jax.config.tree import marked_keys


def test_config_is_frozen_and_goes_through_json():
    resolved = config.Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolved.train.steps = 3  # type: ignore[misc]
    assert config.resolve(json.loads(config.to_json(resolved))) == resolved


def test_only_what_is_learned_is_refused_on_resume():
    old = config.Config().to_dict()
    changed = {"train": {"steps": 9, "seed": 4}, "data": {"threads": 1, "workers": 3}, "mesh": {"tensor": 2}}
    new = config.resolve(changed).to_dict()
    assert config.difference(old, new) == ["data.threads", "data.workers", "mesh.tensor", "train.seed", "train.steps"]
    assert config.refused_on_resume(old, new) == ["train.seed"]


@pytest.mark.parametrize(("value", "refused"), [("", []), ("weather", ["data.smart_watch.withheld"])])
def test_a_run_of_a_version_without_a_setting_did_as_its_default_says(value, refused):
    old = config.Config().to_dict()
    del old["data"]["smart_watch"]["withheld"]
    new = config.resolve({"data": {"smart_watch": {"withheld": value}}}).to_dict()
    assert config.refused_on_resume(old, new) == refused


def test_a_mark_holds_for_all_that_is_below_and_one_of_hosts_for_resuming_too():
    free, per_host = (set(marked_keys(config.Config, mark)) for mark in (FREE_ON_RESUME, PER_HOST))
    assert "data.workers" in per_host < free
    old = config.Config().to_dict()
    new = config.resolve({"evaluators": {"mine": {"kind": "probes"}}, "model": {"decoder": {"layers": 5}}}).to_dict()
    assert config.refused_on_resume(old, new) == ["model.decoder.layers"]


def test_a_loss_without_a_weight_stays_out_of_a_stored_config():
    without = config.resolve({"losses": {"pixel": {"weight": 0.0}}})
    assert "pixel" not in without.losses
    assert config.resolve(without.to_dict()) == without
