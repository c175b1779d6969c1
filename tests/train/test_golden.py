"""The first steps of training in numbers; a change that is not meant to change them does not.

    python tests/train/test_golden.py --renew

writes the numbers anew, for a change that is.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

GOLDEN = Path(__file__).resolve().parents[1] / "fixtures" / "golden.json"
# Another compiler or jax version adds in another order: float32 rounding, grown over three steps.
TOLERANCE = 2e-4

VARIANTS = {
    "mixed": (),
    "encoder output, ema, accumulation": (
        "losses.semantic.target=encoder_output",
        "losses.semantic.loss=smooth_l1",
        "losses.semantic.target_gradient=ema",
        "losses.pixel.gradient_to_decoder=0.5",
        "losses.text.z_loss=1e-3",
        "train.accumulation=2",
    ),
}


def measure(variant: str, data: Path, workdir: Path) -> dict[str, object]:
    """Metrics of three steps, the size of every group of parameters after them, and sums over the first batch."""
    import jax
    import numpy as np
    import runs

    from unihetero_jax.config import loading as config_file
    from unihetero_jax.data.pipeline import batches, open_mixture
    from unihetero_jax.model.build import define
    from unihetero_jax.parallel import processes
    from unihetero_jax.parallel.mesh import make_mesh
    from unihetero_jax.tokenizer.sentencepiece import Tokenizer
    from unihetero_jax.train.loop import train
    from unihetero_jax.train.unified import UnifiedLearner

    overrides = ("train.steps=3", "logging.tensorboard=false", "optimizer.schedule=constant", *VARIANTS[variant])
    config = config_file.load(runs.TINY, [tuple(text.split("=", 1)) for text in overrides])
    tokenizer = Tokenizer.load(data / "tokenizer.model")
    samples = open_mixture(config, data, "train", config.train.seed)
    batch = {}

    def open_stream(rows, state):
        first = batches(config, samples, tokenizer, rows, config.train.batch_size)
        batch.update(next(first)[0])
        first.close()
        return batches(config, samples, tokenizer, rows, config.train.batch_size, state)

    workdir.mkdir(parents=True, exist_ok=True)
    preemption = processes.Preemption()
    try:
        model = define(config, tokenizer.vocabulary_size)
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        params, _ = train(UnifiedLearner(config, model), open_stream, workdir, mesh, preemption)
    finally:
        preemption.close()
    return {
        "batch": {name: float(np.sum(array, dtype=np.float64)) for name, array in sorted(batch.items())},
        "metrics": runs.metrics(workdir),
        "parameters": {
            jax.tree_util.keystr(path, simple=True, separator="."): float(np.linalg.norm(np.asarray(leaf)))
            for path, leaf in jax.tree.leaves_with_path(params)
        },
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_first_steps_are_those_on_record(variant, dataset, tmp_path):
    found = measure(variant, dataset, tmp_path / "run")
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))[variant]
    # Glyphs are drawn by Pillow, whose versions differ in the shade of an edge.
    for name, total in expected["batch"].items():
        assert found["batch"][name] == pytest.approx(total, rel=1e-3 if name == "images" else 0), name
    for row, wanted in zip(found["metrics"], expected["metrics"], strict=True):
        assert row == pytest.approx(wanted, rel=TOLERANCE)
    assert found["parameters"] == pytest.approx(expected["parameters"], rel=TOLERANCE)


def renew() -> None:
    """Writes the numbers of this machine, jax version and code."""
    import runs

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        data = runs.build_dataset(place / "data")
        found = {variant: measure(variant, data, place / f"run{number}") for number, variant in enumerate(VARIANTS)}
    GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"wrote {GOLDEN}")


if __name__ == "__main__":
    if sys.argv[1:] != ["--renew"]:
        sys.exit("usage: python tests/train/test_golden.py --renew")
    sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (1, 2)]
    import conftest  # the devices and the compiler's options are those of the tests

    try:
        renew()
    finally:
        shutil.rmtree(conftest.SHARED, ignore_errors=True)
