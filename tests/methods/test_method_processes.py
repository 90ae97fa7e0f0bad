"""Steps of MoCo, of SupCon and of what is beside them: on two processes of four devices each the same as on one device."""

import pathlib
import socket
import subprocess
import sys

import jax
import moco_network
import numpy as np
import pytest
from moco_network import MODES, moco

from jaxcl.methods import LooC, SupCon, SupConMoCo, Supervised
from jaxcl.methods.labels import LabelLevels
from jaxcl.views import ViewsConfig, build_program, presets

LABELS = LabelLevels(("coarse", "fine"), (3, 3))
LABELLED = {"features": 16, "labels": LABELS, "projection": moco_network.PROJECTION}

WORKER = """
import sys

import jax

process, port, folder, tests = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
sys.path[:0] = [tests, f"{tests}/methods"]

import moco_network
import numpy as np
import test_method_processes

for name, method in test_method_processes.methods().items():
    np.savez(f"{folder}/{name} {process}.npz", **moco_network.outcome(method, 8, steps=2))
jax.distributed.shutdown()
"""


def methods():
    """Every mechanism, and every BatchNorm of the keys: shuffled in the first, global in version 3."""
    views = moco().views
    ops = {"order": ("flip", "gray"), "ops": {"flip": {}, "gray": {"prob": 0.5}}}
    shared = build_program(ViewsConfig(**presets.leave_one_out(ops, {"colour": ("gray",)})))
    form = {"variant": "in", "denominator": "one_positive", "contrast": "one"}
    queue = {"bn": "ema", "bn_groups": 4, "levels": 2, "queue_size": 37}
    return {
        "queue": moco(**MODES["queue, symmetric"]),
        "version 3": moco(**MODES["version 3"]),
        "end to end": moco(mechanism="end_to_end", bn="groups"),
        "memory bank": moco(**MODES["memory bank"]),
        "looc": LooC(shared, **{**queue, "bn": "shuffle"}, projection=moco_network.PROJECTION),
        "supcon": SupCon(views, **LABELLED, **form),
        "supcon_moco": SupConMoCo(views, **queue, **LABELLED),
        "supervised": Supervised(views, LABELS, smoothing=0.1),
    }


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    tests = str(pathlib.Path(__file__).parents[1])
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(process), port, str(tmp_path), tests],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=900)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    if any(worker.returncode for worker in workers):
        pytest.fail("\n".join(outputs))
    with jax.enable_x64(True):
        for name, method in methods().items():
            alone = moco_network.outcome(method, 1, steps=2)
            for process in range(2):
                ours = dict(np.load(tmp_path / f"{name} {process}.npz"))
                try:
                    moco_network.assert_same(ours, alone)
                except AssertionError as error:
                    raise AssertionError(f"{name}, process {process}") from error
