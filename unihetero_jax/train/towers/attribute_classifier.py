"""What the reader of watches learns from: images and what they show, spoilt at random, and the losses of its scores.

B rows (one image each), S pixels a side.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from unihetero_jax.data.mixture import Entry, Mixture
from unihetero_jax.data.packing.row_stream import DataState, PackedBatch
from unihetero_jax.data.records.images import decode
from unihetero_jax.data.records.invalid import SKIP_REASONS
from unihetero_jax.data.records.manifest import load_manifest
from unihetero_jax.data.records.shards import Dataset
from unihetero_jax.data.sources.smart_watch import POSITIONS, WEATHERS, Attributes
from unihetero_jax.data.sources.smart_watch.tfds_builder import NAME
from unihetero_jax.errors import UsageError
from unihetero_jax.towers.common.attribute_classifier.config import SpoilConfig
from unihetero_jax.towers.common.attribute_classifier.network import CHARGES, Reading
from unihetero_jax.train.learner import Batch, Scalars
from unihetero_jax.train.towers.config import ReaderRunConfig

LOSSES = {"time": 1.0, "second": 1.0, "content": 1.0, "battery": 1.0, "color": 10.0}
"""Weight of each loss; absolute errors of a colour, from 0 to 1, are small beside cross-entropies."""

# Of the charge: one percent is less than a pixel of a battery shows.
_CHARGE_SPREAD = 2.0


def reading_losses(reading: Reading, batch: Batch) -> tuple[Scalars, Scalars]:
    """Σ loss of each of ``LOSSES`` over B images, and ``hour_right`` and ``corners_right``, how many are.

    Args:
      reading: what was read.
      batch: what is shown: as ``labels`` gives it.
    """
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    rows, minutes = reading.time.shape[0], reading.time.shape[-1]
    time = reading.time.reshape(rows, -1)
    charge = jnp.take_along_axis(reading.charge, batch["battery_corner"][:, None, None], axis=1)[:, 0]
    percent = jnp.arange(CHARGES, dtype=jnp.float32)
    near = jax.nn.softmax(-0.5 * jnp.square((percent - batch["battery"][:, None]) / _CHARGE_SPREAD))
    sums = {
        "time": jnp.sum(cross_entropy(time, batch["hour"] * minutes + batch["minute"])),
        "second": jnp.sum(cross_entropy(reading.second, batch["second"])),
        "content": jnp.sum(cross_entropy(reading.content, batch["content"])),
        "battery": jnp.sum(optax.softmax_cross_entropy(charge, near)),
        "color": jnp.sum(jnp.mean(jnp.abs(reading.color - batch["color"]), axis=-1)),
    }
    hours = jnp.argmax(time, axis=-1) // minutes == batch["hour"]
    corners = jnp.all(jnp.argmax(reading.content, axis=-1) == batch["content"], axis=-1)
    found = {"hour_right": hours, "corners_right": corners}
    return sums, {name: jnp.sum(right.astype(jnp.float32)) for name, right in found.items()}


def labels(watch: Attributes) -> dict[str, np.ndarray]:
    """What a watch shows, as numbers.

    ``hour`` (of twelve), ``minute``, ``second``, ``battery``, ``battery_corner``; ``content`` [4], of each corner (see
    ``towers.common.attribute_classifier.network``); and ``color`` [3], 0 to 1.
    """
    content = np.zeros(len(POSITIONS), np.int32)
    content[POSITIONS.index(watch.weather_position)] = 1 + WEATHERS.index(watch.weather)
    battery_corner = POSITIONS.index(watch.battery_position)
    content[battery_corner] = 1 + len(WEATHERS)
    numbers = {
        "hour": watch.hour % 12,
        "minute": watch.minute,
        "second": watch.second,
        "battery": watch.battery,
        "battery_corner": battery_corner,
    }
    found = {name: np.asarray(number, np.int32) for name, number in numbers.items()}
    return {**found, "content": content, "color": np.asarray(watch.color, np.float32) / 255}


def spoil(images_BSSC: Float[Array, "B S S 3"], key: jax.Array, config: SpoilConfig) -> Float[Array, "B S S 3"]:
    """Images in [−1, 1], some of them blurred, some smoothed and tinted patch by patch, some noisy: each its own way.

    Args:
      images_BSSC: clear ones.
      key: decides which, and how much.
      config: how much at most.
    """
    rows, side = images_BSSC.shape[:2]
    which, blur, smooth, tint, noise = jax.random.split(key, 5)
    chosen = jax.random.bernoulli(which, config.share, (4, rows, 1, 1, 1)).astype(jnp.float32)

    width = config.blur * jax.random.uniform(blur, (rows, 1, 1)) * chosen[0, :, :, :, 0] + 1e-3
    apart = jnp.arange(side)[:, None] - jnp.arange(side)
    kernel = jax.nn.softmax(-0.5 * jnp.square(apart / width), axis=-1)
    images = jnp.einsum("bij,bjwc,bvw->bivc", kernel, images_BSSC, kernel)

    def patches(x: jax.Array) -> jax.Array:
        return jnp.repeat(jnp.repeat(x, config.patch, axis=1), config.patch, axis=2)[:, :side, :side]

    count = -(-side // config.patch)
    if config.smooth:
        means = images.reshape(rows, count, config.patch, count, config.patch, 3).mean(axis=(2, 4))
        share = config.smooth * jax.random.uniform(smooth, (rows, 1, 1, 1)) * chosen[1]
        images = images + share * (patches(means) - images)
    spread = 2 * config.tint / 255 * chosen[2]
    images = images + spread * patches(jax.random.normal(tint, (rows, count, count, 3)))
    images = images + 2 * config.noise / 255 * chosen[3] * jax.random.normal(noise, images.shape)
    return jnp.clip(images, -1.0, 1.0)


class WatchStream:
    """Images with their attributes for some rows of the global batch; the next batch is made while one is learned.

    Row r has the positions r, r + B, … of the shuffled records, whichever rows are asked for where.

    Args:
      config: of the run.
      root: the dataset's directory.
      rows: of the global batch, to make here.
      state: of all rows, as saved; None starts anew.

    Raises:
      UsageError: the directory holds no Smart Watch dataset; from ``next``, a record that cannot be read.
    """

    def __init__(self, config: ReaderRunConfig, root: Path, rows: list[int], state: DataState | None = None):
        if (found := load_manifest(root).name) != NAME:
            raise UsageError(f"{root}: a dataset {found!r}; a reader learns from {NAME!r}")
        records = Dataset(root).split(f"train_{config.data.task}")
        self._mixture = Mixture([Entry(config.data.task, records, 1.0)], config.train.seed)
        self._size, self._rows, self._side = config.train.batch_size, rows, config.data.image_size
        self._step = 0 if state is None else int(state["drawn"][0])
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="watches")
        self._next: Future[PackedBatch] = self._thread.submit(self._make, self._step)

    def __iter__(self) -> WatchStream:
        return self

    def __next__(self) -> tuple[PackedBatch, DataState]:
        batch = self._next.result()
        self._step += 1
        self._next = self._thread.submit(self._make, self._step)
        return batch, {"drawn": np.full(len(self._rows), self._step, np.int32)}

    def close(self) -> None:
        """Stops the thread; a batch made ahead is dropped."""
        self._thread.shutdown(cancel_futures=True)

    def _make(self, step: int) -> PackedBatch:
        images, shown = [], []
        for row in self._rows:
            position = step * self._size + row
            try:
                record = self._mixture[position]
                images.append(decode(record["image"], self._side))
                shown.append(labels(Attributes.from_json(record["attributes"])))
            except (OSError, ValueError, KeyError) as error:
                raise UsageError(f"record at position {position} of the order of training: {error}") from error
        count = len(self._rows)
        return {
            "images": np.stack(images),
            **{name: np.stack([row[name] for row in shown]) for name in shown[0]},
            "segment": np.ones((count, 1), np.int32),
            "skipped": np.zeros((count, len(SKIP_REASONS)), np.int32),
        }
