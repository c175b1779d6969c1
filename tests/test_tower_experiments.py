"""The configs of ``unihetero towers train``: the same door as for other runs, a root a kind."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from unihetero_jax import cli
from unihetero_jax.config import MeshConfig, refused_on_resume
from unihetero_jax.config import loading as config_file
from unihetero_jax.errors import UsageError
from unihetero_jax.parallel.mesh import check_sharded, make_mesh
from unihetero_jax.towers.common.autoencoder.config import KL16_TINY
from unihetero_jax.towers.siglip.config import PRESETS, SigLIPSizes
from unihetero_jax.train.towers.base import TRAINED_TOWERS, TowerRunConfig, config_class, defaults, resolve, tree
from unihetero_jax.train.towers.common import make_learner

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "towers"


def load(kind: str, *overrides: str) -> TowerRunConfig:
    return config_file.load(CONFIGS / f"{kind}.py", [tuple(text.split("=", 1)) for text in overrides], tree(kind))


@pytest.mark.parametrize("kind", TRAINED_TOWERS.kinds())
def test_every_kind_has_a_config_with_its_result(kind):
    config = load(kind)
    assert type(config) is config_class(kind)
    header = (CONFIGS / f"{kind}.py").read_text(encoding="utf-8").split('"""')[1]
    assert f"unihetero towers train {kind} --config=configs/towers/{kind}.py --workdir=" in header
    assert "two cores" in header
    assert "Measured" in header


def test_the_small_pairings_can_start_from_the_trained_tower():
    assert load("siglip").tower == SigLIPSizes(**PRESETS["siglip-tiny"])


@pytest.mark.parametrize("kind", TRAINED_TOWERS.kinds())
def test_every_config_is_split_on_eight_devices(kind):
    learner, mesh = make_learner(load(kind), 1024), make_mesh(MeshConfig(), jax.devices())
    learner.check(mesh)
    assert check_sharded(learner.model.shapes(), learner.model.shardings(mesh)) <= 0.02


@pytest.mark.parametrize("kind", TRAINED_TOWERS.kinds())
def test_a_config_survives_its_json(kind):
    config = load(kind, "train.steps=7")
    stored = json.loads(json.dumps(config.to_dict()))
    assert resolve(kind, stored) == config
    assert refused_on_resume(stored, config.to_dict()) == []
    assert refused_on_resume(stored, load(kind, "train.seed=1").to_dict()) == ["train.seed"]


def test_what_a_file_leaves_out_is_the_small_default():
    config = resolve("kl16", {"tower": {"latent": 6}})
    assert config.tower == dataclasses.replace(KL16_TINY, latent=6)
    assert resolve("vq16", defaults("vq16").to_dict()) == config_class("vq16")()


@pytest.mark.parametrize(
    ("kind", "override", "complaint"),
    [
        ("vq16", "towr.codes=3", "unknown config key config.towr.codes; did you mean 'config.tower.codes'?"),
        ("vq16", "tower.codes=many", "config.tower.codes=many: expected an integer"),
        ("vq16", "tower.codes=0", "config.tower.codes=0: expected a value above 0"),
        ("vq16", "tower.groups=3", "config.tower.channels="),
        ("vq16", "losses.commitment=-1", "config.losses.commitment=-1.0: expected 0 or more"),
        ("vq16", "losses.continuous=1.5", "config.losses.continuous=1.5: expected a value from 0 to 1"),
        ("vq16", "tower.stem=7", "config.tower.image_size=64: expected a multiple of 7"),
        ("vq16", "tower.multipliers=1,x", "config.tower.multipliers=1,x: expected integers separated by commas"),
        ("vq16", "losses.text.weight=1", "unknown config key config.losses.text.weight"),
        ("vq16", "train.accumulation=3", "config.train.accumulation=3 does not divide"),
        ("kl16", "optimizer.beta2=1.5", "config.optimizer.beta2=1.5: expected a value from 0 to 1"),
        (
            "kl16",
            "optimizer.kind=adam",
            "config.optimizer.kind='adam': expected one of 'adamw', 'lion', 'muon'; did you",
        ),
        (
            "kl16",
            "optimizer.groups.towers.frozen=true",
            "config.optimizer.groups: all parameters",
        ),
        ("kl16", "mesh.fsdp=0", "expected positive sizes"),
        ("kl16", "optimizer.learning_rate=inf", "config.optimizer.learning_rate=inf: expected a finite number"),
        ("siglip", "tower.heads=5", "config.tower.heads=5 does not divide"),
        ("siglip", "tower.registers=2", "config.tower.registers and config.tower.swiglu belong to dinov2"),
        ("siglip", "text.tokens=0", "config.text.tokens=0: expected a value above 0"),
        ("siglip", "losses.captioning=-1", "config.losses.captioning=-1.0: expected 0 or more"),
        ("siglip", "text.heads=7", "config.text.heads=7: a head is not an even share"),
        ("siglip", "train.accumulation=2", "compares all pairs of a batch"),
        ("attribute_classifier", "tower.angles=90", "config.tower.angles=90: expected a multiple of 60"),
        ("attribute_classifier", "tower.radii=0", "config.tower.radii=0: expected a value above 0"),
        ("attribute_classifier", "spoil.blur=-1", "config.spoil.blur=-1.0: expected 0 or more"),
        ("attribute_classifier", "spoil.share=2", "config.spoil.share=2.0: expected a value from 0 to 1"),
        ("attribute_classifier", "spoil.patch=7", "config.spoil.patch=7: does not divide config.tower.image_size=64"),
    ],
)
def test_what_is_wrong_is_one_line(kind, override, complaint):
    with pytest.raises(UsageError) as caught:
        load(kind, override)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["vq17"],
            "expected one of attribute_classifier, kl16, siglip, vq16; did you mean 'vq16'?",
        ),
        (["kl16"], "config.kind='vq16': a config of another tower; expected 'kl16'"),
        (["vq16", "--config.tower.codes"], "--config.tower.codes has no value: expected an integer"),
        (["vq16", "--config.tower.code=3"], "did you mean 'config.tower.codes'?"),
    ],
)
def test_the_command_line_says_what_would_be_right(arguments, complaint, tmp_path, capsys):
    shared = [f"--config={CONFIGS / 'vq16.py'}", f"--workdir={tmp_path / 'run'}"]
    assert cli.main(["towers", "train", arguments[0], *shared, *arguments[1:]]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
