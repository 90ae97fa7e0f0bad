"""Features taken by two processes, each of its own rows, equal those of one."""

import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from PIL import Image
from tiny_network import build

from jaxcl.data import DataConfig
from jaxcl.evaluators import EvalConfig, Online

CONFIG = EvalConfig(gallery="train", validation="train", batch_size=6, ks=(1,))

WORKER = """
import sys

import jax

process, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)

sys.path[:0] = sys.argv[4:]
from test_online_processes import everything

everything(folder, process, 2)
jax.distributed.shutdown()
"""


def everything(folder, process=0, processes=1):
    """Takes the features of the images of a folder and keeps them, and how many rows this process has read."""
    settings = DataConfig(
        name="folder", path=f"{folder}/images", image_size=8, channels=1, threads=1, on_bad="skip"
    )
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    online = Online(CONFIG, settings, build(), mesh, process_index=process, process_count=processes)
    leaves, tree = jax.tree.flatten(
        jax.eval_shape(lambda: build().init(jax.random.key(0), (8, 8, 1)))
    )
    rng = np.random.default_rng(0)
    variables = jax.tree.unflatten(
        tree, [np.abs(rng.normal(size=leaf.shape)).astype(leaf.dtype) for leaf in leaves]
    )
    kept = {"rows": sum(len(batch["index"]) for batch in online.batches("train"))}
    for name, network in (("encoder", variables), ("pixels", None)):
        found = online.features(network, "train")
        kept |= {f"{name}/{k}": getattr(found, k) for k in ("h", "labels", "index")}
    kept |= {"score": online.run(variables["params"], variables["batch_stats"])["knn"]}
    np.savez(f"{folder}/{process}of{processes}.npz", **kept)


def test_two_processes_equal_one(tmp_path):
    rng = np.random.default_rng(1)
    for i in range(21):  # in batches of six: the last one has rows for the first process only
        path = tmp_path / "images" / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(path)
    (tmp_path / "images" / "b" / "4.png").write_bytes(b"no image")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    here = pathlib.Path(__file__).parent
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                WORKER,
                str(process),
                port,
                str(tmp_path),
                str(here),
                str(here.parent),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    everything(tmp_path)
    try:
        outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    if any(worker.returncode for worker in workers):
        pytest.fail("\n".join(outputs))
    one, *both = (np.load(tmp_path / f"{name}.npz") for name in ("0of1", "0of2", "1of2"))
    assert one["rows"] == 24
    assert len(np.unique(one["encoder/h"], axis=0)) == 20
    assert len(np.setdiff1d(np.arange(21), one["encoder/index"])) == 1
    for part in both:
        assert part["rows"] == 12
        assert set(part) == set(one)
        for name in set(one) - {"rows"}:
            np.testing.assert_allclose(part[name], one[name], rtol=1e-5, err_msg=name)
