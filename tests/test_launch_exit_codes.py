"""What a process of a run tells its launcher by its exit code."""

import subprocess
import sys

import jax
import pytest
from launch_fakes import ROOT, free_port

from jaxcl import mesh

# Calls main with the training replaced, once for each way in which it can end.
MAIN = """
import sys
from absl import flags
from jaxcl import main, train
from jaxcl.checkpoint import CheckpointError, UnreachableError

ends = {
    "complete": lambda *a: {"complete": True},
    "stopped": lambda *a: {"complete": False},
    "setting": lambda *a: raises(ValueError("batch_size=3: expected 4")),
    "run": lambda *a: raises(train.RunError("not finite")),
    "checkpoint": lambda *a: raises(CheckpointError("damaged")),
    "storage": lambda *a: raises(UnreachableError("cannot be read, in 5 attempts")),
    "disk": lambda *a: raises(OSError(5, "Input/output error")),
    "network": lambda *a: raises(TimeoutError("no answer from the images' server")),
    "file": lambda *a: raises(FileNotFoundError("no such data")),
    "bug": lambda *a: raises(KeyError("bug")),
    "peer": lambda *a: raises(ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer")),
}

def raises(error):
    raise error

flags.FLAGS(["main", "--config=configs/quickstart.py", "--stopped_exit_code=143"])
for name, end in ends.items():
    train.train = end
    code = 0
    try:
        main.main(["main"])
    except SystemExit as error:
        code = error.code
    print(name, code, flush=True)
"""

# Two processes, of which one is killed.
PEERS = """
import os, signal, sys
import jax, numpy as np
from jaxcl import mesh

jax.config.update("jax_platforms", "cpu")
number = int(sys.argv[2])
mesh.join(sys.argv[1], 2, number)
try:
    for step in range(1000):
        if number == 1 and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        mesh.agree(False)
except Exception as error:
    mesh.leave(75 if mesh.lost_another(error) else 1)
"""

ALONE = """
from jaxcl import mesh
for coordinator in (None, "localhost"):
    try:
        mesh.join(coordinator, None if coordinator is None else 2, None if coordinator is None else 0)
    except ValueError as error:
        print(error)
"""


def python(code, *words):
    return [sys.executable, "-c", code, *words]


def test_each_end_has_its_code():
    done = subprocess.run(python(MAIN), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    codes = dict(line.split() for line in done.stdout.splitlines())
    assert codes == {
        "complete": "0",
        "stopped": "143",
        "setting": "1",
        "run": "1",
        "checkpoint": "1",
        "storage": "75",
        "disk": "75",
        "network": "75",
        "file": "1",
        "bug": "1",
        "peer": "75",
    }
    assert "jaxcl: batch_size=3: expected 4" in done.stderr
    assert done.stderr.count("When it answers, the same command goes on") == 3
    assert done.stderr.count("Traceback") == 2  # the bug and the lost process


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (jax.errors.JaxRuntimeError("UNAVAILABLE: Task 1 heartbeat timeout"), True),
        (jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out"), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), False),
        (ValueError("batch_size=3: expected 4"), False),
        (KeyError("INTERNAL: "), False),
    ],
)
def test_what_means_that_another_has_failed(error, lost):
    assert mesh.lost_another(error) is lost


def test_who_loses_another_process_leaves_at_once():
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            python(PEERS, address, str(i)),
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        for i in range(2)
    ]
    assert processes[1].wait(timeout=300) == -9
    assert processes[0].wait(timeout=60) == 75  # JAX by itself: an abort after 100 s


def test_joining_nobody_is_named():
    done = subprocess.run(python(ALONE), cwd=ROOT, capture_output=True, text=True, timeout=300)
    nobody, address = done.stdout.splitlines()
    assert "finds no TPU pod, Slurm or Open MPI job around it" in nobody
    assert "coordinator 'localhost': expected host:port of process 0" in address
