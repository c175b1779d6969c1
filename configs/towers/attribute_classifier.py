"""A classifier of a watch's time, weather, battery, corners and color, trained on real images to score generated ones.

    unihetero towers train attribute_classifier --config=configs/towers/attribute_classifier.py --workdir=runs/attr

Measured on 2026-11-21, seed 0, on two cores shared with other work (AMD EPYC, Python 3.11, jax 0.10.2): 204 s, 106 s of
processor time, without the data's building. 500 steps; 300 held-out images: weather, both corners, hour, minute and
second 1.000, battery 0.991, the colour within 0.1 of 255. The same images blurred by 1 pixel: battery 0.989, the colour
within 0.5, the rest 1.000. Of what the small autoencoders of this folder make of these images it reads, from VQ-16:
weather and corners 1.000, hour 0.933, minute 0.910, second 0.577, battery 0.952, colour within 4.8; from KL-16:
weather, corners, hour and minute 1.000, second 0.987, battery 0.979, colour within 0.7.
"""

import ml_collections

from unihetero_jax.train.towers.base import small_tower


def get_config() -> ml_collections.ConfigDict:
    return small_tower("attribute_classifier")
