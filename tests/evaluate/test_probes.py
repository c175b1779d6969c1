import numpy as np
import pytest

from unihetero_jax.data.smart_watch import WEATHERS, sample_attributes
from unihetero_jax.evaluate import probes
from unihetero_jax.evaluate.common import linear_probes
from unihetero_jax.generate.pooling import pooled

N, HELD_OUT = 300, 200


@pytest.fixture(scope="module")
def watches():
    return [sample_attributes(0, number) for number in range(N + HELD_OUT)]


def planted(watches, noise=0.02):
    """Vectors with weather, battery and the minute hand in them, turned by a random rotation; and much else."""
    draws = np.random.default_rng(0)
    said = [
        [
            *(watch.weather == name for name in WEATHERS),
            watch.battery / 100,
            np.sin(watch.minute * np.pi / 30),
            np.cos(watch.minute * np.pi / 30),
        ]
        for watch in watches
    ]
    rotation, _ = np.linalg.qr(draws.normal(size=(24, 24)))
    vectors = np.concatenate([np.asarray(said, float), draws.normal(size=(len(watches), 18))], axis=1) @ rotation
    return 7 + vectors + noise * draws.normal(size=vectors.shape)


def test_what_is_planted_is_found_and_what_is_not_is_not(watches):
    vectors = planted(watches)
    found = probes.measure(
        {"here": vectors[:N], "nothing": np.random.default_rng(1).normal(size=(N, 24))},
        watches[:N],
        {"here": vectors[N:], "nothing": np.random.default_rng(2).normal(size=(HELD_OUT, 24))},
        watches[N:],
    )
    here, nothing, constant = found["here"], found["nothing"], found["constant"]
    assert here["weather"] > 0.99
    assert here["battery"] > 0.95
    assert here["minute"] > 0.4
    assert here["time"] > 0.6
    assert here["weather_position"] < 0.4
    assert here["hour"] < 0.2
    for name in ("weather", "battery_position", "weather_position"):
        assert nothing[name] < constant[name] + 0.12
    assert nothing["battery"] < constant["battery"] + 0.02
    # Better to say the mean than to believe noise.
    assert nothing["battery"] > constant["battery"] - 0.03
    assert constant["battery"] == pytest.approx(0.75, abs=0.05)


def test_wide_vectors_are_no_harder(watches):
    draws = np.random.default_rng(3)
    lifted = planted(watches) @ draws.normal(size=(24, 2000))
    found = linear_probes.fit(lifted[:N], watches[:N]).predict(lifted[N:])
    assert np.mean([read.weather == watch.weather for read, watch in zip(found, watches[N:], strict=True)]) > 0.98


def test_vectors_that_are_all_the_same_say_the_mean(watches):
    found = linear_probes.fit(np.ones((N, 5)), watches[:N]).predict(np.ones((3, 5)))
    assert len(set(found)) == 1
    assert abs(found[0].battery - np.mean([watch.battery for watch in watches[:N]])) < 1


def test_the_penalty_is_that_of_the_least_leave_one_out_error(watches):
    """PRESS against fits that really leave one out."""
    vectors, battery = planted(watches, noise=0.5)[:40], np.asarray([watch.battery / 100 for watch in watches[:40]])
    values = np.linalg.eigvalsh((vectors - vectors.mean(0)) @ (vectors - vectors.mean(0)).T)
    scale = values.sum() / 40

    def left_out(penalty):
        errors = []
        for number in range(40):
            kept = np.arange(40) != number
            x, y = vectors[kept], battery[kept]
            weights = np.linalg.solve(
                (x - x.mean(0)).T @ (x - x.mean(0)) + penalty * scale * np.eye(24), (x - x.mean(0)).T @ (y - y.mean())
            )
            errors.append((battery[number] - y.mean() - (vectors[number] - x.mean(0)) @ weights) ** 2)
        return np.mean(errors)

    best = linear_probes.PENALTIES[int(np.argmin([left_out(penalty) for penalty in linear_probes.PENALTIES]))]
    x = vectors - vectors.mean(0)
    expected = np.linalg.solve(x.T @ x + best * scale * np.eye(24), x.T @ (battery - battery.mean()))
    found = linear_probes.fit(vectors, watches[:40])
    np.testing.assert_allclose(found.weights[:, 11], expected, rtol=1e-6)


def test_a_predicted_vector_is_its_direction():
    draws = np.random.default_rng(0)
    vectors = draws.normal(size=(4, 3, 8))
    scaled = vectors * draws.uniform(0.1, 9, size=(4, 3, 1))
    np.testing.assert_allclose(linear_probes.directions(scaled), linear_probes.directions(vectors), rtol=1e-5)
    assert np.isfinite(linear_probes.directions(np.zeros((1, 2, 3)))).all()


def test_pooling_keeps_where_things_are():
    few = np.arange(2 * 16 * 3.0).reshape(2, 16, 3)
    np.testing.assert_array_equal(pooled(few), few.reshape(2, -1))
    grid = np.zeros((1, 8, 8, 100), np.float32)
    grid[0, :2, 6:] = 4.0  # the fourth cell of the first row
    found = np.asarray(pooled(grid.reshape(1, 64, 100))).reshape(16, 100)
    assert (found[3] == 4).all()
    assert found.sum() == 400
    assert pooled(np.ones((2, 50, 100), np.float32)).shape == (2, 1600)
