"""The attribute classifier, as ``unihetero towers train`` stores it."""

from __future__ import annotations

from unihetero_jax.config.components import TRAINED_NETWORKS
from unihetero_jax.towers.common.attribute_classifier.config import AttributeClassifierConfig
from unihetero_jax.towers.common.attribute_classifier.network import AttributeClassifier


@TRAINED_NETWORKS.register("attribute_classifier")
class TrainedAttributeClassifier:
    """The attribute classifier."""

    config, network = AttributeClassifierConfig, AttributeClassifier
