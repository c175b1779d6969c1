"""What ``unihetero bench --suite`` measures: sizes, losses and synthetic packed rows."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unihetero_jax.config import Config, load, visual_tokens
from unihetero_jax.data.packing.packed_batch import PackedBatch, pack
from unihetero_jax.data.packing.slots import Role, Slots
from unihetero_jax.data.pipeline import row_shape
from unihetero_jax.data.records.invalid import SKIP_REASONS
from unihetero_jax.plan.roofline import TEXT_TOKENS

REMATS = ("dots", "none", "full")
_NO_PIXELS = {"losses.pixel.weight": 0.0}
# All of them see the same rows, whose images are encoded in any case; the text loss alone comes first.
LOSSES: dict[str, Mapping[str, Any]] = {
    "text": {"losses.semantic.weight": 0.0, **_NO_PIXELS},
    "text, semantic": _NO_PIXELS,
    "text, semantic, pixel detached": {"losses.pixel.gradient_to_decoder": 0.0},
    "text, semantic, pixel attached": {"losses.pixel.gradient_to_decoder": 1.0},
}


@dataclass(frozen=True)
class Row:
    """One measurement of the suite.

    Attributes:
      size: of the decoder, a name in ``Scale.sizes``.
      losses: a name in ``LOSSES``.
      attention: the implementation.
      remat: the decoder's remat policy.
    """

    size: str
    losses: str
    attention: str
    remat: str


@dataclass(frozen=True)
class Scale:
    """Sizes that suit a kind of device.

    Attributes:
      experiment: of which all rows are variants.
      data: changes of its rows.
      sizes: changes of its decoder by name; the first is measured with every attention, remat policy and loss.
      most_rows: packed rows per device, where they fit.
      input_images: training images of the dataset on which the input pipeline is measured.
      remats: remat policies that are measured with the automatic attention, and with others.
      losses: names in ``LOSSES``; all rows but those that compare losses have the first.
    """

    experiment: str
    data: Mapping[str, Any]
    sizes: Mapping[str, Mapping[str, Any]]
    most_rows: int
    input_images: int
    remats: tuple[tuple[str, ...], tuple[str, ...]] = (REMATS, REMATS)
    losses: tuple[str, ...] = tuple(LOSSES)


def _decoder(width: int, layers: int, heads: int, kv_heads: int, mlp_width: int) -> dict[str, Any]:
    values = {"width": width, "layers": layers, "heads": heads, "kv_heads": kv_heads, "mlp_width": mlp_width}
    return {f"model.decoder.{name}": value for name, value in values.items()}


_ACCELERATOR = Scale(
    experiment="unihetero_1b",
    # Twelve images of 256 tokens with their texts fill a row.
    data={"data.seq_len": 4096, "data.images_per_row": 12},
    # TinyLlama-1.1B's shape; one of ours; Llama-3.2-3B's. With 32,000 token ids.
    sizes={"1B": {}, "0.5B": _decoder(1024, 24, 16, 16, 4096), "3B": _decoder(3072, 28, 24, 8, 8192)},
    most_rows=8,
    input_images=300,
)
_CPU = Scale(
    # Its small towers compile in half the time of those of unihetero_small.
    experiment="quickstart",
    data={"data.seq_len": 384, "data.images_per_row": 3, "data.input_role": "both"},
    sizes={"tiny": _decoder(64, 2, 4, 4, 192), "double": _decoder(128, 2, 4, 4, 384)},
    most_rows=2,
    input_images=100,
    # Compiling a row takes some eight seconds, of a minute for all.
    remats=(("dots", "none"), ("dots",)),
    losses=("text", "text, semantic, pixel attached"),
)


def scale_of(platform: str) -> Scale:
    """Return the sizes for a platform: ``cpu``, ``gpu`` or ``tpu``."""
    return _CPU if platform == "cpu" else _ACCELERATOR


def row_config(row: Row, scale: Scale, batch_size: int) -> Config:
    """Return the config of a row of the suite.

    Args:
      row: what is measured.
      scale: the sizes.
      batch_size: packed rows of the global batch.
    """
    changes = {
        **scale.data,
        **scale.sizes[row.size],
        **LOSSES[row.losses],
        "model.decoder.attention": row.attention,
        "model.decoder.remat": row.remat,
        "train.batch_size": batch_size,
        "train.accumulation": 1,
    }
    config: Config = load(scale.experiment, changes)
    return config


def synthetic_rows(config: Config, vocabulary: int) -> PackedBatch:
    """Return a packed batch of random samples: images with texts as long as captions, then texts alone.

    Args:
      config: the run's configuration.
      vocabulary: number of token ids.
    """
    draws = np.random.default_rng(0)
    shape, visual = row_shape(config, None), visual_tokens(config)[0]
    role = Role.BOTH if config.data.input_role == "both" else Role.INPUT

    def sample(with_image: bool) -> Slots:
        words = int(draws.integers(TEXT_TOKENS // 2, 3 * TEXT_TOKENS // 2))
        # An image has a marker on either side.
        before = visual + 2 if with_image else 1
        tokens = array("i", draws.integers(0, vocabulary, before + words, np.int32).tobytes())
        side = shape.image_size
        images = (draws.integers(0, 256, (side, side, 3), np.uint8),) if with_image else ()
        return Slots(tokens, [(before, len(tokens))], [(1, 1 + visual, role)] if with_image else [], images)

    rows = []
    for _ in range(config.train.batch_size):
        row: list[Slots] = []
        while True:
            drawn = sample(with_image=len(row) < shape.images)
            if sum(map(len, row)) + len(drawn) > shape.slots:
                break
            row.append(drawn)
        rows.append(row)
    return {**pack(rows, shape), "skipped": np.zeros((len(rows), len(SKIP_REASONS)), np.int32)}


def matrix(attention: Sequence[str], scale: Scale) -> list[Row]:
    """Return the rows with the first size and loss, the most important first.

    Args:
      attention: the implementations, the automatic one first.
      scale: the sizes.
    """
    size, losses = next(iter(scale.sizes)), scale.losses[0]
    return [
        Row(size, losses, name, remat) for name in attention for remat in scale.remats[0 if name == attention[0] else 1]
    ]


def variants(best: Row, scale: Scale) -> list[Row]:
    """Return the rows with other losses, and those with other sizes."""
    losses = [replace(best, losses=name) for name in scale.losses if name != best.losses]
    return losses + [replace(best, size=name) for name in scale.sizes if name != best.size]
