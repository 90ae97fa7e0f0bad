import collectives
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcl.models.norm import BatchNorm, group_moments


def mesh(count):
    devices = jax.devices()[:count]
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def data(shape=(16, 3, 5, 4), dtype=np.float32):
    rng = np.random.default_rng(0)
    return (rng.normal(size=shape) * rng.uniform(0.5, 3, shape[-1]) + 2).astype(dtype)


def variables(channels):
    rng = np.random.default_rng(1)
    draw = lambda low, high: rng.uniform(low, high, channels).astype(np.float32)  # noqa: E731
    return {
        "params": {"scale": draw(0.5, 2), "bias": draw(-1, 1)},
        "batch_stats": {"mean": draw(-1, 1), "var": draw(0.5, 2)},
    }


def oracle(x, v, groups, momentum=0.9, eps=1e-5):
    """One group after another, as that many separate batches would be normalised."""
    x = np.asarray(x, np.float64)
    outs, means, variances = [], [], []
    for part in np.split(x, groups):
        flat = part.reshape(-1, x.shape[-1])
        mean = flat.sum(0) / len(flat)
        var = ((flat - mean) ** 2).sum(0) / len(flat)
        y = (part - mean) / np.sqrt(var + eps)
        outs.append(y * v["params"]["scale"] + v["params"]["bias"])
        means.append(mean)
        variances.append(var)
    old = v["batch_stats"]
    new = {
        "mean": momentum * old["mean"] + (1 - momentum) * np.mean(means, 0),
        "var": momentum * old["var"] + (1 - momentum) * np.mean(variances, 0),
    }
    return np.concatenate(outs), new


