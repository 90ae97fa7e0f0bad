from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.models.init import initialize, scaled


class Net(nn.Module):
    """Three draws of two distributions and one constant."""

    @nn.compact
    def __call__(self, x):
        a = self.param("a", scaled("normal", 3.0), (50, 40), jnp.float32)
        b = self.param("b", scaled("truncated_normal", 0.5), (60, 70), jnp.float32)
        c = self.param("c", scaled("normal", 3.0), (50, 40), jnp.float32)
        d = self.param("d", nn.initializers.ones, (3,), jnp.float32)
        return x, a, b, c, d


@pytest.mark.parametrize("make", [initialize, lambda net, key, x: net.init(key, x)])
def test_distributions(make):
    values = make(Net(), jax.random.key(0), 0.0)["params"]
    for name in "ac":
        np.testing.assert_allclose(values[name].mean(), 0, atol=0.3)
        np.testing.assert_allclose(values[name].std(), 3, rtol=0.05)
    np.testing.assert_allclose(values["b"].std(), 0.5, rtol=0.05)
    assert 1.1 < abs(values["b"]).max() <= 0.5 * 2 / 0.8796
    np.testing.assert_array_equal(values["d"], 1)


def test_pieces_are_independent_and_keys_matter():
    values = initialize(Net(), jax.random.key(0), 0.0)["params"]
    again = initialize(Net(), jax.random.key(0), 0.0)["params"]
    other = initialize(Net(), jax.random.key(1), 0.0)["params"]
    jax.tree.map(np.testing.assert_array_equal, values, again)
    flat = [np.ravel(values[n])[:2000] for n in "abc"] + [np.ravel(other["a"])]
    correlations = np.corrcoef(flat) - np.eye(4)
    assert abs(correlations).max() < 0.1


def test_traced_key_gives_the_same():
    init = partial(initialize, Net())
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-6),
        jax.jit(lambda key: init(key, 0.0))(jax.random.key(0)),
        init(jax.random.key(0), 0.0),
    )
