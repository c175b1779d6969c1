"""Every study that there is: its arms at every scale, and how many there are in all."""

from __future__ import annotations

import pytest
import runs

from unihetero_jax.errors import UsageError
from unihetero_jax.study import places, registry, runner

DATA = dict.fromkeys(("emoji", "smart_watch", "pairs", "instructions", "requests"), "/nowhere")
WEIGHTS = dict.fromkeys(
    ("decoder", "siglip", "vq16", "clip", "dinov2", "kl16", "stage1_clip_clip", "stage1_clip_vq"), "/nowhere"
)


@pytest.mark.parametrize(
    ("name", "scale"), [(name, scale) for name, made in registry.STUDIES.items() for scale in made.scales]
)
def test_every_arm_is_a_valid_experiment(name, scale, tmp_path):
    made, place = registry.STUDIES[name], places.Place(tmp_path, scale, DATA, WEIGHTS)
    configs = [places.experiment(made, job, place) for job in runner.jobs(made, 1)]
    assert all(config.evaluate.at_end for config in configs)
    # Two arms of one study that are the same run would be one arm with two names.
    assert len({place.runs(config) for config in configs}) == len(configs)


def test_all_studies_together_are_few_runs(tmp_path):
    place = places.Place(tmp_path, "tiny", DATA)
    keys = {
        place.runs(places.experiment(made, job, place))
        for made in registry.STUDIES.values()
        if "tiny" in made.scales
        for job in runner.jobs(made, 1)
    }
    assert len(keys) <= 60


def test_the_studies_are_listed():
    said = runs.finish(runs.start(["study", "list"]))
    assert all(name in said for name in registry.STUDIES)


@pytest.mark.parametrize(
    ("name", "scale", "given", "expected"),
    [
        ("real_world", "tiny", {}, r"needs 'emoji': expected --data=emoji=DIR, as in configs/emoji.py"),
        ("real_world", "paper", {}, "has no scale paper: expected tiny or small"),
        ("llava", "paper", {"data": DATA}, "needs 'stage1_clip_clip': expected --weights=stage1_clip_clip=DIR"),
        ("mutual_benefit", "paper", {"data": DATA}, "needs 'decoder': expected --weights=decoder=DIR"),
    ],
)
def test_what_only_the_user_has_is_asked_for(name, scale, given, expected, tmp_path):
    made = registry.STUDIES[name]
    with pytest.raises(UsageError, match=expected):
        places.experiment(made, runner.jobs(made, 1)[0], places.Place(tmp_path, scale, **given))
