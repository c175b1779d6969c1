"""What a frozen tower costs a training step, and what features that were computed before save.

    python tests/benchmarks/cached_features.py [--steps=10] [--rows=16]

One process, one device, one batch: (a) the step with a frozen vision transformer, (b) the step on features that
``unihetero towers features`` stored, (c) the tower's forward pass alone. By the compiler's count of FLOPs a − b has to
be c within 2%: a frozen tower adds its forward pass and nothing else. The compiler counts the body of a loop once, so
the count is taken of programs whose loops over layers are unrolled, those of tower and decoder alike; times are those
of the programs that training runs. Prints a table and, last, one JSON object. Exit code 1 when the counts differ.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np

from unihetero_jax.config import Config, defaults, resolve
from unihetero_jax.data.pipeline import batches, open_mixture
from unihetero_jax.data.smart_watch.builder import build
from unihetero_jax.model.build import define
from unihetero_jax.model.stored_features import open_features
from unihetero_jax.parallel.mesh import make_mesh
from unihetero_jax.run import features
from unihetero_jax.tokenizer.sentencepiece import Tokenizer
from unihetero_jax.train.state import initial_state, state_shardings
from unihetero_jax.train.step import compile_step, make_step
from unihetero_jax.train.unified import UnifiedLearner

TOLERANCE = 0.02
VIT = {"image_size": 64, "patch_size": 8, "width": 192, "layers": 6, "heads": 6, "mlp_width": 768}


def configure(place: Path, rows: int, cached: bool) -> Config:
    values = defaults()
    values.data.root = str(place / "data")
    values.train.batch_size = rows
    values.model.decoder.dtype = "float32"
    tower = values.model.understanding_tower
    tower.kind = "siglip"
    tower.update(VIT)
    if cached:
        tower.cached = True
        values.data.features = str(place / "features")
    return resolve(values)


class Step:
    """One step of training, again and again on the same batch."""

    def __init__(self, config: Config, root: Path, coder: Tokenizer):
        self._mesh = make_mesh(config.mesh, jax.devices()[:1])
        self._learner = UnifiedLearner(config, define(config, coder.vocabulary_size))
        self._optimizer = self._learner.optimizer()
        _, self._places = state_shardings(self._learner, self._optimizer, self._mesh)
        rows = list(range(config.train.batch_size))
        features = open_features(config, root)
        samples = open_mixture(config, root, "train", config.train.seed, features)
        stream = batches(config, samples, coder, rows, len(rows), None, features)
        self.batch = jax.tree.map(jax.numpy.asarray, next(stream)[0])
        stream.close()
        self._state = jax.jit(lambda: initial_state(self._learner, self._optimizer), out_shardings=self._places)()
        self._compiled = self._compile()

    def _compile(self) -> Any:
        step = make_step(self._learner, self._optimizer, self._mesh)
        return compile_step(step, self._places, self._mesh).lower(self._state, self.batch).compile()

    def flops(self) -> float:
        """By the compiler's count, layers unrolled."""
        with unrolled():
            return count(self._compile())

    def tower(self) -> Any:
        """The compiled forward pass of its tower on its batch, and that with its layers unrolled."""
        params, model = self._state["params"], self._learner.model

        def forward(params: Any, images: jax.Array) -> jax.Array:
            with jax.default_matmul_precision("highest"):
                made: jax.Array = model.bind(params).understanding_tower(images)
                return made

        plain = jax.jit(lambda params, images: forward(params, images)).lower(params, self.batch["images"]).compile()
        with unrolled():
            whole = jax.jit(lambda params, images: forward(params, images)).lower(params, self.batch["images"])
            flops = count(whole.compile())
        images = self.batch["images"]

        def run() -> float:
            started = time.perf_counter()
            jax.block_until_ready(plain(self._state["params"], images))
            return time.perf_counter() - started

        return run, flops

    def run(self) -> float:
        """Seconds of a step."""
        started = time.perf_counter()
        self._state, metrics = self._compiled(self._state, self.batch)
        jax.block_until_ready(metrics)
        self.loss = float(metrics["loss"])
        return time.perf_counter() - started


def unrolled() -> Any:
    return mock.patch("jax.lax.scan", functools.partial(jax.lax.scan, unroll=True))


def count(compiled: Any) -> float:
    return float(compiled.cost_analysis()["flops"])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each (default: 10)")
    parser.add_argument("--rows", type=int, default=16, help="rows of the batch (default: 16)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cached-features-") as name:
        place = Path(name)
        root = place / "data"
        build(root, num_images=64, test_images=8, image_size=64, seed=0, questions="all", workers=1)
        features.compute_features(
            configure(place, options.rows, cached=False), place / "features", "float32", ["train"]
        )
        coder = Tokenizer.load(root / "tokenizer.model")
        frozen = Step(configure(place, options.rows, cached=False), root, coder)
        cached = Step(configure(place, options.rows, cached=True), root, coder)
    assert np.array_equal(frozen.batch["tokens"], cached.batch["tokens"])
    tower, tower_flops = frozen.tower()
    flops = {"frozen": frozen.flops(), "cached": cached.flops(), "tower": tower_flops}
    seconds: dict[str, list[float]] = {"frozen": [], "cached": [], "tower": []}
    for number in range(options.steps + 1):
        # In turn, so that whatever else the machine does falls on all of them alike; the first round warms up.
        taken = {"frozen": frozen.run(), "cached": cached.run(), "tower": tower()}
        assert abs(frozen.loss - cached.loss) <= 1e-4 * abs(frozen.loss), (frozen.loss, cached.loss)
        for part, value in taken.items():
            seconds[part] += [value] if number else []
    share = (flops["frozen"] - flops["cached"]) / flops["tower"]
    times = {part: 1000 * statistics.median(values) for part, values in seconds.items()}
    for part, label in (("frozen", "a  frozen tower"), ("cached", "b  features"), ("tower", "c  tower, forward")):
        print(f"{label:20} {flops[part] / 1e9:9.3f} GFLOP  {times[part]:8.1f} ms")
    print(f"(a − b) / c: {share:.4f} by FLOPs, {(times['frozen'] - times['cached']) / times['tower']:.2f} by time")
    print(json.dumps({"flops": flops, "ms": {part: round(value, 1) for part, value in times.items()}, "share": share}))
    return 0 if abs(share - 1) <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
