import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.models import conv
from jaxcl.models.conv import Conv, conv2d


def oracle(x, kernel, stride):
    """Window by window."""
    size, pad = kernel.shape[0], kernel.shape[0] // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = (range(0, n, stride) for n in x.shape[1:3])
    return np.stack(
        [
            np.stack(
                [
                    np.einsum("nhwi,hwio->no", padded[:, r : r + size, c : c + size], kernel)
                    for c in columns
                ],
                1,
            )
            for r in rows
        ],
        1,
    )


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (1, 7, 5, 2)])
def test_forward_and_gradients(size, stride, shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    kernel = rng.normal(size=(size, size, shape[-1], 4))
    expected = oracle(x, kernel, stride)
    weights = rng.normal(size=expected.shape)
    with jax.enable_x64(True):

        def run(x, kernel, weights):
            y, vjp = jax.vjp(lambda x, k: conv2d(x, k, stride), x, kernel)
            return y, *vjp(weights)

        y, gx, gk = (np.asarray(a) for a in jax.jit(run)(x, kernel, weights))
        assert y.dtype == np.float64
    np.testing.assert_allclose(y, expected, atol=1e-12)

    # The convolution is linear in each argument: its gradient is tested by inner products.
    dx, dk = rng.normal(size=x.shape), rng.normal(size=kernel.shape)
    np.testing.assert_allclose(
        (gx * dx).sum(), (oracle(dx, kernel, stride) * weights).sum(), rtol=1e-9
    )
    np.testing.assert_allclose((gk * dk).sum(), (oracle(x, dk, stride) * weights).sum(), rtol=1e-9)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (4, 2), (5, 3), (7, 2)])
def test_both_orders_of_the_gradients_are_the_same_numbers(size, stride):
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(size), 3)
        x = jax.random.normal(keys[0], (2, 9, 8, 3))
        kernel = jax.random.normal(keys[1], (size, size, 3, 4))
        dy = jax.random.normal(keys[2], conv2d(x, kernel, stride).shape)
        for a, b in zip(
            conv._in_order(stride, x, kernel, dy),
            conv._any_order(stride, x, kernel, dy),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, atol=1e-12)


def gradients_in_a_loop(x, kernel):
    """Of two images, one after another."""

    def loss(x, kernel):
        return sum(jax.lax.map(lambda image: (conv2d(image[None], kernel, 2) ** 2).sum(), x))

    return jax.grad(loss, (0, 1))(x, kernel)


SHAPES = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 5))


def test_order_of_gradients_in_a_loop_on_cpu():
    """In another order XLA computes them by plain loops on CPU, many times slower."""
    program = jax.jit(gradients_in_a_loop).lower(*SHAPES).compile().as_text()
    orders = re.findall(r"convolution\(.*dim_labels=(\S+?),", program)
    assert len(orders) == 3
    assert set(orders) == {"b01f_01io->b01f"}


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_order_of_gradients_elsewhere_is_left_to_xla(platform):
    traced = jax.jit(gradients_in_a_loop).trace(*SHAPES)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "[f, 0, 1, b]x[i, 0, 1, o]->[0, 1, b, f]" in program
    assert program.count("stablehlo.convolution") == 3
    assert "stablehlo.transpose" not in program


def test_types_and_initial_variance():
    x = jnp.ones((1, 4, 4, 32))
    layer = Conv(features=64, size=3, dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["kernel"])
    assert set(variables["params"]) == {"kernel"}
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel.std(), (9 * 32) ** -0.5, rtol=0.03)
    assert layer.apply(variables, x).dtype == jnp.bfloat16
