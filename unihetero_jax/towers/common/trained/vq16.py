"""A VQ autoencoder, as ``unihetero towers train`` stores it."""

from __future__ import annotations

from unihetero_jax.config.components import TRAINED_NETWORKS
from unihetero_jax.towers.common.autoencoder.config import VQConfig
from unihetero_jax.towers.vq16.network import VQ16


@TRAINED_NETWORKS.register("vq16")
class TrainedVQ16:
    """A VQ autoencoder."""

    config, network = VQConfig, VQ16
