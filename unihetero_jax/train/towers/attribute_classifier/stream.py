"""Images of watches with their attributes as numbers, for the attribute classifier."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from unihetero_jax.data.mixing import Mixture, Source
from unihetero_jax.data.packing.packed_batch import PackedBatch
from unihetero_jax.data.packing.row_stream import DataState
from unihetero_jax.data.records.images import decode
from unihetero_jax.data.records.invalid import SKIP_REASONS
from unihetero_jax.data.records.manifest import load_manifest
from unihetero_jax.data.records.shards import Dataset
from unihetero_jax.data.smart_watch import POSITIONS, WEATHERS, Attributes
from unihetero_jax.data.smart_watch.tfds_builder import NAME
from unihetero_jax.errors import UsageError
from unihetero_jax.train.towers.attribute_classifier.config import AttributeClassifierRunConfig


def labels(watch: Attributes) -> dict[str, np.ndarray]:
    """Return the attributes of a watch as numbers.

    ``hour`` (of twelve), ``minute``, ``second``, ``battery``, ``battery_corner``; ``content`` [4], per corner (see
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


class WatchStream:
    """Images with their attributes for some rows of the global batch; the next batch is made during a step.

    Row r has positions r, r + B, … of the shuffled records, whichever rows each host makes.

    Args:
      config: the run's configuration.
      root: directory of the dataset.
      rows: of the global batch, to make here.
      state: of all rows, as saved; None starts at the beginning.

    Raises:
      UsageError: the directory holds no Smart Watch dataset; from ``next``, a record that cannot be read.
    """

    def __init__(
        self, config: AttributeClassifierRunConfig, root: Path, rows: list[int], state: DataState | None = None
    ):
        if (found := load_manifest(root).name) != NAME:
            raise UsageError(f"{root}: a dataset {found!r}; the attribute classifier needs {NAME!r}")
        records = Dataset(root).split(f"train_{config.data.task}")
        self._mixture = Mixture([Source(config.data.task, records, 1.0)], config.train.seed)
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
        """Stop the thread and drop the batch made ahead."""
        self._thread.shutdown(cancel_futures=True)

    def _make(self, step: int) -> PackedBatch:
        images, attributes = [], []
        for row in self._rows:
            position = step * self._size + row
            try:
                record = self._mixture[position]
                images.append(decode(record["image"], self._side))
                attributes.append(labels(Attributes.from_json(record["attributes"])))
            except (OSError, ValueError, KeyError) as error:
                raise UsageError(f"record at position {position} of the training order: {error}") from error
        count = len(self._rows)
        return {
            "images": np.stack(images),
            **{name: np.stack([row[name] for row in attributes]) for name in attributes[0]},
            "segment": np.ones((count, 1), np.int32),
            "skipped": np.zeros((count, len(SKIP_REASONS)), np.int32),
        }
