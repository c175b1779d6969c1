import json

import numpy as np
import pytest
from scipy import linalg

from unihetero_jax.errors import UsageError
from unihetero_jax.evaluate.generation import collapse, frechet
from unihetero_jax.evaluate.generation.frechet import Gaussian


def test_the_distance_of_gaussians_is_the_formula():
    draws = np.random.default_rng(0)
    mean, factor = draws.normal(size=5), draws.normal(size=(5, 5))
    left, right = Gaussian(np.zeros(5), np.diag([1.0, 2, 3, 4, 0.5])), Gaussian(mean, factor @ factor.T)
    root = linalg.sqrtm(left.cov @ right.cov).real
    expected = mean @ mean + np.trace(left.cov + right.cov - 2 * root)
    assert frechet.distance(left, right) == pytest.approx(expected, rel=1e-5)
    assert frechet.distance(right, left) == pytest.approx(expected, rel=1e-5)
    assert frechet.distance(left, left) == pytest.approx(0, abs=1e-9)
    # Of one dimension: (μ₁ − μ₂)² + (σ₁ − σ₂)².
    one, two = Gaussian(np.array([1.0]), np.array([[4.0]])), Gaussian(np.array([3.0]), np.array([[25.0]]))
    assert frechet.distance(one, two) == pytest.approx(4 + 9)


def test_few_pictures_are_too_far_and_the_line_takes_that_away():
    draws = np.random.default_rng(0)
    width, apart = 20, 0.5
    reference = Gaussian(np.zeros(width), np.eye(width))
    same, other = draws.normal(size=(200, width)), draws.normal(size=(200, width)) + apart
    floor, found = frechet.compare(same, reference), frechet.compare(other, reference)
    assert floor["distance"] > 0.5
    assert abs(floor["infinite"]) < floor["distance"] / 2
    assert found["infinite"] == pytest.approx(width * apart**2, abs=0.6)
    assert found["distance"] > found["infinite"]
    more = frechet.compare(draws.normal(size=(4000, width)), reference)
    assert more["distance"] < floor["distance"] / 10


def test_files_of_features_and_of_moments(tmp_path, capsys):
    draws = np.random.default_rng(0)
    features, real = draws.normal(size=(50, 6)), draws.normal(size=(80, 6)) + 1
    np.savez(tmp_path / "drawn.npz", features=features)
    np.savez(tmp_path / "real.npz", mu=real.mean(0), sigma=np.cov(real, rowvar=False))
    expected = frechet.distance(frechet.gaussian(features), frechet.gaussian(real))
    assert frechet.main([str(tmp_path / "drawn.npz"), str(tmp_path / "real.npz")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["distance"] == pytest.approx(expected)
    assert found["infinite"] < found["distance"]
    assert frechet.main([str(tmp_path / "real.npz"), str(tmp_path / "real.npz")]) == 0
    assert json.loads(capsys.readouterr().out) == {"distance": pytest.approx(0, abs=1e-6)}


def test_what_is_no_file_of_features_is_one_line(tmp_path, capsys):
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    np.savez(tmp_path / "odd.npz", mean=np.zeros(3), cov=np.eye(4))
    np.savez(tmp_path / "one.npz", features=np.zeros((1, 4)))
    (tmp_path / "text.npz").write_text("no archive")
    for name, complaint in (
        ("other", r"other\.npz: holds images; expected features \[n, F\], or mean \[F\] and cov \[F, F\]"),
        ("odd", r"odd\.npz: mean \(3,\) and cov \(4, 4\)"),
        ("one", r"one\.npz: features of shape \(1, 4\)"),
        ("text", r"text\.npz: cannot be read as an npz file"),
        ("none", r"none\.npz: cannot be read as an npz file"),
    ):
        with pytest.raises(UsageError, match=complaint):
            frechet.load(tmp_path / f"{name}.npz")
    np.savez(tmp_path / "a.npz", features=np.random.default_rng(0).normal(size=(5, 3)))
    np.savez(tmp_path / "b.npz", features=np.random.default_rng(0).normal(size=(5, 4)))
    assert frechet.main([str(tmp_path / "a.npz"), str(tmp_path / "b.npz")]) == 2
    assert frechet.main([str(tmp_path / "none.npz"), str(tmp_path / "b.npz")]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_collapse_is_seen():
    draws = np.random.default_rng(0)
    spread = draws.normal(size=(60, 4, 16))
    found = collapse.statistics(spread)
    assert found["std"] == pytest.approx(1, abs=0.05)
    assert found["cosine"] == pytest.approx(0, abs=0.05)
    assert 14 < found["effective_rank"] <= 16
    same = collapse.statistics(np.repeat(spread[:1], 60, axis=0))
    assert same["std"] == pytest.approx(0, abs=1e-9)
    assert same["cosine"] == pytest.approx(1)
    line = collapse.statistics(draws.normal(size=(60, 4, 1)) * np.ones(16))
    assert line["effective_rank"] == pytest.approx(1, abs=1e-6)
    two = collapse.statistics(np.concatenate([spread[:, :, :2], np.zeros((60, 4, 14))], axis=-1))
    assert two["effective_rank"] == pytest.approx(2, abs=0.05)
    assert collapse.statistics(3 * spread) == pytest.approx(found)
