"""Every experiment in configs/ can start: it loads, its model is defined, and eight devices split it."""

import jax
import pytest
import runs
from matrices import matrix

from unihetero_jax.config import MeshConfig, visual_tokens
from unihetero_jax.config import loading as config_file
from unihetero_jax.model.build import define
from unihetero_jax.parallel.mesh import check_sharded, make_mesh
from unihetero_jax.train.unified import check_model_mesh

CONFIGS = runs.ROOT / "configs"
EXPERIMENTS = sorted(path for path in CONFIGS.rglob("*.py") if path.parent.name != "towers")
# One of each family of towers and of decoders.
FAST = ("quickstart.py", "unihetero_7b.py", "pairings/siglip_vq_small.py", "llava15_clip_clip.py")
VOCABULARY = 32_005


def name(path):
    return str(path.relative_to(CONFIGS))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_an_experiment_is_valid(path):
    config = config_file.load(path, [])
    shown, drawn = visual_tokens(config)
    # A request for a picture, and a conversation about one, with text around it.
    assert config.data.seq_len >= max(shown, drawn) + 64


@pytest.mark.parametrize("path", matrix(EXPERIMENTS, fast=[CONFIGS / file for file in FAST]), ids=name)
def test_an_experiment_can_start(path):
    config = config_file.load(path, [])
    model, mesh = define(config, VOCABULARY), make_mesh(MeshConfig(), jax.devices())
    check_model_mesh(mesh, config)
    assert check_sharded(model.shapes(), model.shardings(mesh)) <= 0.02


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_its_header_says_how_it_is_run(path):
    header = path.read_text(encoding="utf-8").split('"""')[1]
    assert f"unihetero train --config=configs/{name(path)}" in header
    assert "TIME" not in header


def test_every_pairing_of_paper_b_is_there_at_both_sizes():
    pairs = ("siglip_siglip", "siglip_vq", "vq_siglip", "vq_vq", "clip_clip", "clip_vq")
    wanted = {f"pairings/{pair}{size}.py" for pair in pairs for size in ("", "_small")}
    wanted |= {f"llava15_clip_{drawn}{stage}.py" for drawn in ("clip", "vq") for stage in ("", "_stage1")}
    wanted |= {"unihetero_7b.py", "unihetero_1b.py", "unihetero_small.py", "quickstart.py", "emoji.py"}
    assert wanted == {name(path) for path in EXPERIMENTS}
