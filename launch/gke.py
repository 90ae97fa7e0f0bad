"""Trains on TPUs of a GKE cluster, as a JobSet: one job of as many pods as the slice has hosts, restarted as a whole.

    python launch/gke.py --name=simclr --topology=v5e:4x8 --spot --image=REGION-docker.pkg.dev/PROJECT/REPO/jaxcl \\
        --config=configs/simclr_tpu.py --workdir=gs://BUCKET/simclr [-- --config.key=value ...]

The cluster restarts the run by itself after a preemption, a failed node or a crash, on the same workdir, where it goes on from the
newest checkpoint; an error that would come again fails it at once. This program creates the JobSet, shows what becomes of it, and
may be left: the same command finds it again. `--dry_run` prints the manifest, which `kubectl create -f -` takes. See
launch/README.md.
"""

import argparse
import hashlib
import json
import pathlib
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from launch import calls, tpu
from launch.calls import LaunchError

LABEL = "jaxcl-workdir"
"""Label of the JobSets that this program creates; its value is a digest of the workdir."""

JOBSETS = "jobsets.jobset.x-k8s.io"
SLICE = "slice"
CONTAINER = "jaxcl"
DATA = "/data"
LONGEST_PAUSE = 60.0

# What kubectl says -> what is wrong. The first that fits is told.
ERRORS: tuple[tuple[str, str], ...] = (
    (
        r"gke-gcloud-auth-plugin",
        "kubectl cannot log in to GKE: run `gcloud components install gke-gcloud-auth-plugin`",
    ),
    (
        r"Unauthorized|provide credentials|auth login|[Rr]eauthentication",
        "the login has expired: run `gcloud auth login`",
    ),
    (
        r"current-context|no configuration|[Cc]onnection refused|[Uu]nable to connect|no such host|does not exist.*context",
        "no cluster is reached: run `gcloud container clusters get-credentials CLUSTER --location=LOCATION`, or give --context",
    ),
    (
        r"namespaces? .*not found",
        "there is no such namespace: `kubectl create namespace NAME`, or another --namespace",
    ),
    (
        r"exceeded quota",
        "the namespace's quota is too small for this slice: a smaller --topology, or ask its administrator",
    ),
    (
        r"[Ff]orbidden",
        "the account may not do this: it needs the role Kubernetes Engine Developer (roles/container.developer)",
    ),
)
UNREACHED = r"gave no answer|timeout|timed out|[Cc]onnection (refused|reset)|EOF|ServiceUnavailable|InternalError"


def named(doing: str, answer: calls.Answer) -> LaunchError:
    """An error of kubectl, in words that say what to do."""
    said = answer.err.strip() or f"exit code {answer.code}"
    for pattern, meaning in ERRORS:
        if re.search(pattern, said):
            return LaunchError(f"{doing}: {meaning}.\nkubectl said: {said[-1500:]}")
    return LaunchError(f"{doing}: kubectl said: {said[-1500:]}")


def digest(workdir: str) -> str:
    """The value of the label."""
    return hashlib.sha256(workdir.encode()).hexdigest()[:32]


