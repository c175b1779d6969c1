"""A factor on what flows back: the value stays, the gradient is exactly the share that was asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unihetero_jax.model.gradient_scale import scale_gradient

X = jax.random.normal(jax.random.key(0), (64, 3))


def gradient(factor, x=X):
    return np.asarray(jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(7 * scale_gradient(x, factor)))))(x))


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_value_stays_bit_for_bit(factor, dtype):
    x = X.astype(dtype)
    np.testing.assert_array_equal(jax.jit(lambda x: scale_gradient(x, factor))(x), x)


def test_zero_is_exactly_zero():
    assert (gradient(0.0) == 0).all()
    assert (np.asarray(jax.grad(lambda x: jnp.sum(jnp.sqrt(scale_gradient(x, 0.0) * 0)))(X)) == 0).all(), "not NaN"


def test_half_is_exactly_half_of_one():
    np.testing.assert_array_equal(2 * gradient(0.5), gradient(1.0))
    np.testing.assert_array_equal(gradient(1.0), jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(7 * x))))(X))
    assert np.abs(gradient(0.5)).max() > 1


def test_the_type_of_the_gradient_is_that_of_the_value():
    assert (
        jax.grad(lambda x: jnp.sum(scale_gradient(x, 0.3).astype(jnp.float32)))(X.astype("bfloat16")).dtype
        == "bfloat16"
    )
