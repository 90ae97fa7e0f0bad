"""launch/gke.py: the manifest against the schema of the API, and the launch against a fake cluster that preempts once."""

import copy
import json
import re

import pytest
import yaml
from launch_fakes import ROOT, Cloud

SCHEMA = json.loads((ROOT / "tests/jobset.schema.json").read_text())
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}


def violations(value, schema, where="$"):
    """What of JSON Schema's rules a value breaks; the rules that our schema uses, by hand."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    if "enum" in schema:
        return (
            [] if value in schema["enum"] else [f"{where}: {value!r} is none of {schema['enum']}"]
        )
    kind = TYPES[schema["type"]]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        return [f"{where}: {value!r} is no {schema['type']}"]
    found = []
    if kind is dict:
        found += [
            f"{where}: {key} is missing" for key in schema.get("required", []) if key not in value
        ]
        others = schema.get("additionalProperties", True)
        for key, x in value.items():
            known = schema.get("properties", {}).get(key)
            if known is None and others is False:
                found.append(f"{where}: there is no field {key}")
            elif known or isinstance(others, dict):
                found += violations(x, known or others, f"{where}.{key}")
    elif kind is list:
        if len(value) < schema.get("minItems", 0):
            found.append(f"{where}: too few")
        for i, x in enumerate(value):
            found += violations(x, schema.get("items", {"enum": [x]}), f"{where}[{i}]")
    elif kind is str and not re.search(schema.get("pattern", ""), value):
        found.append(f"{where}: {value!r} does not match {schema['pattern']}")
    elif kind is int and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        found.append(f"{where}: {value} is out of range")
    return found


@pytest.fixture
def make(tmp_path):
    """Makes the fake; its pods end with the test."""

    def make(**settings):
        cloud = Cloud(tmp_path, **settings)
        cloud.install_kubectl()
        return cloud

    yield make
    (tmp_path / "cloud" / "jobset.json").unlink(missing_ok=True)


def launch(cloud, *flags, **named):
    return cloud.launch(
        "gke",
        "--name=run",
        "--topology=v5e:2x4",
        "--image=registry/jaxcl",
        "--config=configs/quickstart.py",
        f"--workdir={cloud.workdir}",
        f"--python={cloud.python}",
        "--poll=0.2",
        *flags,
        **named,
    )


def manifest(cloud, *flags):
    done = launch(cloud, "--dry_run", *flags)
    assert done.returncode == 0, done.stderr
    assert not cloud.calls()
    return yaml.safe_load(done.stdout)


def test_the_manifest_is_a_jobset(make):
    cloud = make()
    found = manifest(
        cloud,
        "--topology=v5e:4x8",
        "--spot",
        "--data_bucket=images/tfds",
        "--service_account=trainer",
        '--env=TEXT=yes: "no" # $(HOME) \U0001f600',
        "--",
        "--config.name=a: b",
    )
    assert violations(found, SCHEMA) == []
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    assert (job["completions"], job["parallelism"], job["backoffLimit"]) == (8, 8, 0)
    assert job["completionMode"] == "Indexed"
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8",
        "cloud.google.com/gke-spot": "true",
    }
    assert {"name": "TEXT", "value": 'yes: "no" # $$(HOME) \U0001f600'} in container["env"]
    assert container["command"][-2:] == ["--config.data.path=/data/tfds", "--config.name=a: b"]
    assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "images"
    # The run's exit codes and the policies fit together: errors that would come again fail it, all else restarts it.
    codes = job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    assert 1 in codes
    assert not {75, 134, 137, 143} & set(codes)
    assert "--stopped_exit_code=143" in container["command"]


def test_the_schema_sees_mistakes(make):
    good = manifest(make())
    assert violations(good, SCHEMA) == []

    def broken(change):
        bad = copy.deepcopy(good)
        change(bad)
        return violations(bad, SCHEMA)

    assert broken(lambda x: x["spec"].update(maxRestarts=3)) == [
        "$.spec: there is no field maxRestarts"
    ]
    assert broken(lambda x: x["spec"].pop("replicatedJobs"))
    assert broken(lambda x: x["spec"]["failurePolicy"]["rules"][0].update(name="with-hyphen"))
    assert broken(lambda x: x["spec"]["failurePolicy"].update(maxRestarts="3"))
    assert broken(lambda x: x["metadata"]["labels"].update(owner="a b"))


@pytest.mark.parametrize(
    ("topology", "flags", "hosts", "chips"),
    [
        ("v5e:1x1", [], 1, 1),
        ("v5e:2x4", ["--chips_per_host=8"], 1, 8),
        ("v4:2x2x4", [], 4, 4),
        ("v6e:16x16", [], 64, 4),
    ],
)
def test_topologies(make, topology, flags, hosts, chips):
    job = manifest(make(), f"--topology={topology}", *flags)["spec"]["replicatedJobs"][0][
        "template"
    ]["spec"]
    limits = job["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (job["completions"], limits) == (hosts, {"google.com/tpu": chips})


def test_a_preempted_run_is_restarted_and_goes_on(make):
    cloud = make(workers=2, preempt=True, no_room=2)
    done = launch(cloud)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "waits for nodes: 0/3 nodes are available" in done.stdout
    assert "restart 1 of 100" in done.stdout
    assert "the run is complete" in done.stdout
    assert len(cloud.commands()) == 4
    assert len(set(cloud.commands())) == 1
    assert (cloud.state / "log").read_text().count("continues after step 2") == 2
    again = launch(cloud)
    assert again.returncode == 0
    assert "found the JobSet of an earlier call" in again.stdout
    assert len(cloud.calls("kubectl", "--namespace=default", "create")) == 1


def test_an_error_that_would_come_again_fails_at_once(make):
    cloud = make()
    (cloud.workdir / "codes").write_text("1\n" * 9)
    done = launch(cloud, "--topology=v5e:1x1")
    assert done.returncode == 1
    assert len(cloud.commands()) == 1
    assert "PodFailurePolicy: exit codes [1]" in done.stderr
    assert "ends with 1" in done.stderr  # the end of the log
    assert "delete jobsets.jobset.x-k8s.io run" in done.stderr
    # The same command, when the reason is gone.
    (cloud.workdir / "codes").unlink()
    (cloud.workdir / "saved-0").write_text("4")
    again = launch(cloud, "--topology=v5e:1x1")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "has failed: it is replaced" in again.stdout


def test_a_jobset_of_somebody_else_is_left_alone(make):
    cloud = make()
    (cloud.state / "jobset.json").write_text('{"metadata": {"name": "run"}, "spec": {}}')
    done = launch(cloud, "--delete")
    assert done.returncode == 1
    assert "left alone" in done.stderr
    assert (cloud.state / "jobset.json").exists()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"jobset_installed": False}, "JobSet is not installed"),
        ({"fail": {"get crd": ["error: current-context is not set"]}}, "get-credentials"),
        (
            {"fail": {"get crd": ["exec: executable gke-gcloud-auth-plugin not found"]}},
            "components install",
        ),
        (
            {"fail": {"create -f": ["pods is forbidden: exceeded quota: tpus"]}},
            "quota is too small",
        ),
        (
            {"fail": {"create -f": ["jobsets is forbidden: User cannot create"]}},
            "roles/container.developer",
        ),
        ({"fail": {"create -f": ['namespaces "x" not found']}}, "no such namespace"),
    ],
    ids=["jobset", "context", "plugin", "quota", "role", "namespace"],
)
def test_what_kubectl_refuses_is_named(make, settings, expected):
    done = launch(make(**settings))
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_no_room_is_named(make):
    done = launch(make(no_room=10**6, preempt=False), "--max_wait_hours=0", "--delete")
    assert done.returncode == 1
    assert "a place for the pods: not within" in done.stderr
    assert "0/3 nodes are available" in done.stderr


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--topology=v5e:2x2x2", "expected one of v4:AxBxC, v5e:AxB"),
        ("--topology=h100:8", "expected one of v4:AxBxC"),
        ("--topology=v5e:0x4", "expected one of"),
        ("--topology=v5e:2x5", "does not divide"),
        ("--workdir=runs/x", "expected gs://BUCKET/DIR"),
        ("--chips_per_host=0", "expected 1 or more"),
    ],
)
def test_bad_flags_are_named(make, flag, expected):
    cloud = make()
    done = launch(cloud, flag)
    assert done.returncode == 1
    assert expected in done.stderr
    assert not cloud.calls()
