"""launch/slurm.py and launch/slurm.sbatch against a fake Slurm: a time limit, a preemption, scancel, and every refusal."""

import shlex

import pytest
from launch_fakes import ROOT, Cloud, wait_for

from jaxcl.plan.chips import GPU_FRACTION


@pytest.fixture
def make(tmp_path):
    def make(**settings):
        cloud = Cloud(tmp_path, **settings)
        cloud.install_slurm()
        return cloud

    return make


def launch(cloud, *flags, **named):
    return cloud.launch(
        "slurm",
        "--nodes=2",
        "--gpus_per_node=1",
        "--config=configs/quickstart.py",
        f"--workdir={cloud.workdir}",
        f"--python={cloud.python}",
        *flags,
        **named,
    )


def run(cloud, *flags):
    """The job's output, its exit code and what was printed by the launcher, when the job is no more."""
    done = launch(cloud, *flags)
    assert done.returncode == 0, done.stderr
    wait_for((cloud.state / "ended").exists, "the end of the job", seconds=300)
    return (cloud.state / "log").read_text(), int((cloud.state / "ended").read_text()), done.stdout


def test_before_the_time_limit_it_saves_and_is_queued_again(make):
    cloud = make(workers=2, preempt="limit")
    log, code, said = run(cloud, "--", "--config.name=it's $HOME; done")
    assert code == 0, log
    assert "the time limit is near" in log
    assert log.count("saved, stops") == 2
    assert log.count("continues after step 2") == 2
    assert "the run is complete" in log
    assert cloud.calls("scontrol") == [["scontrol", "requeue", "4711"]]
    assert cloud.calls("scancel") == [["scancel", "--signal=TERM", "4711"]]
    words = [f"--config={ROOT}/configs/quickstart.py", f"--workdir={cloud.workdir}", "--multihost"]
    expected = " ".join(
        ["-m jaxcl.main", *words, "--stopped_exit_code=143", "--config.name=it's $HOME; done"]
    )
    assert cloud.commands() == [expected] * 4
    assert "job 4711: 2 GPUs, each hour costs 2 GPU-hours" in said
    assert "tail -F slurm-jaxcl-4711.out" in said
    submitted = cloud.calls("sbatch")
    assert len(submitted) == 1
    assert {"--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--signal=B:USR1@300"} <= set(
        submitted[0]
    )


def test_a_preempted_job_goes_on(make):
    cloud = make(workers=2, preempt="preemption")
    log, code, _ = run(cloud)
    assert code == 0, log
    assert log.count("saved, stops") == 2
    assert log.count("continues after step 2") == 2
    assert not cloud.calls("scontrol")  # Slurm queues it again by itself
    assert not cloud.calls("scancel")  # a second TERM would stop it without saving


def test_scancel_saves_and_ends(make):
    cloud = make(workers=2, preempt="scancel")
    log, code, _ = run(cloud)
    assert code == 143
    assert log.count("saved, stops") == 2
    assert not cloud.calls("scontrol")


def test_an_error_that_would_come_again_is_not_queued_again(make):
    cloud = make(workers=2)
    (cloud.workdir / "codes").write_text("1\n1\n")
    log, code, _ = run(cloud)
    assert code == 1
    assert "exit code 1, an error that would come again" in log
    assert not cloud.calls("scontrol")


@pytest.mark.parametrize(("flags", "cores"), [(["--cpus_per_task=6"], "6"), ([], None)])
def test_cores_reach_the_processes(make, monkeypatch, flags, cores):
    for name in ("SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    cloud = make(workers=2)
    (cloud.workdir / "codes").write_text("0\n0\n")
    log, code, _ = run(cloud, *flags)
    assert code == 0, log
    assert cloud.srun_environment().get("SRUN_CPUS_PER_TASK") == cores


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"XLA_CLIENT_MEM_FRACTION": f"{GPU_FRACTION:g}"}),
        ({"XLA_CLIENT_MEM_FRACTION": ".5"}, {"XLA_CLIENT_MEM_FRACTION": ".5"}),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": ".5"}, {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".5"}),
    ],
)
def test_memory_of_a_gpu_is_what_plans_count_on(make, monkeypatch, given, expected):
    """Unless the user says otherwise; and never by both names, which JAX refuses."""
    names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    cloud = make(workers=2)
    (cloud.workdir / "codes").write_text("0\n0\n")
    log, code, _ = run(cloud)
    assert code == 0, log
    seen = cloud.srun_environment()
    assert {name: seen[name] for name in names if name in seen} == expected


def test_restarts_end(make):
    cloud = make(workers=2, preempt="limit")
    log, code, _ = run(cloud, "--max_restarts=0")
    assert code == 143
    assert "JAXCL_MAX_RESTARTS allows more" in log
    assert not cloud.calls("scontrol")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("sbatch: error: invalid partition specified: gpus", "sinfo --summarize"),
        (
            "sbatch: error: Invalid account or account/partition combination specified",
            "sacctmgr show associations",
        ),
        (
            "sbatch: error: Requested time limit is invalid (missing or exceeds some limit)",
            "longer than the partition",
        ),
        ("sbatch: error: Requested node configuration is not available", "no nodes like that"),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit", "may have at once"),
        (
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller",
            "controller of Slurm",
        ),
        ("sbatch: error: something else", "sbatch said: sbatch: error: something else"),
    ],
)
def test_what_slurm_refuses_is_named(make, said, expected):
    done = launch(make(fail={"sbatch": [said]}))
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--nodes=0", "--nodes=0: expected 1 or more"),
        ("--save_seconds=5", "expected 60 or more"),
        ("--time=tomorrow", "expected MINUTES"),
        ("--workdir=runs/x", "each node has its own disk"),
        ("--config=configs/none.py", "is not a file"),
    ],
)
def test_bad_flags_are_named(make, flag, expected):
    cloud = make()
    done = launch(cloud, flag)
    assert done.returncode == 1
    assert expected in done.stderr
    assert not cloud.calls()


def test_sbatch_is_missing(make, tmp_path):
    done = launch(make(), path=str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert "sbatch was not found on PATH" in done.stderr


def test_dry_run_prints_the_command(make):
    cloud = make()
    done = launch(
        cloud,
        "--dry_run",
        "--gpus_per_node=8",
        "--partition=gpu",
        "--sbatch_arg=--qos=low",
        "--time=1-12:00:00",
    )
    assert done.returncode == 0, done.stderr
    assert not cloud.calls()
    note, command = done.stdout.splitlines()
    assert note == "# 16 GPUs: each hour costs 16 GPU-hours"
    words = shlex.split(command)
    assert words[0] == "sbatch"
    assert {"--partition=gpu", "--qos=low", "--time=1-12:00:00", "--ntasks-per-node=8"} <= set(
        words
    )
    assert words.index(str(ROOT / "launch/slurm.sbatch")) < words.index(str(cloud.python))
