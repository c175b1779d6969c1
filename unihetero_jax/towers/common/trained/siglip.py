"""The image side of a contrastive pair, as ``unihetero towers train`` stores it."""

from __future__ import annotations

from unihetero_jax.config.components import TRAINED_NETWORKS
from unihetero_jax.towers.siglip.config import SigLIPSizes
from unihetero_jax.towers.siglip.network import SigLIP


@TRAINED_NETWORKS.register("siglip")
class TrainedSigLIP:
    """The image side of a contrastive pair."""

    config, network = SigLIPSizes, SigLIP
