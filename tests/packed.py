"""Small packed batches without a dataset, and training steps on them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import optax
from tiny_config import random_params, tiny_config

from unihetero_jax.config import Config, MeshConfig, visual_tokens
from unihetero_jax.data.records.invalid import SKIP_REASONS
from unihetero_jax.losses import base as losses
from unihetero_jax.model import groups
from unihetero_jax.model.build import define
from unihetero_jax.parallel.mesh import make_mesh, place, sharding
from unihetero_jax.parallel.processes import place_rows
from unihetero_jax.train import spikes
from unihetero_jax.train.state import initial_state, state_shardings
from unihetero_jax.train.step import compile_step, make_step
from unihetero_jax.train.unified import UnifiedLearner

SMALL = {
    "data.image_size": 16,
    "data.seq_len": 16,
    "model.decoder.layers": 2,
    "model.understanding_tower.width": 32,
    "train.batch_size": 8,
}
VOCABULARY = 64
# One step of it moves a parameter by its gradient.
DESCENT = optax.sgd(1.0)


def configure(**changes) -> Config:
    """The tiny config, smaller still."""
    return tiny_config(**{**SMALL, **changes})


def random_batch(config: Config, seed: int = 0) -> dict[str, np.ndarray]:
    """Each row: six words, an image that is shown and predicted, and words to the end of the row."""
    chance = np.random.default_rng(seed)
    rows, slots, size = config.train.batch_size, config.data.seq_len, config.data.image_size
    count, images = visual_tokens(config)[1], config.data.images_per_row
    visual = slice(6, 6 + count)
    image, patch = np.full((rows, slots), -1, np.int32), np.full((rows, slots), -1, np.int32)
    image[:, visual], patch[:, visual] = 0, np.arange(count)
    text = (image < 0).astype(np.float32)
    role = np.zeros((rows, images), np.int8)
    role[:, 0] = 3
    return {
        "tokens": chance.integers(0, VOCABULARY, (rows, slots), dtype=np.int32),
        "segment": np.ones((rows, slots), np.int32),
        "position": np.broadcast_to(np.arange(slots, dtype=np.int32), (rows, slots)).copy(),
        "image": image,
        "patch": patch,
        "text_weight": text,
        "visual_weight": 1 - text,
        "images": chance.integers(0, 256, (rows, images, size, size, 3), dtype=np.uint8),
        "role": role,
        "skipped": np.zeros((rows, len(SKIP_REASONS)), np.int32),
    }


def compiled_step(config: Config, optimizer, split=(1, 1, 1, 1)):
    """(compiled step, its first state, a batch) on some of the fake devices."""
    mesh = make_mesh(MeshConfig(*split), jax.devices()[: int(np.prod(split))])
    learner = UnifiedLearner(config, define(config, VOCABULARY))
    _, places = state_shardings(learner, optimizer, mesh)
    state = jax.tree.map(place, start(config, optimizer), places)
    rows, where = list(range(config.train.batch_size)), sharding(mesh, "batch")
    batch = {name: place_rows(x, rows, len(rows), where) for name, x in random_batch(config).items()}
    return (
        compile_step(make_step(learner, optimizer, mesh), places, mesh).lower(state, batch).compile(),
        state,
        batch,
    )


@functools.cache
def start(config: Config, optimizer):
    """A state with random parameters."""
    learner = UnifiedLearner(config, define(config, VOCABULARY))
    shapes = jax.eval_shape(lambda: initial_state(learner, optimizer))
    drawn = random_params(shapes["params"])
    trained, _ = groups.split(config, drawn)
    state = {
        "params": drawn,
        "opt_state": optimizer.init(trained),
        "ema": {name: trained[name] for name in shapes["ema"]},
        **spikes.initial(config.train),
        "step": np.int32(0),
        "rng": jax.random.key_data(jax.random.key(5)),
    }
    return jax.tree.map(np.asarray, state)


@functools.cache
def one_step(config: Config, split=(1, 1, 1, 1), optimizer=DESCENT):
    """(state before, state after, metrics) of one step, of plain descent by default, as NumPy."""
    step, state, batch = compiled_step(config, optimizer, split)
    state, metrics = step(state, batch)
    return start(config, optimizer), *jax.tree.map(np.asarray, (state, metrics))


def loss_sums(config: Config, model: Any, batch: Any, **options: Any) -> Any:
    """Sums of the losses of a config, and their monitors."""
    return losses.loss_sums(losses.make_losses(config.losses), model, batch, **options)
