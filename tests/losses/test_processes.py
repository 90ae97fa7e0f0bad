"""The losses on two processes of four devices each equal those of one process."""

import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxcl import losses

WORKER = """
import sys

import jax

process, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)

import functools

import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxcl import losses

mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec("data"))
everything = np.load(f"{folder}/z.npy")
z = jax.make_array_from_callback(everything.shape, sharding, lambda at: everything[at])
given = dict(np.load(f"{folder}/given.npz"))
every = {form: functools.partial(losses.nt_xent, impl=form) for form in ("dense", "tiled", "ring")}
every |= {
    "triplet": lambda z, mesh: losses.triplet(
        z.reshape(96, 16), given["labels"], 0.5, "semihard", mesh=mesh
    ),
    "himulcone": lambda z, mesh: losses.himulcone(z, given["paths"], mesh=mesh),
    "leave_one_out": lambda z, mesh: losses.leave_one_out(
        z, given["keys"], given["queues"], mesh=mesh
    ),
    "others": lambda z, mesh: (
        losses.sup_con(z, given["labels"][::2], variant="in", mesh=mesh)
        + losses.info_nce(z[:, 0], z[:, 1], mesh=mesh)
        + losses.info_nce(z[:, 1], z[:, 0], given["queues"][0], mesh=mesh)
        + losses.sup_con_memory(
            z[:, 0], z[:, 1], given["queues"][1], given["labels"][::2], given["known"], mesh=mesh
        )
    ),
}
for form, function in every.items():
    loss = functools.partial(function, mesh=mesh)
    value, gradient = jax.jit(jax.value_and_grad(loss))(z)
    shards = sorted(gradient.addressable_shards, key=lambda s: s.index[0].start)
    rows = np.concatenate([np.asarray(s.data) for s in shards])
    np.savez(f"{folder}/{form}{process}.npz", value=np.asarray(value), rows=rows)
jax.distributed.shutdown()
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    z = np.random.default_rng(0).normal(size=(48, 2, 16)).astype(np.float32)
    np.save(tmp_path / "z.npy", z)
    rng = np.random.default_rng(1)
    leaf = rng.integers(9, size=48)
    given = {
        "labels": np.repeat(rng.integers(7, size=48), 2).astype(np.int32),
        "paths": np.stack([leaf // 3, leaf], 1).astype(np.int32),
        "keys": rng.normal(size=(48, 2, 2, 16)).astype(np.float32),
        "queues": rng.normal(size=(2, 20, 16)).astype(np.float32),
        "known": rng.integers(-1, 7, size=20).astype(np.int32),
    }
    np.savez(tmp_path / "given.npz", **given)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(process), port, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    if any(worker.returncode for worker in workers):
        pytest.fail("\n".join(outputs))
    every = dict.fromkeys(("dense", "tiled", "ring"), losses.nt_xent) | {
        "triplet": lambda z: losses.triplet(z.reshape(96, 16), given["labels"], 0.5, "semihard"),
        "himulcone": lambda z: losses.himulcone(z, given["paths"]),
        "leave_one_out": lambda z: losses.leave_one_out(z, given["keys"], given["queues"]),
        "others": lambda z: (
            losses.sup_con(z, given["labels"][::2], variant="in")
            + losses.info_nce(z[:, 0], z[:, 1])
            + losses.info_nce(z[:, 1], z[:, 0], given["queues"][0])
            + losses.sup_con_memory(
                z[:, 0], z[:, 1], given["queues"][1], given["labels"][::2], given["known"]
            )
        ),
    }
    alone = {form: jax.jit(jax.value_and_grad(loss))(z) for form, loss in every.items()}
    for form, (expected, wanted) in alone.items():
        assert expected > 0
        parts = [np.load(tmp_path / f"{form}{process}.npz") for process in range(2)]
        for part in parts:
            np.testing.assert_allclose(part["value"], expected, rtol=1e-6)
        gradient = np.concatenate([part["rows"] for part in parts])
        assert np.linalg.norm(wanted) > 0
        assert np.linalg.norm(gradient - wanted) <= 2e-6 * np.linalg.norm(wanted)
