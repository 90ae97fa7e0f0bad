"""The Pallas kernels: interpreted, they equal the loops; for TPU, they compile without one."""

import functools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcl import losses
from jaxcl.losses import nce
from jaxcl.plan import parse
from jaxcl.plan.devices import devices as plan_devices


def mesh_of(devices):
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


@pytest.mark.parametrize(
    # 0.02 needs running maxima; 150 images of 2 views fill up the last tile of 128 lanes.
    ("images", "features", "temperature", "variant", "devices"),
    [
        pytest.param(150, 16, 0.02, "out", 2, marks=pytest.mark.slow),
        pytest.param(128, 16, 0.1, None, 0, marks=pytest.mark.slow),
        pytest.param(150, 1, 0.02, "in", 0, marks=pytest.mark.slow),
        pytest.param(128, 16, 0.02, None, 0, marks=pytest.mark.slow),
        pytest.param(150, 5, 0.1, "out", 0, marks=pytest.mark.slow),
        pytest.param(256, 16, 0.1, None, 2, marks=pytest.mark.slow),
    ],
)
def test_interpreted_kernels_equal_the_loops(images, features, temperature, variant, devices):
    z = np.random.default_rng(images).normal(size=(images, 2, features)).astype(np.float32)
    labels = np.random.default_rng(0).integers(-1, images // 3, images)
    if variant is None:
        loss = functools.partial(losses.nt_xent, temperature=temperature)
    else:
        loss = functools.partial(
            losses.sup_con, labels=labels, temperature=temperature, variant=variant
        )
    mesh = mesh_of(jax.devices()[:devices]) if devices else None
    impl = "ring" if devices else "tiled"
    expected, wanted = jax.jit(jax.value_and_grad(loss))(z)
    run = jax.jit(
        jax.value_and_grad(functools.partial(loss, impl=impl, kernel="pallas", mesh=mesh))
    )
    value, gradient = run(z)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    # A single number, normalised, is a sign: its gradient is 0 but for rounding, of about eps / temperature.
    rounding = 1e-5 if features == 1 else 0
    assert np.linalg.norm(gradient - wanted) <= 2e-6 * np.linalg.norm(wanted) + rounding


def graded(queries, keys):
    """Two levels: equal in one digit, equal in both; the second with weights."""
    other = queries["index"] != keys["index"]
    first = other & (queries["digits"][0] == keys["digits"][0])
    second = first & (queries["digits"][1] == keys["digits"][1])
    return nce.Pairs(~first & other, (first, second * (1.0 + queries["heat"] * keys["heat"])))


def mining(rows, digits, **options):
    """A loss of levels, weights and hardest pairs."""
    meta = {
        "index": jnp.arange(len(rows)),
        "digits": digits,
        "heat": jnp.cos(jnp.arange(len(rows), dtype=jnp.float32)),
    }
    want = ("lse", "positive_sum", "positives", "max", "argmax", "positive_min")
    stats = nce.row_stats(
        rows, None, nce.Relation(graded), meta, want=want, impl="tiled", tile=128, **options
    )
    pull = stats["positive_sum"] / jnp.maximum(stats["positives"], 1)
    some = jnp.isfinite(stats["positive_min"])
    far = jnp.where(some, stats["positive_min"], 0)
    loss = jnp.mean(stats["lse"] + stats["max"]) - jnp.mean(pull + far)
    return loss, (stats["argmax"], stats["positives"])


def test_interpreted_kernels_know_levels_weights_and_extremes():
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(200, 3)).astype(np.float32)
    digits = rng.integers(0, 5, (200, 2))
    run = jax.jit(jax.value_and_grad(mining, has_aux=True), static_argnames="kernel")
    (value, (at, positives)), gradient = run(rows, digits, kernel="pallas")
    (expected, (wanted_at, wanted_positives)), wanted = run(rows, digits, kernel="xla")
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_array_equal(at, wanted_at)
    np.testing.assert_allclose(positives, wanted_positives, rtol=1e-6)
    assert np.linalg.norm(gradient - wanted) <= 2e-6 * np.linalg.norm(wanted)


def test_float64_is_refused():
    with jax.enable_x64(True), pytest.raises(ValueError, match="works in float32, not float64"):
        losses.nt_xent(jnp.ones((4, 2, 3), jnp.float64), impl="tiled", kernel="pallas")


def tpu_devices(topology, count):
    pytest.importorskip("libtpu", reason="compiling for TPU needs the libtpu wheel")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    text, _, megacore = topology.partition(" ")
    parsed = parse(text, megacore=bool(megacore))
    found = plan_devices(parsed, 600.0, print)
    assert len(found) == parsed.devices  # a chip with a megacore is one device, without it two
    return found[:count]


@pytest.mark.optimised
@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "chips"),
    [("v5e:2x4", 8), ("v4:2x2x1", 4), ("v4:2x2x1 megacore", 4), ("v6e:2x2", 4)],
)
@pytest.mark.parametrize("kernel", ["pallas", "xla"])
def test_a_ring_compiles_for_tpu(topology, chips, kernel):
    """4,096 rows a chip: the matrix would take 512 MiB a chip and more; collectives are counted."""
    mesh = mesh_of(tpu_devices(topology, chips))
    sharding = NamedSharding(mesh, P("data"))
    z = jax.ShapeDtypeStruct((2048 * chips, 2, 128), jnp.float32, sharding=sharding)
    loss = functools.partial(losses.nt_xent, impl="ring", kernel=kernel, mesh=mesh)
    compiled = jax.jit(jax.value_and_grad(loss)).lower(z).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 8 * 2**20
    text = compiled.as_text()
    assert not re.search(r" all-(gather|to-all)(-start)?\(", text)
    assert 0 < len(re.findall(r" collective-permute(?:-start)?\(", text)) <= 2 * 2 * 2
    assert ("tpu_custom_call" in text) == (kernel == "pallas")


@pytest.mark.optimised
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v4:2x2x1", "v6e:2x2"])
def test_levels_and_extremes_compile_for_tpu(topology):
    mesh = mesh_of(tpu_devices(topology, 1))
    sharding = NamedSharding(mesh, P())
    rows = jax.ShapeDtypeStruct((1000, 64), jnp.float32, sharding=sharding)
    digits = jax.ShapeDtypeStruct((1000, 2), jnp.int32, sharding=sharding)
    loss = functools.partial(mining, mesh=mesh, kernel="pallas")
    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(rows, digits).compile()
    assert compiled.as_text().count("tpu_custom_call") >= 2


@pytest.mark.optimised
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v4:2x2x1", "v6e:2x2"])
def test_every_kernel_compiles_for_tpu(topology):
    """Running maxima, labels and filled-up tiles on one chip."""
    mesh = mesh_of(tpu_devices(topology, 1))
    sharding = NamedSharding(mesh, P())
    z = jax.ShapeDtypeStruct((1000, 2, 64), jnp.float32, sharding=sharding)
    labels = jax.ShapeDtypeStruct((1000,), jnp.int32, sharding=sharding)
    for variant in ("out", "in"):
        for temperature in (0.1, 0.005):

            def loss(z, labels, variant=variant, temperature=temperature):
                return losses.sup_con(
                    z, labels, temperature, variant, impl="tiled", kernel="pallas", mesh=mesh
                )

            compiled = jax.jit(jax.value_and_grad(loss)).lower(z, labels).compile()
            assert compiled.as_text().count("tpu_custom_call") >= 2
