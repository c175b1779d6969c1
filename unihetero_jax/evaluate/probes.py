"""Linear probes of the attributes of watches on the adapter's output and on every layer of the decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unihetero_jax.config.components import EVALUATORS, EvaluatorConfig
from unihetero_jax.config.constraints import PositiveInt
from unihetero_jax.data.smart_watch import Attributes
from unihetero_jax.evaluate.base import Context, Result
from unihetero_jax.evaluate.common import held_out, linear_probes, smart_watch
from unihetero_jax.evaluate.common.attributes import attributes_table, scores


@dataclass(frozen=True)
class ProbesConfig(EvaluatorConfig):
    """Linear probes of the attributes of Smart Watch images.

    Attributes:
      images: training images that the probes are fitted on.
    """

    images: PositiveInt = 1000


@EVALUATORS.register("probes", config=ProbesConfig)
def evaluate(config: ProbesConfig, context: Context) -> Result:
    """Fit probes on training images of Smart Watch, and score them on the test split."""
    if context.smart_watch is None:
        return Result()
    size, options = context.config.data.image_size, context.options
    images, watches = smart_watch.watches(context.smart_watch, held_out.TRAIN, size, config.images)
    count = max(options.images, options.questions)
    test_images, truths = smart_watch.watches(context.smart_watch, held_out.TEST, size, count)
    states = context.predictor.states
    found = measure(states(images), watches, states(test_images), truths)
    return Result(found, attributes_table("probes of layers", found))


def measure(
    vectors: Mapping[str, np.ndarray],
    watches: Sequence[Attributes],
    test_vectors: Mapping[str, np.ndarray],
    truths: Sequence[Attributes],
) -> dict[str, dict[str, float]]:
    """Fit a probe of each kind of vector, and score it on other images.

    Args:
      vectors: of the images that the probes are fitted on, [n, F] by name, such as those of each layer.
      watches: attributes of these images.
      test_vectors: of other images, by the same names.
      truths: attributes of the other images.

    Returns:
      By name the ``scores`` of ``common.attributes``; under ``constant`` those of the probes' mean prediction.
    """
    found = {
        name: scores(linear_probes.fit(part, watches).predict(test_vectors[name]), truths)
        for name, part in vectors.items()
    }
    return {**found, "constant": scores([linear_probes.constant(watches)] * len(truths), truths)}
