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


def mesh_of(devices):
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


@pytest.mark.parametrize(
    # 0.02 needs running maxima; 150 images of 2 views fill up the last tile of 128 lanes.
    ("images", "features", "temperature", "variant", "devices"),
    [
        (128, 16, 0.1, None, 0),
        (128, 16, 0.02, None, 0),
        (150, 5, 0.1, "out", 0),
        (150, 1, 0.02, "in", 0),
        (256, 16, 0.1, None, 2),
        (150, 16, 0.02, "in", 2),
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
    assert np.linalg.norm(gradient - wanted) <= 2e-6 * np.linalg.norm(wanted) + 1e-6 * (
        features == 1
    )


def test_float64_is_refused():
    with jax.enable_x64(True), pytest.raises(ValueError, match="works in float32, not float64"):
        losses.nt_xent(jnp.ones((4, 2, 3), jnp.float64), impl="tiled", kernel="pallas")


def tpu_devices(topology, count):
    pytest.importorskip("libtpu", reason="compiling for TPU needs the libtpu wheel")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    return topologies.get_topology_desc(topology, "tpu").devices[:count]


@pytest.mark.slow
@pytest.mark.parametrize(("topology", "chips"), [("v5e:2x4", 8), ("v4:2x2x1", 4), ("v6e:2x2", 4)])
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
