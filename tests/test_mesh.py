import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxcl import mesh as mesh_lib


def test_batch_must_divide_over_the_devices():
    mesh = mesh_lib.make_mesh()
    mesh_lib.check_batch_size(mesh, 64)
    with pytest.raises(
        ValueError, match="batch_size=60 does not divide over 8 devices: choose 56 or 64"
    ):
        mesh_lib.check_batch_size(mesh, 60)
    with pytest.raises(ValueError, match="choose 8,"):
        mesh_lib.check_batch_size(mesh, 3)


def test_global_batch_has_the_rows_in_order():
    mesh = mesh_lib.make_mesh()
    rows = np.arange(32).reshape(16, 2)
    array = mesh_lib.to_global(mesh, {"x": rows})["x"]
    assert array.sharding.is_equivalent_to(mesh_lib.batch_sharding(mesh), 2)
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), rows[shard.index])
    np.testing.assert_array_equal(mesh_lib.to_host(array), rows)


def test_the_first_rule_that_matches_places_a_leaf():
    mesh = mesh_lib.make_mesh()
    tree = {
        "params": {
            "head": {"kernel": jax.ShapeDtypeStruct((8, 8), np.float32)},
            "b": jax.ShapeDtypeStruct((8,), np.float32),
        }
    }
    placed = mesh_lib.state_shardings(mesh, tree, ((r"head/kernel", P(None, "data")), (r".*", P())))
    assert placed["params"]["head"]["kernel"].spec == P(None, "data")
    assert placed["params"]["b"].spec == P()
    with pytest.raises(ValueError, match="no partition rule covers 'params/b'"):
        mesh_lib.state_shardings(mesh, tree, ((r"head", P()),))


def test_settings_that_come_too_late_are_named():
    jax.devices()
    with pytest.raises(RuntimeError, match=r"mesh.cpu_devices=3, but JAX already runs with 8"):
        mesh_lib.initialize(mesh_lib.MeshConfig(cpu_devices=3, compile_cache=""))


def test_bad_platform():
    with pytest.raises(ValueError, match=r"mesh.platform='tpuu'"):
        mesh_lib.MeshConfig(platform="tpuu")


def test_forms_of_losses_that_cannot_be():
    with pytest.raises(ValueError, match=r"mesh.loss_impl='fast': expected one of auto, dense"):
        mesh_lib.MeshConfig(loss_impl="fast")
    with pytest.raises(ValueError, match=r"mesh.loss_kernel='cuda': expected one of auto, xla"):
        mesh_lib.MeshConfig(loss_kernel="cuda")
    for impossible in ({"loss_impl": "dense"}, {"x64": True}):
        with pytest.raises(
            ValueError, match=r"mesh.loss_kernel='pallas' with .* over tiles in float32"
        ):
            mesh_lib.MeshConfig(loss_kernel="pallas", **impossible)


@pytest.mark.parametrize(
    ("libtpu", "files", "expected"),
    [
        (True, (), True),
        (False, (), False),
        (True, ("/dev/accel*",), False),
        (True, ("/dev/vfio/[0-9]*",), False),
        (True, ("/dev/nvidia[0-9]*",), False),
    ],
)
def test_libtpu_without_a_tpu_is_not_asked(libtpu, files, expected, monkeypatch):
    monkeypatch.setattr(mesh_lib.sys, "platform", "linux")
    monkeypatch.setattr(mesh_lib.importlib.util, "find_spec", lambda name: name if libtpu else None)
    monkeypatch.setattr(mesh_lib.glob, "glob", lambda p: [p] if p in files else [])
    assert mesh_lib.only_compiles_for_tpu() == expected
