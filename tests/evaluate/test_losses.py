import numpy as np
import pytest

from unihetero_jax.evaluate import losses
from unihetero_jax.evaluate.common import held_out
from unihetero_jax.generate.predict import Predictor
from unihetero_jax.losses import base


def means(loss_sums, rows):
    return {side: losses.means(loss_sums, batches) for side, batches in rows.items()}


@pytest.fixture(scope="module")
def batches(trained):
    rows = held_out.packed_rows(trained.config, trained.data_root, trained.tokenizer)
    return {side: list(batches) for side, batches in rows.items()}


def test_losses_are_the_training_losses_over_all_rows(trained, batches):
    config = trained.config
    found = means(Predictor(trained).held_out, batches)
    model = trained.model.bind(trained.params)
    totals: dict[str, float] = {}
    for batch in batches["generation"]:
        sums, _ = base.loss_sums(base.make_losses(config.losses), model, batch)
        for name, weight in base.total_weights(base.make_losses(config.losses), batch).items():
            totals[f"{name} sum"] = totals.get(f"{name} sum", 0.0) + float(sums[name])
            totals[f"{name} weight"] = totals.get(f"{name} weight", 0.0) + float(weight)
    for name in ("text", "semantic", "pixel"):
        assert found["generation"][name] == pytest.approx(totals[f"{name} sum"] / totals[f"{name} weight"], rel=1e-4)
    assert set(found["understanding"]) == {"text"}
    found = found["generation"]
    assert found["cosine"] == pytest.approx(1 - found["semantic"], abs=1e-5)
    assert len(found["cosine_by_position"]) == 16
    assert np.mean(found["cosine_by_position"]) == pytest.approx(found["cosine"], abs=1e-5)


def test_a_mean_by_weight_is_no_mean_of_means():
    parts = iter(
        [
            {"text_sum": np.float32(6.0), "text_weight": np.float32(2.0), "semantic_sum": np.float32(0.0),
             "semantic_weight": np.float32(0.0), "cosine_sum": np.zeros(2), "cosine_weight": np.zeros(2)},
            {"text_sum": np.float32(2.0), "text_weight": np.float32(6.0), "semantic_sum": np.float32(0.0),
             "semantic_weight": np.float32(0.0), "cosine_sum": np.asarray([1.0, 0.0]),
             "cosine_weight": np.asarray([2.0, 0.0])},
        ]
    )  # fmt: skip
    found = means(lambda batch: next(parts), {"understanding": [{}, {}]})
    assert found == {"understanding": {"text": 1.0, "cosine": 0.5, "cosine_by_position": [0.5, 0.0]}}


def test_held_out_rows_hold_every_wanted_sample_once(trained, batches):
    again = held_out.packed_rows(trained.config, trained.data_root, trained.tokenizer)
    assert set(again) == set(batches) == {"understanding", "generation"}
    for side, rows in batches.items():
        assert sum(int(batch["segment"].max(axis=1).sum()) for batch in rows) == trained.config.evaluate.images
        assert len({batch["tokens"].shape for batch in rows}) == 1
        for batch, same in zip(rows, again[side], strict=True):
            np.testing.assert_array_equal(batch["tokens"], same["tokens"])


def sources(root, turned, share=0.5):
    """Two sources, one of captions and questions; how often a run learns which side, and which task."""
    both = {"root": str(root), "reverse": turned, "task_weights": {"generation": share}}
    questions = {"root": str(root), "task_weights": {"caption": 0.0, "generation": 0.0}}
    return {"data.sources": {"both": both, "questions": questions}, "data.temperature": 2.0}


@pytest.mark.parametrize("side", ["understanding", "generation"])
@pytest.mark.parametrize("several", [False, True])
def test_a_side_is_measured_on_the_same_rows_with_and_without_the_other(side, several, trained, make_trained):
    """Else runs that differ in what they learn would be compared on different samples."""
    root = trained.data_root
    changes = [{}, {"data.mode": side}, {"data.task_weights.vqa": 3.0}, {"data.task_weights.generation": 5.0}]
    if several:
        half = {"data.generation_share": 0.5}
        changes = [sources(root, 0.5), sources(root, 0.5) | {"data.mode": side}, sources(root, 0.9, 2.0) | half]
    else:
        changes.append({"data.generation_share": float(side == "generation")})
    first, *others = (
        list(held_out.packed_rows(made.config, made.data_root, made.tokenizer)[side])
        for made in (make_trained(**change) for change in changes)
    )
    assert first
    for rows in others:
        for batch, same in zip(rows, first, strict=True):
            for name, array in same.items():
                np.testing.assert_array_equal(batch[name], array)


@pytest.mark.parametrize(
    ("changes", "side"),
    [
        ({"data.mode": "generation"}, "generation"),
        ({"data.mode": "understanding"}, "understanding"),
        ({"data.generation_share": 1.0}, "generation"),
    ],
)
def test_a_side_that_is_not_learned_is_not_measured(changes, side, make_trained):
    trained = make_trained(**changes)
    rows = held_out.packed_rows(trained.config, trained.data_root, trained.tokenizer)
    assert list(rows) == [side]
    assert list(rows[side])


def test_rows_that_fill_up_the_devices_weigh_nothing(make_trained, trained, batches):
    three = {name: array[:3] for name, array in batches["generation"][0].items()}
    alone, spread = (Predictor(make).held_out(three) for make in (trained, make_trained(devices=8)))
    for name, value in alone.items():
        np.testing.assert_allclose(value, spread[name], rtol=1e-4, atol=1e-4)


def test_each_objective_that_the_config_has(make_trained):
    understanding = make_trained(
        **{"data.mode": "understanding", "losses.semantic.weight": 0.0, "losses.pixel.weight": 0.0}
    )
    rows = held_out.packed_rows(understanding.config, understanding.data_root, understanding.tokenizer)
    found = means(Predictor(understanding).held_out, rows)
    assert {side: set(means) for side, means in found.items()} == {"understanding": {"text"}}
    # The teacher is not part of a trained model: its targets are replaced by the model's own.
    ema = make_trained(**{"losses.semantic.target_gradient": "ema", "losses.pixel.weight": 0.0})
    rows = held_out.packed_rows(ema.config, ema.data_root, ema.tokenizer)
    assert {"text", "semantic", "cosine"} <= set(means(Predictor(ema).held_out, rows)["generation"])
