"""Trains on a Cloud TPU pod: asks for it, starts the run on all its machines, and asks for another one when it is preempted.

    python launch/tpu_pod.py --name=simclr --zone=us-west4-a --type=v5litepod-32 --spot \\
        --config=configs/simclr_tpu.py --workdir=gs://BUCKET/simclr [-- --config.key=value ...]

The pod is a queued resource. When it is there, the code of this repository is copied to its machines and prepared, and the run
is started on each, detached from this program, whose end or loss of connection does not end it: the same command finds the pod
and the run again. A preempted pod is deleted and asked for again, and the run goes on from the newest checkpoint of its
workdir. When the run is complete, the pod is deleted (`--keep` leaves it). Only a pod that this program has created for the same
workdir is used or deleted. `--dry_run` prints the commands. See launch/README.md.
"""

import argparse
import hashlib
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from launch import calls, tpu
from launch.calls import LaunchError

LABEL = "jaxcl-workdir"
"""Label of the pods that this program creates; its value is a digest of the workdir."""

SETUP = (
    "PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv"
    " && PATH=$HOME/.local/bin:$PATH"
    " && { test -x ../venv/bin/python || uv venv --quiet --python=3.12 ../venv; }"
    " && uv pip install --quiet --python=../venv/bin/python -e '.[tpu]' gcsfs"
)
PYTHON = "../venv/bin/python"
WAITING = (
    "CREATING",
    "ACCEPTED",
    "WAITING_FOR_RESOURCES",
    "PROVISIONING",
    "SUSPENDING",
    "DELETING",
)
DEAD_NODES = ("PREEMPTED", "TERMINATED", "STOPPING", "STOPPED", "DELETING", "REPAIRING")
LONGEST_PAUSE = 120.0
ABSENT = "NOT_FOUND|was not found"
UNREACHED = "gave no answer|UNAVAILABLE|INTERNAL|[Cc]onnection|timed out"

# What gcloud says -> what is wrong. The first that fits is told.
ERRORS: tuple[tuple[str, str], ...] = (
    (
        r"active account|auth login|[Rr]eauthentication|UNAUTHENTICATED|credentials",
        "gcloud is not logged in, or the login has expired: run `gcloud auth login`",
    ),
    (
        r"property \[project\]|project.*must be specified",
        "no project is set: give --project=PROJECT, or run `gcloud config set project PROJECT`",
    ),
    (
        r"SERVICE_DISABLED|has not been used in project|API.*(disabled|not enabled)",
        "the Cloud TPU API is off in this project: run `gcloud services enable tpu.googleapis.com`",
    ),
    (
        r"[Qq]uota",
        "the project's quota for this type in this zone is too small: ask for more under IAM & Admin, Quotas (service"
        " Cloud TPU API; preemptible chips, for --spot, are a quota of their own), or choose a smaller --type or another --zone",
    ),
    (
        r"[Aa]ccelerator.?type",
        "this --type is not offered in this zone: `gcloud compute tpus accelerator-types list --zone=ZONE` lists those that are",
    ),
    (
        r"may not exist|[Ll]ocation \S+ is not found|[Uu]nknown zone|[Ii]nvalid.*(zone|location)|[Zz]one.*(not found|not exist)",
        "the zone is unknown, or closed to this project or account: `gcloud compute tpus locations list` lists the zones",
    ),
    (
        r"runtime.?version",
        "this --runtime_version does not exist here: `gcloud compute tpus versions list --zone=ZONE` lists those that do",
    ),
    (
        r"PERMISSION_DENIED|[Pp]ermission|does not have",
        "the account may not do this: it needs the role TPU Admin (roles/tpu.admin), and Service Account User for the pod",
    ),
)


class Lost(Exception):
    """The machines of the pod are gone, or cannot be reached."""


class Unreached(LaunchError):
    """The machines are there, and do not do what they are told."""


def named(doing: str, answer: calls.Answer) -> LaunchError:
    """An error of gcloud, in words that say what to do."""
    said = answer.err.strip() or answer.out.strip() or f"exit code {answer.code}"
    for pattern, meaning in ERRORS:
        if re.search(pattern, said):
            return LaunchError(f"{doing}: {meaning}.\ngcloud said: {said[-1500:]}")
    return LaunchError(f"{doing}: gcloud said: {said[-1500:]}")


