"""Losses of metric learning on several devices, in blocks, and in little memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcl import losses
from jaxcl.losses import anchors

RNG = np.random.default_rng(1)
Z = RNG.normal(size=(16, 5)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2, 3, 3, 0, 1, -1, 4, 5, 5, 2, 0], np.int32)
FURTHER = (RNG.normal(size=(7, 5)).astype(np.float32), np.array([0, 1, 2, 3, -1, 5, 5], np.int32))
PROXIES = RNG.normal(size=(6, 5)).astype(np.float32)


def every_loss(z, labels, further, centres, mesh=None):
    """The losses of metric learning."""
    reference = losses.Reference(*further, jnp.arange(7) != 2)
    against = {"reference": reference, "mesh": mesh}
    beta = 1.1 + 0.01 * jnp.sum(centres, axis=1)[jnp.maximum(labels, 0)]
    key = jax.random.key(3)
    return {
        "semihard": lambda: losses.triplet(z, labels, 0.5, "semihard", **against),
        "swap": lambda: losses.triplet(z, labels, 0.5, swap=True, smooth=True, mesh=mesh),
        "drawn": lambda: losses.margin_loss(
            z, labels, 0.2, beta, "distance_weighted", key=key, **against
        ),
        "batch-hard": lambda: losses.triplet(z, labels, 0.5, "batch_hard", **against),
        "batch-hard alone": lambda: losses.triplet(z, labels, 0.5, "batch_hard", mesh=mesh),
        "easy positive": lambda: losses.triplet(z, labels, 0.5, "easy_positive", mesh=mesh),
        **{
            mining: lambda mining=mining: losses.triplet(z, labels, 0.5, mining, mesh=mesh)
            for mining in ("hard", "violating", "closest_semihard", "facenet")
        },
        "nt_logistic": lambda: losses.nt_logistic(z, labels, 0.5, "semihard", **against),
        "nt_xent": lambda: losses.nt_xent_pairs(z, labels, 0.5, "semihard", **against),
        "pairs": lambda: losses.margin_contrastive(
            z, labels, 0.2, 1.2, mining="multi_similarity", **against
        ),
        "pair margins": lambda: losses.margin_contrastive(
            z, labels, 0.2, 1.2, mining="pair_margin", mesh=mesh
        ),
        "hadsell": lambda: losses.hadsell(z, labels, 1.2, distance="snr", **against),
        "hadsell easy positive": lambda: losses.hadsell(
            z, labels, mining="easy_positive", mesh=mesh
        ),
        "circle": lambda: losses.circle(z, labels, scale=4.0, **against),
        "lifted": lambda: losses.lifted_structure(z, labels, **against),
        "fast_ap": lambda: losses.fast_ap(z, labels, mesh=mesh),
        "multi_similarity": lambda: losses.multi_similarity(
            z, labels, mining="multi_similarity", **against
        ),
        "nca": lambda: losses.nca(z, labels, mesh=mesh),
        "n_pairs": lambda: losses.n_pairs(z, labels, 0.1, mesh=mesh),
        "proxy_nca": lambda: losses.proxy_nca(z, labels, centres, mesh=mesh),
        "proxy_anchor": lambda: losses.proxy_anchor(z, labels, centres, alpha=4.0, mesh=mesh),
        "arcface": lambda: losses.arcface(z, labels, centres, scale=4.0, mesh=mesh),
    }


FEW = ("semihard", "batch-hard", "lifted", "proxy_anchor")
"""Each another way through the code."""


def run(devices, names, dtype):
    """Values, and the gradients of their sum with respect to rows and proxies."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))
    sharded, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

    def total(z, centres, labels, further):
        every = every_loss(z, labels, further, centres, mesh if devices > 1 else None)
        values = {name: every[name]() for name in names or every}
        return sum(values.values()), values

    step = jax.jit(
        jax.value_and_grad(total, argnums=(0, 1), has_aux=True),
        in_shardings=(sharded, whole, sharded, whole),
    )
    z, proxies, further = Z.astype(dtype), PROXIES.astype(dtype), FURTHER[0].astype(dtype)
    (_, values), gradients = step(z, proxies, LABELS, (further, FURTHER[1]))
    return jax.device_get((values, gradients))


def same_as_on_one(counts, names=None, dtype=np.float32, of_value=1e-6, of_gradient=1e-5):
    values, gradients = run(1, names, dtype)
    assert all(value > 0 for value in values.values())
    for devices in counts:
        got, got_gradients = run(devices, names, dtype)
        for name, value in values.items():
            assert got[name].dtype == dtype, name
            np.testing.assert_allclose(got[name], value, rtol=of_value, err_msg=name)
        for mine, theirs in zip(got_gradients, gradients, strict=True):
            assert np.linalg.norm(mine - theirs) <= of_gradient * np.linalg.norm(theirs)


def test_eight_devices_give_the_same_as_one():
    same_as_on_one((8,), FEW)


@pytest.mark.slow
def test_the_number_of_devices_changes_nothing():
    """Every loss and mining on 2, 4 and 8, in float64, which leaves rounding no room."""
    with jax.enable_x64(True):
        same_as_on_one((2, 4, 8), None, np.float64, 1e-10, 1e-10)


def test_blocks_change_nothing(monkeypatch):
    """Three anchors at a time, the last block filled up; other draws would change the loss by more than rounding."""

    def total(z):
        key = jax.random.key(3)
        return losses.triplet(z, LABELS[:13], 0.5, "distance_weighted", swap=True, key=key)

    whole = jax.jit(jax.value_and_grad(total))(Z[:13])
    monkeypatch.setattr(anchors, "ELEMENTS", 3 * 13)
    value, gradient = jax.jit(jax.value_and_grad(lambda z: total(z)))(Z[:13])
    np.testing.assert_allclose(value, whole[0], rtol=2e-6)
    np.testing.assert_allclose(gradient, whole[1], rtol=2e-5, atol=1e-6)


def test_anchors_that_do_not_divide_are_named():
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",), axis_types=(AxisType.Auto,))
    with pytest.raises(
        ValueError, match=r'14 anchors do not divide over the 8 devices of mesh axis "data"'
    ):
        losses.triplet(jnp.asarray(Z[:14]), LABELS[:14], mesh=mesh)


def temporary_bytes(loss, rows, features=64):
    """What a compiled loss and its gradient need beside arguments and results."""
    z = jax.ShapeDtypeStruct((rows, features), jnp.float32)
    y = jax.ShapeDtypeStruct((rows,), jnp.int32)
    compiled = jax.jit(jax.value_and_grad(loss)).lower(z, y).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_all_triplets_of_4096_rows_need_no_cube_and_no_square():
    """A block of distances at a time: 4096^3 bools are 64 GiB, 4096^2 floats 64 MiB."""
    small, large = (temporary_bytes(losses.triplet, rows) for rows in (4096, 8192))
    assert small < 48 * 2**20
    assert large < 1.5 * small + 2**20
