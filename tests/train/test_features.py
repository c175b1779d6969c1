"""Features computed before: a run that reads them is the run whose frozen towers make them, and no other's are read."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import runs

from unihetero_jax import checkpoint, cli, config_file
from unihetero_jax.config import Config, resolve
from unihetero_jax.errors import UsageError
from unihetero_jax.evaluate import records
from unihetero_jax.generate.predict import Predictor
from unihetero_jax.train import features, main
from unihetero_jax.weights.features import make_towers, open_features

AUTOENCODER = {
    "image_size": "16",
    "channels": "8",
    "multipliers": "1,1,1",
    "blocks": "1",
    "groups": "4",
    "encoder_attention": "()",
    "decoder_attention": "()",
}
VIT = {"image_size": "32", "patch_size": "8", "width": "16", "layers": "2", "heads": "2", "mlp_width": "32"}
COMMON = {
    "logging.tensorboard": "false",
    "train.steps": "3",
    "evaluate.batch_size": "8",
    "evaluate.images": "8",
    "model.understanding_tower.kind": "siglip",
    **{f"model.understanding_tower.vit.{key}": value for key, value in VIT.items()},
}
KINDS = {
    # One tower reads and is predicted, also where an image is only shown; latents are drawn from their posterior.
    "kl": {
        "data.input_role": "both",
        "model.pixel_tower.kind": "kl16",
        "model.pixel_tower.sample": "true",
        "model.pixel_tower.kl.latent": "4",
        **{f"model.pixel_tower.kl.{key}": value for key, value in AUTOENCODER.items()},
    },
    # Two towers, of which the second gives codes, which it also decodes.
    "vq": {
        "model.same_tower": "false",
        "model.generation": "codes",
        "model.generation_tower.kind": "vq16",
        "model.generation_tower.vq.hidden": "8",
        "model.generation_tower.vq.codes": "32",
        **{f"model.generation_tower.vq.{key}": value for key, value in AUTOENCODER.items()},
        "objectives.semantic.weight": "0",
        "objectives.pixel.weight": "0",
        "objectives.codes.weight": "0.2",
    },
}
TOWERS = {"kl": ("understanding_tower", "pixel_tower"), "vq": ("understanding_tower", "generation_tower")}


def configure(kind: str, root: Path, **changes: str) -> Config:
    values = {"data.root": str(root), **COMMON, **KINDS[kind], **changes}
    return config_file.load(runs.TINY, list(values.items()))


def cached(kind: str, root: Path, folder: Path, **changes: str) -> Config:
    towers = {f"model.{name}.cached": "true" for name in TOWERS[kind]}
    return configure(kind, root, **{"data.features": str(folder), **towers, **changes})


@pytest.fixture(scope="module", params=list(KINDS))
def made(request, dataset, tmp_path_factory) -> tuple[str, Path]:
    """(kind, folder of its features)."""
    folder = tmp_path_factory.mktemp(request.param) / "features"
    assert features.run(configure(request.param, dataset), folder, "float32") == 0
    return request.param, folder


def test_a_run_on_features_is_the_run_with_the_towers(made, dataset, tmp_path):
    kind, folder = made
    config = cached(kind, dataset, folder)
    assert main.run(configure(kind, dataset), tmp_path / "towers") == 0
    assert main.run(config, tmp_path / "features") == 0
    expected, found = (runs.metrics(tmp_path / name) for name in ("towers", "features"))
    assert len(found) == 3
    for left, right in zip(found, expected, strict=True):
        assert left == pytest.approx(right, rel=1e-5)
    stored = runs.arrays(tmp_path / "features", 3, ["state"])
    assert not [name for name in stored if name.startswith("state['params']['understanding_tower']")]

    # It can be shown other images all the same, and sees what the run with towers sees.
    seeing, whole = (checkpoint.load_trained(tmp_path / name) for name in ("features", "towers"))
    assert not runs.differing(*(_flat(trained.params["understanding_tower"]) for trained in (seeing, whole)))
    rows = list(records.packed_rows(seeing.config, dataset, seeing.tokenizer))
    given = next(records.packed_rows(config, dataset, seeing.tokenizer))
    assert {name for name in given if name not in rows[0]} == {f"{name}_features" for name in TOWERS[kind]}
    assert all(np.array_equal(given[name], rows[0][name]) for name in rows[0])
    left, right = (Predictor(trained).held_out(rows[0]) for trained in (seeing, whole))
    for name in right:
        np.testing.assert_allclose(left[name], right[name], rtol=1e-4)


def _flat(tree) -> dict[str, np.ndarray]:
    import jax

    return {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in jax.tree.leaves_with_path(tree)}
