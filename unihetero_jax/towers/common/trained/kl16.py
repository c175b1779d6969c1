"""A KL autoencoder, as ``unihetero towers train`` stores it."""

from __future__ import annotations

from unihetero_jax.config.components import TRAINED_NETWORKS
from unihetero_jax.towers.common.autoencoder.config import KLConfig
from unihetero_jax.towers.kl16.network import KL16


@TRAINED_NETWORKS.register("kl16")
class TrainedKL16:
    """A KL autoencoder."""

    config, network = KLConfig, KL16
