"""Two processes over loopback are the same run as one."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxcl import checkpoint, metrics

DEVICES = 8
ROOT = pathlib.Path(__file__).parents[1]
BASE = {
    "batch_size": 16,
    "model.width": 0.0625,
    "method.projection.layers": (16, 8),
    "views.ops.crop.size": 8,
    "run.log_every": 1,
    "run.report": False,
}
WITHOUT_EVALUATION = {"evaluation.every": 0, "evaluation.test": "", "evaluation.gallery": ""}
WITH_EVALUATION = {
    "evaluation.every": 1,
    "evaluation.ks": (1,),
    "evaluation.linear": False,
    "evaluation.baselines": False,
}
ONE_FLOAT32_STEP = (
    BASE
    | WITH_EVALUATION
    | {
        "steps": 1,
        "optim.name": "sgd",  # after one step its momentum is the gradient
        "optim.momentum": 0.9,
        "optim.weight_decay": 0.0,
        "optim.warmup_steps": 0,
    }
)
TWENTY_FLOAT64_STEPS = (
    BASE
    | WITHOUT_EVALUATION
    | {
        "steps": 20,
        "optim.warmup_steps": 2,
        "optim.eps": 1e-4,  # with Adam's 1e-8 a gradient that is zero but for rounding becomes an update
        "model.dtype": "float64",
        "mesh.x64": True,
    }
)


def run(settings, root, cache, processes):
    flags = [
        "--config=configs/quickstart.py",
        f"--workdir={root}",
        f"--config.mesh.compile_cache={cache}",
    ]
    flags += [f"--config.{k}={v}" for k, v in settings.items()]
    if processes == 1:
        command = [
            sys.executable,
            "-m",
            "jaxcl.main",
            *flags,
            f"--config.mesh.cpu_devices={DEVICES}",
        ]
    else:
        command = [
            sys.executable,
            "launch/local.py",
            f"--processes={processes}",
            f"--devices={DEVICES // processes}",
            "--",
            *flags,
        ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    if processes > 1:
        assert f"{DEVICES} devices (cpu) in {processes} processes" in done.stdout
    return [row["loss"] for row in metrics.read_metrics(root) if "loss" in row]


def floats(root, part):
    """The floating-point leaves of a part of the last checkpoint, as one vector."""
    with jax.enable_x64(True):
        tree, _ = checkpoint.restore_part(root, {part: None})
        leaves = [np.ravel(x) for x in jax.tree.leaves(tree[part])]
    return np.concatenate([x for x in leaves if np.issubdtype(x.dtype, np.floating)])


@pytest.mark.parametrize(
    ("settings", "loss_tolerance", "parts", "tolerance"),
    [
        (ONE_FLOAT32_STEP, 1e-6, ("opt_state", "batch_stats"), 1e-5),
        pytest.param(
            TWENTY_FLOAT64_STEPS,
            1e-10,
            ("params", "batch_stats"),
            1e-10,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["one float32 step", "twenty float64 steps"],
)
def test_two_processes_equal_one(settings, loss_tolerance, parts, tolerance, tmp_path):
    cache = tmp_path / "xla"
    one = run(settings, tmp_path / "one", cache, 1)
    two = run(settings, tmp_path / "two", cache, 2)
    assert len(one) == settings["steps"]
    np.testing.assert_allclose(two, one, rtol=loss_tolerance)
    for part in parts:
        ours, theirs = floats(tmp_path / "one", part), floats(tmp_path / "two", part)
        assert np.linalg.norm(ours) > 0
        assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(ours)
    rows = [
        json.loads((tmp_path / run / "results.json").read_text())["rows"] for run in ("one", "two")
    ]
    assert bool(rows[0]) == bool(settings["evaluation.every"])
    for ours, theirs in zip(*rows, strict=True):
        # Rounding may turn a tie; rows that lost their labels would be at chance.
        assert abs(ours["accuracy"] - theirs["accuracy"]) <= 0.01


def test_dry_run_prints_the_commands():
    done = subprocess.run(
        [sys.executable, "launch/local.py", "--dry_run", "--processes=2", "--", "--config=x.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert "--process=1" in lines[1]
    assert "--config=x.py" in lines[0]


def test_a_process_that_fails_ends_the_others():
    done = subprocess.run(
        [
            sys.executable,
            "launch/local.py",
            "--",
            "--config=configs/quickstart.py",
            "--config.batch_size=-1",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert "ended with exit code 1" in done.stderr
    assert "batch_size=-1: expected 1 or more" in done.stderr
