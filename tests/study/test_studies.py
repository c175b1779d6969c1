"""Every study that there is: its arms at every scale, and how many there are in all."""

from __future__ import annotations

import pytest
import runs

from unihetero_jax.study import places, registry, runner

DATA = {"emoji": "/nowhere/emoji"}


@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
@pytest.mark.parametrize("name", registry.STUDIES)
def test_every_arm_is_a_valid_experiment(name, scale, tmp_path):
    made, place = registry.STUDIES[name], places.Place(tmp_path, scale, DATA)
    configs = [places.experiment(made, job, place) for job in runner.jobs(made, 1)]
    assert all(config.evaluate.at_end for config in configs)
    # Two arms of one study that are the same run would be one arm with two names.
    assert len({place.runs(config) for config in configs}) == len(configs)


def test_all_studies_together_are_few_runs(tmp_path):
    place = places.Place(tmp_path, "tiny", DATA)
    keys = {
        place.runs(places.experiment(made, job, place))
        for made in registry.STUDIES.values()
        for job in runner.jobs(made, 1)
    }
    assert len(keys) <= 60


def test_the_studies_are_listed():
    said = runs.finish(runs.start(["study", "list"]))
    assert all(name in said for name in registry.STUDIES)
