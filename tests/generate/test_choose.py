import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unihetero_jax.generate.choose import choose
from unihetero_jax.generate.sampling_options import Choice

DRAWS = 4000
# Probabilities 0.5, 0.25, 0.15, 0.1, in another order than by size.
PROBABILITY = np.asarray([0.15, 0.5, 0.1, 0.25])


def frequency(choice: Choice, probability=PROBABILITY):
    """How often each is chosen."""
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(probability, jnp.float32)), (DRAWS, len(probability)))
    keys = jax.random.split(jax.random.key(0), DRAWS)
    chosen = jax.jit(choose, static_argnums=2)(logits, keys, choice.rule, choice.numbers)
    return np.bincount(chosen, minlength=len(probability)) / DRAWS


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(), [0, 1, 0, 0]),
        (Choice(1.0), PROBABILITY),
        (Choice(0.5), PROBABILITY**2 / np.sum(PROBABILITY**2)),
        (Choice(1.0, top_k=1), [0, 1, 0, 0]),
        (Choice(1.0, top_k=2), [0, 2 / 3, 0, 1 / 3]),
        (Choice(1.0, top_k=9), PROBABILITY),
        # The fewest that add up to 0.7 are the first two; 0.8 needs the third.
        (Choice(1.0, top_p=0.7), [0, 2 / 3, 0, 1 / 3]),
        (Choice(1.0, top_p=0.8), [1 / 6, 5 / 9, 0, 5 / 18]),
        (Choice(1.0, top_p=1e-6), [0, 1, 0, 0]),
        # Top-p counts what temperature and top-k leave: of 0.5 and 0.25, two thirds are the first's.
        (Choice(1.0, top_k=2, top_p=0.6), [0, 1, 0, 0]),
        (Choice(0.5, top_p=0.7), [0, 1, 0, 0]),
    ],
)
def test_what_is_chosen_and_how_often(choice, expected):
    np.testing.assert_allclose(frequency(choice), expected, atol=0.03)


def test_ties_are_all_kept():
    np.testing.assert_allclose(frequency(Choice(1.0, top_k=2), [0.5, 0.25, 0.25]), [0.5, 0.25, 0.25], atol=0.03)


def test_numbers_alone_compile_nothing():
    assert Choice(0.7, 5, 0.9).rule == Choice(1.3, 5, 0.8).rule
    assert Choice(0.0, 5, 0.9).rule == Choice().rule
    assert Choice(0.7, 5, 1.0).rule != Choice(0.7, 5, 0.9).rule
