import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.models.heads import Head, HeadSpec
from jaxcl.models.init import initialize


def shapes(spec, width=6, **kwargs):
    h = jnp.zeros((2, width))
    variables = jax.eval_shape(lambda k: Head(spec, **kwargs).init(k, h, False), jax.random.key(0))
    flat = jax.tree_util.tree_flatten_with_path(variables.get("params", {}))[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in flat
    }


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (HeadSpec(layers=()), {}),
        (HeadSpec(layers=(3,)), {"dense1/kernel": (6, 3), "bn1/scale": (3,)}),
        (
            HeadSpec(layers=(-1, 5, 3)),
            {
                "dense1/kernel": (6, 6),
                "bn1/scale": (6,),
                "bn1/bias": (6,),
                "dense2/kernel": (6, 5),
                "bn2/scale": (5,),
                "bn2/bias": (5,),
                "dense3/kernel": (5, 3),
                "bn3/scale": (3,),
            },
        ),
        (
            HeadSpec(layers=(5, 3), batch_norm=False, bias=True),
            {
                "dense1/kernel": (6, 5),
                "dense1/bias": (5,),
                "dense2/kernel": (5, 3),
                "dense2/bias": (3,),
            },
        ),
        (
            HeadSpec(layers=(5, 3), last_bn_scale=False),
            {
                "dense1/kernel": (6, 5),
                "bn1/scale": (5,),
                "bn1/bias": (5,),
                "dense2/kernel": (5, 3),
            },
        ),
        (
            HeadSpec(layers=(5, 3), batch_norm=False, last_batch_norm=True, last_bn_bias=True),
            {
                "dense1/kernel": (6, 5),
                "dense2/kernel": (5, 3),
                "bn2/scale": (3,),
                "bn2/bias": (3,),
            },
        ),
    ],
)
def test_parameters(spec, expected):
    assert shapes(spec) == expected


def test_last_norm_without_parameters_still_normalises():
    spec = HeadSpec(layers=(5, 3), last_bn_scale=False)
    head = Head(spec)
    h = jax.random.normal(jax.random.key(0), (32, 6))
    variables = initialize(head, jax.random.key(1), h, False)
    assert "bn2" in variables["batch_stats"]
    z = head.apply(variables, h, True, mutable=["batch_stats"])[0][-1]
    np.testing.assert_allclose(z.mean(0), np.zeros(3), atol=1e-6)
    without = HeadSpec(layers=(5, 3), last_batch_norm=False)
    assert set(initialize(Head(without), jax.random.key(1), h, False)["batch_stats"]) == {"bn1"}


def test_outputs_of_every_layer_against_numpy():
    spec = HeadSpec(layers=(5, 4, 3), bias=True, last_bn_bias=True)
    head = Head(spec)
    rng = np.random.default_rng(0)
    h = rng.normal(size=(8, 6))
    shape = jax.eval_shape(lambda: head.init(jax.random.key(0), jnp.zeros((8, 6)), False))
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shape)
    outputs, _ = head.apply(variables, jnp.asarray(h, jnp.float32), True, mutable=["batch_stats"])

    params, x, expected = variables["params"], h, []
    for i in (1, 2, 3):
        x = x @ params[f"dense{i}"]["kernel"] + params[f"dense{i}"]["bias"]
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        x = x * params[f"bn{i}"]["scale"] + params[f"bn{i}"]["bias"]
        x = np.maximum(x, 0) if i < 3 else x
        expected.append(x)
    assert len(outputs) == 3
    assert (expected[-1] < 0).any()  # the last layer has no ReLU
    for a, b in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_identity():
    h = jnp.arange(6.0).reshape(2, 3)
    (z,) = Head(HeadSpec(layers=())).apply({}, h, True)
    np.testing.assert_array_equal(z, h)


def test_initial_values():
    h = jnp.zeros((1, 400))
    params = initialize(Head(HeadSpec((300, 200), bias=True)), jax.random.key(0), h, False)
    kernel = np.asarray(params["params"]["dense1"]["kernel"])
    np.testing.assert_allclose(kernel.std(), 0.01, rtol=0.02)
    assert abs(kernel).max() > 0.035  # not truncated: 120 000 numbers
    assert not np.any(params["params"]["dense1"]["bias"])

    spec = HeadSpec((300, 200), batch_norm=False, bias=True, init_std=None)
    params = initialize(Head(spec), jax.random.key(0), h, False)["params"]
    for name, fan_in in (("dense1", 400), ("dense2", 300)):
        bound = fan_in**-0.5
        for leaf in params[name].values():
            assert 0.95 * bound < abs(leaf).max() <= bound
            np.testing.assert_allclose(leaf.std(), bound / 3**0.5, rtol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": (5, 0)}, r"HeadSpec\.layers=\(5, 0\)"),
        ({"layers": (-2,)}, r"HeadSpec\.layers=\(-2,\)"),
        ({"layers": (5,), "init_std": 0.0}, r"HeadSpec\.init_std=0\.0"),
    ],
)
def test_bad_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        HeadSpec(**arguments)