def manifest(args: argparse.Namespace, command: Sequence[str]) -> dict[str, Any]:
    """The JobSet (jobset.x-k8s.io/v1alpha2).

    Raises:
      LaunchError: the topology does not divide over its hosts.
    """
    kind, shape, chips = tpu.of_topology(args.topology)
    per_host = min(chips, args.chips_per_host)
    if chips % per_host:
        raise LaunchError(
            f"--topology={args.topology} has {chips} chips, which --chips_per_host={per_host} does not divide"
        )
    hosts = chips // per_host
    selector = {
        "cloud.google.com/gke-tpu-accelerator": kind.node,
        "cloud.google.com/gke-tpu-topology": shape,
    }
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": args.image,
        # Kubernetes replaces $(NAME) in a command; $$(NAME) it leaves as $(NAME).
        "command": [word.replace("$(", "$$(") for word in command],
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
        "ports": [{"containerPort": 8471}, {"containerPort": 8482}],  # TPU runtime, JAX
        "resources": {"limits": {"google.com/tpu": per_host}},
    }
    for pair in args.env:
        name, _, value = pair.partition("=")
        container["env"].append({"name": name, "value": value.replace("$(", "$$(")})
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 120,
        "nodeSelector": selector,
        "containers": [container],
    }
    template: dict[str, Any] = {"spec": pod}
    if args.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    if args.service_account:
        pod["serviceAccountName"] = args.service_account
    if args.data_bucket:
        bucket, _, _ = args.data_bucket.partition("/")
        template["metadata"] = {"annotations": {"gke-gcsfuse/volumes": "true"}}
        container["volumeMounts"] = [{"name": "data", "mountPath": DATA, "readOnly": True}]
        attributes = {"bucketName": bucket, "mountOptions": "implicit-dirs"}
        csi = {
            "driver": "gcsfuse.csi.storage.gke.io",
            "readOnly": True,
            "volumeAttributes": attributes,
        }
        pod["volumes"] = [{"name": "data", "csi": csi}]
    final = {"containerName": CONTAINER, "operator": "In", "values": list(calls.FINAL)}
    job = {
        "completionMode": "Indexed",
        "completions": hosts,
        "parallelism": hosts,
        "backoffLimit": 0,  # the hosts of a slice start together or not at all
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": final}]},
        "template": template,
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": args.name,
            "namespace": args.namespace,
            "labels": {LABEL: digest(args.workdir)},
            # All pods of the job on one node pool, which is one slice.
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": args.max_restarts,
                # The old pods are gone before new ones write to the workdir.
                "restartStrategy": "BlockingRecreate",
                "rules": [
                    {
                        "name": "errorThatWouldComeAgain",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "ttlSecondsAfterFinished": 86400,
            "replicatedJobs": [{"name": SLICE, "replicas": 1, "template": {"spec": job}}],
        },
    }


def yaml(value: Any, indent: str = "") -> Iterator[str]:
    """Lines of YAML: dictionaries and lists in blocks, everything else as JSON, which is YAML too."""

    def scalar(x: Any) -> bool:
        return not x or not isinstance(x, dict | list)

    if isinstance(value, dict):
        for key, x in value.items():
            if scalar(x):
                yield f"{indent}{key}: {json.dumps(x, ensure_ascii=False)}"
            else:
                yield f"{indent}{key}:"
                yield from yaml(x, indent + "  ")
    else:
        for x in value:
            if scalar(x):
                yield f"{indent}- {json.dumps(x, ensure_ascii=False)}"
            else:
                first, *others = yaml(x, indent + "  ")
                yield f"{indent}- {first.strip()}"
                yield from others


class Launch:
    """One JobSet, from its creation to its end."""

    def __init__(self, args: argparse.Namespace, jobset: dict[str, Any]) -> None:
        self.args = args
        self.jobset = jobset
        self.shown = ""

    def say(self, text: str) -> None:
        """A line with the time of day; the same one only once."""
        if text != self.shown:
            print(f"{time.strftime('%H:%M:%S')} {self.args.name}: {text}", flush=True)
            self.shown = text

    def kubectl(self, *words: str) -> list[str]:
        """A command of kubectl in the right cluster and namespace."""
        context = [f"--context={self.args.context}"] if self.args.context else []
        return ["kubectl", *context, f"--namespace={self.args.namespace}", *words]

    def create_command(self) -> list[str]:
        """Takes the manifest from standard input."""
        return self.kubectl("create", "-f", "-")

    def delete_command(self) -> list[str]:
        """Deletes the JobSet with its pods."""
        return self.kubectl("delete", JOBSETS, self.args.name, "--wait=true")

    def log_command(self, *flags: str) -> list[str]:
        """Prints what the pods have printed."""
        which = f"--selector=jobset.sigs.k8s.io/jobset-name={self.args.name}"
        if "--follow" in flags:  # the first process speaks for all
            which += ",batch.kubernetes.io/job-completion-index=0"
        return self.kubectl("logs", which, f"--container={CONTAINER}", "--prefix", *flags)

    def ask(self, doing: str, *words: str) -> dict[str, Any] | None:
        """A `kubectl get`, repeated while the cluster is not reached; None if there is no such thing."""
        pace = calls.Pace(self.args.poll, LONGEST_PAUSE, 1800, "an answer of the cluster")
        asked_before = self.shown != ""
        while True:
            answer = calls.call(self.kubectl("get", *words, "--output=json"), seconds=120)
            if answer.code == 0:
                found: dict[str, Any] = json.loads(answer.out)
                return found
            if "NotFound" in answer.err:
                return None
            if not asked_before or not re.search(UNREACHED, answer.err):
                raise named(doing, answer)
            self.say("the cluster is not reached, is asked again")
            pace.wait()

    def look(self) -> dict[str, Any] | None:
        """The JobSet; None if there is none.

        Raises:
          LaunchError: there is one that is another's.
        """
        found = self.ask("looking at the JobSet", JOBSETS, self.args.name)
        wanted = self.jobset["metadata"]["labels"][LABEL]
        if found is not None and found["metadata"].get("labels", {}).get(LABEL) != wanted:
            raise LaunchError(
                f"there is a JobSet {self.args.name} in the namespace {self.args.namespace} that this program has not created"
                f" for --workdir={self.args.workdir}: it is left alone. Choose another --name"
            )
        return found

    def start(self) -> None:
        """Creates the JobSet, or finds the one that the same command has created earlier."""
        if self.ask("looking for JobSet", "crd", JOBSETS) is None:
            raise LaunchError(
                "JobSet is not installed in this cluster: install a release of it, 0.9 or later, as"
                " https://jobset.sigs.k8s.io/docs/installation/ says"
            )
        found = self.look()
        if found is not None and found.get("status", {}).get("terminalState") == "Failed":
            self.say("the JobSet of the last time has failed: it is replaced")
            self.delete()
            found = None
        if found is None:
            answer = calls.call(self.create_command(), stdin="\n".join(yaml(self.jobset)) + "\n")
            if answer.code:
                raise named("creating the JobSet", answer)
            self.say("created")
        else:
            self.say("found the JobSet of an earlier call")

    def delete(self) -> None:
        """Deletes the JobSet, which this program has created."""
        answer = calls.call(self.delete_command(), seconds=900)
        if answer.code and "NotFound" not in answer.err:
            raise named("deleting the JobSet", answer)

    def waits_for(self) -> str:
        """Why a pod is not placed on a node, "" if all are."""
        found = self.ask(
            "looking at the pods",
            "pods",
            f"--selector=jobset.sigs.k8s.io/jobset-name={self.args.name}",
        )
        for pod in (found or {}).get("items", []):
            for condition in pod.get("status", {}).get("conditions", []):
                if condition["type"] == "PodScheduled" and condition["status"] == "False":
                    return str(condition.get("message", "not scheduled"))
        return ""

    def follow(self) -> None:
        """Until the run is complete.

        Raises:
          LaunchError: it has failed, or was deleted, or finds no room.
        """
        restarts = 0
        room = calls.Pace(
            self.args.poll, LONGEST_PAUSE, 3600 * self.args.max_wait_hours, "a place for the pods"
        )
        while True:
            found = self.look()
            if found is None:
                raise LaunchError(
                    "the JobSet was deleted by somebody else; the same command creates it again"
                )
            status = found.get("status", {})
            if status.get("restarts", 0) > restarts:
                self.say(
                    f"restart {status['restarts']} of {self.args.max_restarts}: goes on from the newest checkpoint in"
                    f" {self.args.workdir}"
                )
            restarts = status.get("restarts", 0)
            if status.get("terminalState") == "Completed":
                self.say("the run is complete")
                return
            if status.get("terminalState") == "Failed":
                print(calls.call(self.log_command("--tail=15")).out, file=sys.stderr)
                said = "; ".join(
                    f"{c.get('reason')}: {c.get('message')}"
                    for c in status.get("conditions", [])
                    if c["type"] == "Failed"
                )
                raise LaunchError(f"the run has failed, see above ({said})")
            missing = self.waits_for()
            if missing:
                self.say(f"waits for nodes: {missing}")
                try:
                    room.wait()
                except LaunchError as error:
                    raise LaunchError(
                        f"{error}. Is there a node pool with this topology, or does the cluster make one, and is there quota"
                        f" for it? The cluster says: {missing}"
                    ) from None
            else:
                room = calls.Pace(room.pause, room.longest, room.limit, room.what)
                time.sleep(min(2 * self.args.poll, LONGEST_PAUSE))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--name", required=True, help="of the JobSet")
    add("--topology", required=True, help="such as v5e:4x8, v4:2x2x4, v5p:2x2x2, v6e:4x4")
    add("--image", required=True, help="of launch/Dockerfile, where the cluster can pull it")
    add("--config", required=True, help="a config file in the image")
    add(
        "--workdir",
        required=True,
        help="gs://BUCKET/DIR: outlives the pods, and must be the same each time",
    )
    add(
        "--data_bucket",
        default="",
        help=f"BUCKET[/DIR], mounted read-only: --config.data.path is then {DATA}[/DIR]",
    )
    add("--context", default="", help="of kubectl (default: its current one)")
    add("--namespace", default="default", help="of the cluster")
    add("--service_account", default="", help="of Kubernetes, which may use the buckets")
    add("--spot", action="store_true", help="spot nodes: cheaper, may be preempted at any time")
    add("--chips_per_host", type=int, default=4, help="of the node pool's machines")
    add("--python", default="python", help="Python in the image")
    add(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="for the run; may be repeated",
    )
    add("--max_restarts", type=int, default=100, help="after preemptions and crashes")
    add("--max_wait_hours", type=float, default=72.0, help="for nodes, each time")
    add("--poll", type=float, default=15.0, help="seconds between looks at the JobSet")
    add("--detach", action="store_true", help="leave once it is created")
    add("--delete", action="store_true", help="delete the JobSet after an error or Ctrl-C")
    add("--dry_run", action="store_true", help="print the manifest and the commands, and stop")
    add("rest", nargs="*", help="after --: more flags of jaxcl.main")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    args = parse(argv)
    launch = None
    started = False
    try:
        calls.check_name(args.name)
        calls.check_config(args.config)
        calls.check_workdir(args.workdir, "a pod's own disk is gone with it")
        calls.check_env(args.env)
        if args.chips_per_host < 1 or args.max_restarts < 0:
            raise LaunchError("--chips_per_host: expected 1 or more; --max_restarts: 0 or more")
        rest = list(args.rest)
        if args.data_bucket:
            rest.insert(
                0, f"--config.data.path={DATA}/{args.data_bucket.partition('/')[2]}".rstrip("/")
            )
        launch = Launch(
            args, manifest(args, calls.training(args.python, args.config, args.workdir, rest))
        )
        if args.dry_run:
            print("\n".join(yaml(launch.jobset)))
            print(f"# create it:   {shlex.join(launch.create_command())}   (takes the above)")
            print(f"# what it says: {shlex.join(launch.log_command('--follow'))}")
            print(f"# delete it:   {shlex.join(launch.delete_command())}")
            return 0
        calls.require(
            "kubectl", "install it with `gcloud components install kubectl gke-gcloud-auth-plugin`"
        )
        launch.say(tpu.cost(tpu.of_topology(args.topology)[2], "the price of a chip-hour"))
        launch.start()
        started = True
        print(f"what it prints:\n  {shlex.join(launch.log_command('--follow'))}", flush=True)
        if not args.detach:
            launch.follow()
        return 0
    except LaunchError as error:
        print(f"gke: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("\ngke: leaves; the JobSet goes on. The same command finds it again", file=sys.stderr)
        code = 130
    if launch is not None and started:
        if args.delete:
            try:
                launch.delete()
            except LaunchError as error:
                print(f"gke: {error}", file=sys.stderr)
        else:
            print(
                f"gke: the JobSet is still there. To delete it:\n  {shlex.join(launch.delete_command())}",
                file=sys.stderr,
            )
    return code


if __name__ == "__main__":
    sys.exit(main())