class Pod:
    """The commands that concern one pod."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.name: str = args.name
        self.home = f"jaxcl-{args.name}"
        self.where = [f"--zone={args.zone}"]
        self.where += [f"--project={args.project}"] if args.project else []
        kind, self.chips = tpu.of_type(args.type)
        self.digest = hashlib.sha256(args.workdir.encode()).hexdigest()[:32]
        self.request = [
            f"--node-id={self.name}",
            f"--accelerator-type={args.type}",
            f"--runtime-version={args.runtime_version or kind.runtime}",
            f"--labels={LABEL}={self.digest}",
            *(["--spot"] if args.spot else []),
            *args.create_arg,
        ]
        self.ssh_args: list[str] = args.ssh_arg

    def _queue(self, verb: str, *flags: str) -> list[str]:
        command = ["gcloud", "compute", "tpus", "queued-resources", verb, self.name]
        return [*command, *self.where, *flags, "--quiet"]

    def create(self) -> list[str]:
        """Asks for the pod."""
        return self._queue("create", *self.request)

    def describe(self) -> list[str]:
        """Prints the request and its state."""
        return self._queue("describe", "--format=json")

    def delete(self) -> list[str]:
        """Deletes the machines and the request."""
        return self._queue("delete", "--force")

    def node(self) -> list[str]:
        """Prints the machines and their state."""
        command = ["gcloud", "compute", "tpus", "tpu-vm", "describe", self.name]
        return [*command, *self.where, "--format=json", "--quiet"]

    def copy(self, *files: str) -> list[str]:
        """Copies files into the home directory of each machine."""
        command = ["gcloud", "compute", "tpus", "tpu-vm", "scp", *files, f"{self.name}:"]
        return [*command, *self.where, "--worker=all", *self.ssh_args, "--quiet"]

    def worker(self, verb: str, *words: str, which: str = "all") -> list[str]:
        """Calls tpu_worker.sh on each machine, or on one."""
        there = shlex.join(["bash", f"{self.home}.sh", verb, self.home, *words])
        command = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", self.name, *self.where]
        return [*command, f"--worker={which}", *self.ssh_args, f"--command={there}", "--quiet"]


def pack(folder: pathlib.Path, name: str, config: pathlib.Path) -> list[str]:
    """Puts the code that the machines need into an archive, and tpu_worker.sh beside it; returns both paths.

    Raises:
      LaunchError: a file cannot be read.
    """
    archive, script = folder / f"{name}.tar.gz", folder / f"{name}.sh"

    def clean(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if "__pycache__" in info.name else info

    try:
        with tarfile.open(archive, "w:gz", compresslevel=3) as tar:
            for part in ("jaxcl", "configs", "pyproject.toml", "README.md", "LICENSE"):
                tar.add(calls.ROOT / part, part, filter=clean)
            if config.parts[0] != "configs":
                tar.add(calls.ROOT / config, str(config))
        script.write_bytes((calls.ROOT / "launch/tpu_worker.sh").read_bytes())
    except OSError as error:
        raise LaunchError(f"packing the code of {calls.ROOT}: {error}") from error
    return [str(archive), str(script)]


class Launch:
    """One run on one pod, from the request to the end."""

    def __init__(self, args: argparse.Namespace, command: Sequence[str]) -> None:
        self.args = args
        self.pod = Pod(args)
        self.command = command
        self.created = False  # by this program: it may be deleted
        self.asked = False  # for it, in this call
        self.was_active = False
        self.shown = ""  # the state that was told last

    def say(self, text: str) -> None:
        """A line with the time of day."""
        print(f"{time.strftime('%H:%M:%S')} {self.pod.name}: {text}", flush=True)

    def pace(self, hours: float, what: str) -> calls.Pace:
        """Pauses as the flags say."""
        return calls.Pace(self.args.poll, max(LONGEST_PAUSE, self.args.poll), 3600 * hours, what)

    # ------------------------------------------------------------------------------------------- the queued resource
    def ask(self, doing: str, command: Sequence[str]) -> dict[str, Any] | None:
        """What gcloud describes, asked for again while it is not reached; None if there is no such thing."""
        pace = self.pace(0.5, "an answer of gcloud")
        while True:
            answer = calls.call(command)
            if answer.code == 0:
                found: dict[str, Any] = json.loads(answer.out)
                return found
            if re.search(ABSENT, answer.err):
                return None
            if not re.search(UNREACHED, answer.err):
                raise named(doing, answer)
            self.say(f"gcloud is not reached, is asked again: {answer.err.strip()[-200:]}")
            pace.wait()

    def state(self) -> str:
        """The state of the queued resource, "" if there is none; a new one is told.

        Raises:
          LaunchError: there is one that is another's.
        """
        found = self.ask("looking at the queued resource", self.pod.describe())
        state = "" if found is None else str(found["state"]["state"])
        if state != self.shown:
            self.say(f"queued resource: {state or 'there is none'}")
            self.shown = state
        if found is not None and not self.created:
            nodes = found.get("tpu", {}).get("nodeSpec", [])
            labels = [node.get("node", {}).get("labels", {}).get(LABEL) for node in nodes]
            if labels != [self.pod.digest]:
                raise LaunchError(
                    f"there is a queued resource {self.pod.name} in {self.args.zone} that this program has not created for"
                    f" --workdir={self.args.workdir}: it is left alone. Choose another --name"
                )
            self.created = True
        if state == "FAILED" and found is not None and self.asked and not self.was_active:
            said = json.dumps(found["state"].get("failedData", found["state"]))
            raise named("the request has failed", calls.Answer(1, "", said))
        return state

    def acquire(self) -> None:
        """Returns when the pod is there; asks for it first if need be."""
        pace = self.pace(self.args.max_wait_hours, "the pod")
        while (state := self.state()) != "ACTIVE":
            if state in ("SUSPENDED", "FAILED"):
                self.delete()
            elif not state:
                answer = calls.call(self.pod.create(), seconds=1200)
                if answer.code == 0:
                    self.created = self.asked = True
                elif not re.search(UNREACHED, answer.err) and not (
                    self.asked and "ALREADY_EXISTS" in answer.err  # not to be seen yet
                ):
                    raise named("asking for the pod", answer)
            elif state not in WAITING:
                raise LaunchError(
                    f"the queued resource is in the state {state}, which this program does not know"
                )
            pace.wait()
        self.was_active = True

    def delete(self) -> None:
        """Deletes the pod, which this program has created, and waits until it is gone."""
        if not self.created:
            return
        self.say("deletes the pod")
        pace = self.pace(1, "the end of the pod")
        while True:
            answer = calls.call(self.pod.delete(), seconds=3600)
            if answer.code and not re.search(
                f"{ABSENT}|{UNREACHED}|FAILED_PRECONDITION", answer.err
            ):
                raise named("deleting the pod", answer)
            if self.ask("looking at the queued resource", self.pod.describe()) is None:
                break
            pace.wait()
        self.shown = ""

    # --------------------------------------------------------------------------------------------------- its machines
    def check_alive(self) -> int:
        """The number of machines.

        Raises:
          Lost: they are gone or going.
          LaunchError: somebody has deleted the pod.
        """
        state = self.state()
        if not state:
            raise LaunchError(
                "the pod was deleted by somebody else; the same command asks for it again"
            )
        if state != "ACTIVE":
            raise Lost(f"the queued resource is {state}")
        node = self.ask("looking at the machines", self.pod.node())
        if node is None:
            raise Lost("the machines are gone")
        if node.get("state") in DEAD_NODES:
            raise Lost(f"the machines are {node['state']}")
        return max(1, len(node.get("networkEndpoints", [])))

    def reach(self, command: Sequence[str], what: str, hours: float) -> str:
        """Repeats a command on living machines until it succeeds; returns what it printed.

        Raises:
          Lost: the machines are gone.
          Unreached: they are there, and it has not succeeded in time.
        """
        pace = self.pace(hours, what)
        while True:
            answer = calls.call(command, seconds=3600)
            if answer.code == 0:
                return answer.out
            self.check_alive()
            said = (answer.err.strip() or answer.out.strip())[-800:]
            self.say(f"{what} did not succeed, is tried again: {said}")
            try:
                pace.wait()
            except LaunchError as error:
                raise Unreached(
                    f"{error}. If ssh does not reach the machines: does the network let port 22 in, or is it"
                    f" --ssh_arg=--internal-ip? The last it said: {said}"
                ) from None

    def prepare(self, files: Sequence[str]) -> None:
        """Copies the code to the machines, prepares it, and starts the run on each."""
        self.say("copies the code to the machines and prepares it")
        hours = self.args.max_setup_hours
        self.reach(self.pod.copy(*files), "copying the code", hours)
        self.reach(
            self.pod.worker("setup", self.pod.home + ".tar.gz", self.args.setup),
            "the set-up",
            hours,
        )
        if self.args.data_bucket:
            bucket = self.args.data_bucket.partition("/")[0]
            self.reach(self.pod.worker("mount", bucket), "mounting the bucket", hours)
        self.reach(self.pod.worker("start", *self.command), "the start", hours)
        self.say("the run is started; what machine 0 prints:")

    def watch(self) -> list[int]:
        """Shows what machine 0 prints until the run ends; returns the exit code on each machine.

        Raises:
          Lost: the machines are gone, or are there and do not answer.
        """
        hours = self.args.max_setup_hours
        lines, straggling = 1000, 0.0
        while True:
            # A session of its own, so that Ctrl-C does not reach it, and its children end with it.
            reader = subprocess.Popen(
                self.pod.worker("follow", str(lines), which="0"),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                while True:
                    try:
                        reader.wait(timeout=self.args.poll)
                        break
                    except subprocess.TimeoutExpired:
                        self.check_alive()
            finally:
                if reader.poll() is None:
                    os.killpg(reader.pid, signal.SIGKILL)
                    reader.wait()
            lines = 20
            count = self.check_alive()
            try:
                said = self.reach(self.pod.worker("status"), "reaching the machines", hours)
            except Unreached as error:
                raise Lost(str(error)) from None
            states = re.findall(
                r"^jaxcl-worker \S+ (running|killed|absent|exited \d+)$", said, re.M
            )
            if len(states) < count:
                self.say(f"{len(states)} of {count} machines have answered, they are asked again")
            elif "running" not in states:
                gone = {"killed": 137, "absent": 137}
                return [gone[s] if s in gone else int(s.removeprefix("exited ")) for s in states]
            elif states.count("running") < count:
                straggling = straggling or time.monotonic()
                if time.monotonic() - straggling > self.args.grace:
                    self.say("some machines have ended and the others do not: these are stopped")
                    self.reach(self.pod.worker("stop"), "stopping the run", hours)
            time.sleep(self.args.poll)

    # ------------------------------------------------------------------------------------------------------ the whole
    def run(self, files: Sequence[str]) -> None:
        """Until the run is complete; `files` are the packed code, the same after each restart.

        Raises:
          LaunchError: it cannot be, or not with so many restarts.
        """
        crashes = 0
        for restart in range(self.args.max_restarts + 1):
            if restart:
                self.say(
                    f"restart {restart}: goes on from the newest checkpoint in {self.args.workdir}"
                )
            self.acquire()
            try:
                self.prepare(files)
                codes = self.watch()
            except Lost as lost:
                self.say(f"preempted: {lost}")
                self.delete()
                crashes = 0
                continue
            if not any(codes):
                self.say("the run is complete")
                return
            if set(codes) <= {0, calls.STOPPED}:
                self.say("the run was asked to stop and has saved itself")
                crashes = 0
                continue
            crashes += 1
            if set(codes) & set(calls.FINAL) or crashes > self.args.max_crashes:
                print(calls.call(self.pod.worker("log", "15")).out, file=sys.stderr)
                raise LaunchError(
                    f"the run ended with exit codes {codes} on the machines, see above"
                )
            self.say(
                f"the run ended with exit codes {codes}: crash {crashes} of {self.args.max_crashes} in a row"
            )
        raise LaunchError(
            f"restarted {self.args.max_restarts} times and not complete: --max_restarts allows more"
        )


def plan(launch: Launch) -> str:
    """What would be done, as commands of a shell."""
    pod, args = launch.pod, launch.args
    home = pod.home
    steps = [
        ("ask for the pod, unless it is there already", pod.create()),
        ("look until the state is ACTIVE", pod.describe()),
        (f"copy the code, packed from {calls.ROOT}", pod.copy(f"{home}.tar.gz", f"{home}.sh")),
        ("prepare it", pod.worker("setup", f"{home}.tar.gz", args.setup)),
        *(
            [("mount the data", pod.worker("mount", args.data_bucket.partition("/")[0]))]
            if args.data_bucket
            else []
        ),
        ("start the run on each machine, detached", pod.worker("start", *launch.command)),
        ("show what machine 0 prints", pod.worker("follow", "1000", which="0")),
        ("meanwhile: is the pod still there? (and the queued resource, as above)", pod.node()),
        ("at the end: the exit code of each machine", pod.worker("status")),
    ]
    text = [f"# {n}. {what}\n{shlex.join(command)}" for n, (what, command) in enumerate(steps, 1)]
    text.append(
        f"# preempted: delete it, and again from 1, at most {args.max_restarts} times\n{shlex.join(pod.delete())}"
    )
    text.append("# complete: " + ("leave it (--keep)" if args.keep else "delete it, as above"))
    return "\n".join(text)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--name", required=True, help="of the pod")
    add("--zone", required=True, help="such as us-west4-a")
    add("--type", required=True, help="such as v5litepod-32, v4-64, v5p-16, v6e-8")
    add("--config", required=True, help="a config file of this repository")
    add(
        "--workdir",
        required=True,
        help="gs://BUCKET/DIR: outlives the pod, and must be the same each time",
    )
    add(
        "--data_bucket",
        default="",
        help="BUCKET[/DIR], mounted read-only; it becomes --config.data.path",
    )
    add("--project", default="", help="default: gcloud's own")
    add("--spot", action="store_true", help="cheaper, may be preempted at any time")
    add("--runtime_version", default="", help="software of the machines (default: by type)")
    add(
        "--setup",
        default=SETUP,
        help="bash command that prepares a machine, in the code's directory",
    )
    add("--python", default=PYTHON, help="Python on the machines, seen from the code's directory")
    add(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="for the run; may be repeated",
    )
    add(
        "--create_arg",
        action="append",
        default=[],
        help="more for `queued-resources create`: --create_arg=--reserved",
    )
    add(
        "--ssh_arg",
        action="append",
        default=[],
        help="more for `tpu-vm ssh` and `scp`: --ssh_arg=--internal-ip",
    )
    add("--max_restarts", type=int, default=100, help="after preemptions and crashes")
    add("--max_crashes", type=int, default=3, help="in a row, while the pod stays")
    add("--max_wait_hours", type=float, default=72.0, help="for the pod, each time")
    add(
        "--max_setup_hours",
        type=float,
        default=0.3,
        help="for each step of the set-up, over ssh, tries included",
    )
    add(
        "--grace",
        type=float,
        default=300.0,
        help="seconds for the other machines when one has ended",
    )
    add("--poll", type=float, default=30.0, help="seconds between looks at the pod")
    add("--keep", action="store_true", help="leave the pod when the run is complete")
    add("--delete", action="store_true", help="delete the pod also after an error or Ctrl-C")
    add("--dry_run", action="store_true", help="print the commands and stop")
    add("rest", nargs="*", help="after --: more flags of jaxcl.main")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    args = parse(argv)
    launch = None
    try:
        calls.check_name(args.name)
        calls.check_config(args.config)
        calls.check_workdir(args.workdir, "a machine's own disk is gone when the pod is preempted")
        calls.check_env(args.env)
        data = args.data_bucket.partition("/")[2]
        where = [f"--config.data.path=../data/{data}".rstrip("/")] if args.data_bucket else []
        command = calls.training(args.python, args.config, args.workdir, [*where, *args.rest])
        launch = Launch(args, ["env", *args.env, *command] if args.env else command)
        if args.dry_run:
            print(plan(launch))
            return 0
        calls.require(
            "gcloud",
            "install it from https://cloud.google.com/sdk/docs/install, then `gcloud auth login`",
        )
        launch.say(tpu.cost(launch.pod.chips, f"the price of a chip-hour in {args.zone}"))
        if not args.workdir.startswith("gs://"):
            launch.say(
                f"{args.workdir} must be one and the same disk on all machines, also after a preemption"
            )
        with tempfile.TemporaryDirectory() as scratch:
            files = pack(pathlib.Path(scratch), launch.pod.home, calls.check_config(args.config))
            launch.run(files)
        if not args.keep:
            launch.delete()
        return 0
    except LaunchError as error:
        print(f"tpu_pod: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print(
            "\ntpu_pod: leaves; a run that was started goes on. The same command finds it again",
            file=sys.stderr,
        )
        code = 130
    if launch is not None and launch.created:
        if args.delete:
            try:
                launch.delete()
            except LaunchError as error:
                print(f"tpu_pod: {error}", file=sys.stderr)
        else:
            there = shlex.join(launch.pod.delete())
            print(
                f"tpu_pod: the pod may still be there, and costs. To delete it:\n  {there}",
                file=sys.stderr,
            )
    return code


if __name__ == "__main__":
    sys.exit(main())
