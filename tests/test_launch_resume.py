"""The launchers with the real training under the fakes: preempted once, it becomes bit by bit the run that was not."""

import re
import subprocess
import sys

import pytest
from launch_fakes import ROOT, Cloud, free_port, wait_for

from jaxcl import checkpoint

STEPS, EVERY = 150, 50
PROCESSES = 2


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    overrides = {
        "steps": STEPS,
        "batch_size": 16,
        "model.width": 0.0625,
        "method.projection.layers": "(16,8)",
        "optim.warmup_steps": 1,
        "evaluation.every": 0,
        "evaluation.test": "",
        "evaluation.gallery": "",
        "run.log_every": 50,
        "run.checkpoint_every": EVERY,
        "run.report": False,
        "views.ops.crop.size": 8,
        "data.crop": "host",
        "data.workers": 1,
        "mesh.platform": "cpu",
        "mesh.cpu_devices": 1,
        "mesh.compile_cache": tmp_path_factory.mktemp("xla"),
    }
    return [f"--config.{key}={value}" for key, value in overrides.items()]


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    """The digests of the last checkpoint of a run without interruption."""
    root = tmp_path_factory.mktemp("whole")
    words = ["--config=configs/quickstart.py", f"--workdir={root}", *flags]
    command = [
        sys.executable,
        "launch/local.py",
        f"--processes={PROCESSES}",
        "--devices=1",
        "--",
        *words,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return checkpoint.read_manifest(root, STEPS).leaves


def make(tmp_path, preempt):
    saved = str(tmp_path / "runs" / "*" / "checkpoints" / str(EVERY) / "manifest.json")
    cloud = Cloud(tmp_path, workers=PROCESSES, preempt=preempt, saved=saved, port=free_port())
    cloud.install_gcloud()
    cloud.install_kubectl()
    cloud.install_slurm()
    return cloud


def launch(cloud, program, flags, *more):
    return cloud.launch(
        program,
        "--config=configs/quickstart.py",
        f"--workdir={cloud.workdir}",
        f"--python={sys.executable}",
        *more,
        "--",
        *flags,
        seconds=900,
    )


def check(cloud, output, whole):
    resumed = re.findall(rf"continues after step (\d+) of {STEPS}", output)
    assert resumed, output
    assert {EVERY <= int(step) < STEPS for step in resumed} == {True}
    assert checkpoint.read_manifest(cloud.workdir, STEPS).leaves == whole


@pytest.mark.slow
def test_a_tpu_pod(flags, whole, tmp_path):
    cloud = make(tmp_path, preempt=True)
    pod = ["--name=pod", "--zone=us-west4-a", "--type=v5litepod-8", "--setup=true", "--poll=0.2"]
    done = launch(cloud, "tpu_pod", flags, *pod)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(cloud.calls("gcloud", "compute", "tpus", "queued-resources", "create")) == 2
    check(cloud, done.stdout, whole)


@pytest.mark.slow
def test_gke(flags, whole, tmp_path):
    cloud = make(tmp_path, preempt=True)
    jobset = ["--name=run", "--topology=v5e:2x4", "--image=registry/jaxcl", "--poll=0.2"]
    done = launch(cloud, "gke", flags, *jobset)
    log = (cloud.state / "log").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log
    assert "restart 1 of 100" in done.stdout
    check(cloud, log, whole)


@pytest.mark.slow
@pytest.mark.parametrize("preempt", ["limit", "preemption"])
def test_slurm(flags, whole, tmp_path, preempt):
    """After a time limit the job queues itself again; after a preemption Slurm does."""
    cloud = make(tmp_path, preempt=preempt)
    done = launch(cloud, "slurm", flags, f"--nodes={PROCESSES}", "--gpus_per_node=1")
    assert done.returncode == 0, done.stderr
    wait_for((cloud.state / "ended").exists, "the end of the job", seconds=900)
    log = (cloud.state / "log").read_text()
    assert (cloud.state / "ended").read_text() == "0", log
    assert cloud.calls("scontrol") == [["scontrol", "requeue", "4711"]] * (preempt == "limit")
    assert "SIGTERM: the run saves and stops" in log
    check(cloud, log, whole)