@pytest.mark.parametrize("groups", [1, 2, 8, 16])
@pytest.mark.parametrize("shape", [(16, 3, 5, 4), (16, 6)])
def test_train_equals_separate_batches(groups, shape):
    x, v = data(shape), variables(shape[-1])
    if len(shape) == 2 and groups == 16:
        groups = 4  # a group of one number has no variance
    y, new = BatchNorm(groups).apply(v, x, True, mutable=["batch_stats"])
    expected, stats = oracle(x, v, groups)
    np.testing.assert_allclose(y, expected, atol=2e-5)
    np.testing.assert_allclose(new["batch_stats"]["mean"], stats["mean"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["var"], stats["var"], rtol=1e-5)


def test_groups_make_a_difference():
    x, v = data(), variables(4)
    one, eight = (BatchNorm(g).apply(v, x, True, mutable=["batch_stats"])[0] for g in (1, 8))
    assert np.abs(one - eight).max() > 0.1


def test_evaluation_uses_running_statistics_and_any_number_of_rows():
    x, v = data((3, 2, 2, 4)), variables(4)
    y = BatchNorm(groups=8, eps=1e-3).apply(v, x, False)
    stats, params = v["batch_stats"], v["params"]
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-3) * params["scale"] + params["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "groups"), [((6, 2, 3), 2), ((6, 2, 1, 3), 1), ((6, 3), 1)])
@pytest.mark.parametrize("affine", [True, False])
def test_gradient_against_finite_differences(shape, groups, affine):
    with jax.enable_x64(True):
        x, v = data(shape, np.float64), jax.tree.map(np.float64, variables(3))
        if not affine:
            v["params"] = {"scale": np.ones(3), "bias": np.zeros(3)}
        weights = np.random.default_rng(2).normal(size=x.shape)
        norm = BatchNorm(groups, use_scale=affine, use_bias=affine, dtype=jnp.float64)
        inner = tuple(range(len(shape) - 1))

        def loss(x, params):
            y, _ = norm.apply({**v, "params": params}, x, True, mutable=["batch_stats"])
            return (y * weights).sum()

        gx, gp = jax.jit(jax.grad(loss, (0, 1)))(x, v["params"])

        def oracle_loss(x):
            return (oracle(x, v, groups)[0] * weights).sum()

        for index in np.ndindex(*x.shape):
            step = np.zeros_like(x)
            step[index] = 1e-5
            slope = (oracle_loss(x + step) - oracle_loss(x - step)) / 2e-5
            np.testing.assert_allclose(gx[index], slope, atol=1e-7)
        if affine:
            normed = (oracle(x, v, groups)[0] - v["params"]["bias"]) / v["params"]["scale"]
            np.testing.assert_allclose(gp["bias"], weights.sum(inner), rtol=1e-12)
            np.testing.assert_allclose(gp["scale"], (weights * normed).sum(inner), rtol=1e-9)


def test_variance_far_from_zero_is_exact():
    """E[x^2] - E[x]^2 would lose all digits here: 1e4^2 against a variance of 1 in float32."""
    x = (data((64, 4, 4, 2)) - 2 + 1e4).astype(np.float32)
    _, var = group_moments(jnp.asarray(x), 1)
    np.testing.assert_allclose(var[0], x.astype(np.float64).var((0, 1, 2)), rtol=1e-3)


def test_bfloat16_statistics_are_float32():
    x = jnp.asarray(data(), jnp.bfloat16)
    norm = BatchNorm(dtype=jnp.bfloat16)
    v = norm.init(jax.random.key(0), x, False)
    assert {a.dtype for a in jax.tree.leaves(v)} == {jnp.dtype("float32")}
    y, new = norm.apply(v, x, True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.1 * exact.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(
        new["batch_stats"]["var"], 0.9 + 0.1 * exact.var((0, 1, 2)), rtol=1e-5
    )


def test_parameters_follow_the_flags():
    x = jnp.zeros((2, 3))
    v = BatchNorm(use_bias=False, zero_scale=True).init(jax.random.key(0), x, False)
    assert set(v["params"]) == {"scale"}
    assert not np.any(v["params"]["scale"])
    v = BatchNorm(use_scale=False, use_bias=False).init(jax.random.key(0), x, False)
    assert "params" not in v
    np.testing.assert_array_equal(v["batch_stats"]["mean"], np.zeros(3))
    np.testing.assert_array_equal(v["batch_stats"]["var"], np.ones(3))


def test_initialisation_in_training_mode_leaves_the_statistics():
    v = BatchNorm().init(jax.random.key(0), jnp.asarray(data()), True)
    np.testing.assert_array_equal(v["batch_stats"]["mean"], np.zeros(4))


def test_rows_that_do_not_divide_are_an_error():
    v = variables(4)
    with pytest.raises(ValueError, match=r"BatchNorm: 16 rows .* groups=3"):
        BatchNorm(groups=3).apply(v, data(), True, mutable=["batch_stats"])


@pytest.mark.parametrize(
    ("groups", "devices"), [(1, 8), (8, 8), (8, 2), (16, 8), (2, 8), (4, 8), (1, 4)]
)
def test_groups_do_not_depend_on_devices_and_activations_stay(groups, devices):
    x, v = data((16, 8, 8, 4)), variables(4)
    weights = np.random.default_rng(2).normal(size=x.shape).astype(np.float32)
    norm = BatchNorm(groups)

    def step(v, x, weights):
        def loss(params, x):
            y, new = norm.apply({**v, "params": params}, x, True, mutable=["batch_stats"])
            return (y * weights).sum(), (y, new)

        return jax.grad(loss, (0, 1), has_aux=True)(v["params"], x)

    rows = NamedSharding(mesh(devices), P("data"))
    everywhere = NamedSharding(mesh(devices), P())
    compiled = (
        jax.jit(step, in_shardings=(everywhere, rows, rows))
        .lower(v, jnp.asarray(x), jnp.asarray(weights))
        .compile()
    )
    found = collectives.sent(compiled.as_text())
    assert found  # the parameters' gradient at least is summed over devices
    assert all(array.size <= 16 * 4 for array in found), found  # [N,C] at most, never [N,H,W,C]
    if groups == 1:
        assert all(array.kind == "all-reduce" and array.size <= 4 * 4 for array in found), found
    put = jax.device_put
    args = (put(v, everywhere), put(x, rows), put(weights, rows))
    (gp, gx), (y, new) = compiled(*args)
    (gp1, gx1), (y1, new1) = jax.jit(step)(v, x, weights)
    expected, stats = oracle(x, v, groups)
    np.testing.assert_allclose(y, expected, atol=2e-5)
    np.testing.assert_allclose(new["batch_stats"]["var"], stats["var"], rtol=1e-5)
    for a, b in zip(
        jax.tree.leaves((gp, gx, y, new)), jax.tree.leaves((gp1, gx1, y1, new1)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
