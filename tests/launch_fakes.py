"""Fakes of gcloud, kubectl and Slurm that record how they are called, run the workers' commands here, and preempt them once.

Each fake is a program in a directory of its own that stands first on PATH; what it knows is in `FAKE_CLOUD`:

    calls.jsonl     every call: program, arguments
    srun.json       the environment of the last srun
    settings.json   workers: their number
                    preempt: take the machines away, once, when the workers have saved themselves
                    saved, files: a glob, and the number of its files which tells that they have
                    fail: verb -> what to say on standard error, call by call
                    port: of process 0; states, failure (of gcloud); jobset_installed, no_room (of kubectl)
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]

# What each fake starts with.
COMMON = r"""
import contextlib, glob, json, os, pathlib, re, shutil, signal, subprocess, sys, time

cloud = pathlib.Path(os.environ["FAKE_CLOUD"])
program, argv = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
with open(cloud / "calls.jsonl", "a") as f:
    f.write(json.dumps([program, *argv]) + "\n")
settings = json.loads((cloud / "settings.json").read_text())


def change(**new):
    settings.update(new)
    (cloud / "settings.new").write_text(json.dumps(settings))
    (cloud / "settings.new").rename(cloud / "settings.json")


def fail_if_told(verb):
    told = settings["fail"].get(verb)
    if told:
        change(fail={**settings["fail"], verb: told[1:]})
        if told[0]:
            sys.exit(told[0])


def refuse(text):
    sys.exit("ERROR: " + text)


def preempted():
    # Whether the time of the one preemption has come.
    return settings["preempt"] and len(glob.glob(settings["saved"])) >= settings["files"]


def kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def process_environment(number, count, folder):
    # Slurm's variables are the way in which JAX finds its other processes without hardware of a kind.
    return {
        **os.environ,
        "HOME": str(folder),
        "JAX_COORDINATOR_PORT": str(settings["port"]),
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
        "JOB_COMPLETION_INDEX": str(number),
    }
"""

# Stands for the Python of the workers: a run of 6 steps in which each process saves itself at step 2. Where it has not saved
# itself before, it waits for what happens, so that a preemption finds it always in the same place.
RUN = r"""#!/usr/bin/env bash
workdir=
for word in "$@"; do
  case $word in --workdir=*) workdir=${word#--workdir=} ;; esac
done
printf '%s\n' "$*" >>"$workdir/commands"
if [[ -s $workdir/codes ]]; then
  code=$(head -n 1 "$workdir/codes")
  sed -i 1d "$workdir/codes"
  echo "ends with $code"
  exit "$code"
fi
saved=$workdir/saved-$SLURM_PROCID
if [[ -e $saved ]]; then
  echo "continues after step $(<"$saved")"
else
  trap 'echo "saved, stops"; exit 143' TERM
  echo 2 >"$saved.new"
  mv "$saved.new" "$saved"
  for _ in {1..3000}; do sleep 0.1; done
  exit 99
fi
echo complete
"""

GCLOUD = r"""
verb = argv[3]
flags = dict(word[2:].split("=", 1) for word in argv if re.match("--[a-z-]+=", word))
queue = cloud / "queue.json"
homes = [cloud / f"worker{i}" for i in range(settings["workers"])]


def end_machines():
    for home in homes:
        for pid in home.glob("*/pid"):
            kill(int(pid.read_text()))
        shutil.rmtree(home, ignore_errors=True)


def read():
    if not queue.exists():
        refuse("(gcloud.compute.tpus) NOT_FOUND: Resource 'pod' was not found")
    return json.loads(queue.read_text())


def write(resource):
    # At once, as another process may be reading.
    new = queue.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(resource))
    new.replace(queue)


fail_if_told(verb if argv[2] == "queued-resources" else "tpu-vm " + verb)
if argv[2] == "queued-resources" and verb == "create":
    if queue.exists():
        refuse("ALREADY_EXISTS: " + argv[4])
    label = dict([flags["labels"].split("=")])
    write({"labels": label, "states": settings["states"]})
    for home in homes:
        home.mkdir()
elif argv[2] == "queued-resources" and verb == "describe":
    now = read()
    state, *later = now["states"]
    if later:
        write({**now, "states": later})
    node = {"nodeId": argv[4], "node": {"labels": now["labels"]}}
    data = {"failedData": {"error": {"message": settings["failure"]}}} if state == "FAILED" else {}
    print(json.dumps({"state": {"state": state, **data}, "tpu": {"nodeSpec": [node]}}))
elif argv[2] == "queued-resources" and verb == "delete":
    read()
    end_machines()
    queue.unlink()
elif verb == "describe":
    read()
    print(json.dumps({"state": "READY", "networkEndpoints": [{}] * settings["workers"]}))
elif verb == "scp":
    files = [word for word in argv[4:] if word.startswith("/")]
    for home in homes:
        for file in files:
            shutil.copy(file, home)
elif verb == "ssh":
    which = range(len(homes)) if flags["worker"] == "all" else [int(flags["worker"])]
    command = flags["command"]
    code = 0
    for i in which:
        if not homes[i].exists():
            sys.exit(255)
        reader = subprocess.Popen(
            ["bash", "-c", command], cwd=homes[i], env=process_environment(i, len(homes), homes[i]), start_new_session=True
        )
        while reader.poll() is None:
            if " follow " in command and preempted():
                write({**read(), "states": ["ACTIVE", "SUSPENDING", "SUSPENDED"]})
                if settings["preempt"] == "delete":
                    queue.unlink()
                change(preempt=False)
                end_machines()
                kill(reader.pid)
                sys.exit(255)
            time.sleep(0.05)
        code = max(code, reader.returncode)
    sys.exit(code)
"""

KUBECTL = r"""
import yaml

words = [word for word in argv if not word.startswith("--")]
verb, state = words[0], cloud / "jobset.json"
fail_if_told(" ".join(words[:2]))


def missing(what):
    sys.exit(f'Error from server (NotFound): {what} not found')


if verb == "get" and words[1] == "crd":
    print("{}") if settings["jobset_installed"] else missing("customresourcedefinitions")
elif verb == "get" and words[1] == "pods":
    pods = []
    if settings["no_room"]:
        change(no_room=settings["no_room"] - 1)
        condition = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}
        pods = [{"status": {"conditions": [condition]}}]
    print(json.dumps({"items": pods}))
elif verb == "get":
    print(state.read_text()) if state.exists() else missing(f'jobsets.jobset.x-k8s.io "{words[2]}"')
elif verb == "create":
    manifest = yaml.safe_load(sys.stdin.read())
    state.write_text(json.dumps({**manifest, "status": {}}))
    program = pathlib.Path(sys.argv[0]).with_name("controller")
    subprocess.Popen([program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
elif verb == "delete":
    state.unlink() if state.exists() else missing(words[2])
elif verb == "logs":
    print((cloud / "log").read_text())
"""

# What JobSet's and Kubernetes' controllers do with the manifest.
CONTROLLER = r"""
state = cloud / "jobset.json"
manifest = json.loads(state.read_text())
spec = manifest["spec"]
job = spec["replicatedJobs"][0]["template"]["spec"]
container = job["template"]["spec"]["containers"][0]
final = job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
rule = spec["failurePolicy"]["rules"][0]


def publish(**status):
    (cloud / "new.json").write_text(json.dumps({**manifest, "status": status}))
    (cloud / "new.json").rename(state)


restarts = 0
while state.exists() and json.loads((cloud / "settings.json").read_text())["no_room"]:
    time.sleep(0.05)
while state.exists():
    pods = []
    for i in range(job["completions"]):
        environment = process_environment(i, job["completions"], cloud)
        environment.update((e["name"], e["value"].replace("$$(", "$(")) for e in container["env"])
        command = [word.replace("$$(", "$(") for word in container["command"]]
        log = open(cloud / "log", "a")
        pods.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))
    while any(pod.poll() is None for pod in pods) and not any(pod.poll() for pod in pods):
        if preempted():
            change(preempt=False)
            kill(pods[-1].pid)
        if not state.exists():  # deleted
            [kill(pod.pid) for pod in pods]
            sys.exit()
        time.sleep(0.05)
    codes = [pod.poll() for pod in pods]
    for pod in pods:
        kill(pod.pid)
        pod.wait()
    if not any(codes):
        publish(restarts=restarts, terminalState="Completed")
        break
    reason = "PodFailurePolicy" if set(codes) & set(final) else "BackoffLimitExceeded"
    fails = rule["action"] == "FailJobSet" and reason in rule["onJobFailureReasons"]
    if fails or restarts >= spec["failurePolicy"]["maxRestarts"]:
        condition = {"type": "Failed", "reason": reason, "message": f"exit codes {codes}"}
        publish(restarts=restarts, terminalState="Failed", conditions=[condition])
        break
    restarts += 1
    publish(restarts=restarts)
    time.sleep(0.5)  # long enough to be seen
"""

# sbatch, srun, scancel, scontrol, and the daemon that runs the job.
SLURM = r"""
job = cloud / "job.json"


def flag(name, default=None):
    found = [word.partition("=")[2] for word in argv if word.startswith(f"--{name}=")]
    return found[-1] if found else default


def processes():
    with contextlib.suppress(FileNotFoundError):
        return [int(pid) for pid in (cloud / "processes").read_text().split()]
    return []


fail_if_told(program)
if program == "sbatch":
    script = next(i for i, word in enumerate(argv) if not word.startswith("--"))
    asked = {"command": argv[script:], "tasks": int(flag("nodes")) * int(flag("ntasks-per-node"))}
    asked["export"] = dict(pair.split("=", 1) for pair in flag("export").split(",")[1:])
    if cpus := flag("cpus-per-task"):
        asked["export"]["SLURM_CPUS_PER_TASK"] = cpus
    job.write_text(json.dumps(asked))
    daemon = pathlib.Path(sys.argv[0]).with_name("slurmd")
    subprocess.Popen([daemon], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    print("4711;cluster")
elif program == "slurmd":
    asked = json.loads(job.read_text())
    for restart in range(9):
        environment = {**os.environ, **asked["export"], "SLURM_JOB_ID": "4711", "FAKE_TASKS": str(asked["tasks"])}
        if restart:
            environment["SLURM_RESTART_COUNT"] = str(restart)
        log = open(cloud / "log", "a")
        shell = subprocess.Popen(
            ["bash", *asked["command"]], stdout=log, stderr=log, env=environment, start_new_session=True
        )
        (cloud / "shell").write_text(str(shell.pid))
        again = False
        while shell.poll() is None:
            if settings["preempt"] and preempted():
                how = settings["preempt"]
                change(preempt=False)
                if how == "limit":
                    os.kill(shell.pid, signal.SIGUSR1)
                else:  # to all processes of the job, as Slurm does
                    again = how == "preemption"
                    for pid in [*processes(), shell.pid]:
                        os.kill(pid, signal.SIGTERM)
            time.sleep(0.05)
        for pid in processes():
            kill(pid)
        if (cloud / "requeue").exists():
            (cloud / "requeue").unlink()
        elif not again:
            break
    (cloud / "ended").write_text(str(shell.returncode))
elif program == "srun":
    (cloud / "srun.json").write_text(json.dumps(dict(os.environ)))
    count = int(os.environ["FAKE_TASKS"])
    command = [word for word in argv if word != "--kill-on-bad-exit=1"]
    children = []
    for i in range(count):
        environment = process_environment(i, count, cloud)
        environment["SLURM_JOB_ID"] = "4711"
        children.append(subprocess.Popen(command, env=environment, start_new_session=True))
    (cloud / "processes").write_text(" ".join(str(child.pid) for child in children))
    sys.exit(max(128 - code if code < 0 else code for code in (child.wait() for child in children)))
elif program == "scancel":
    for pid in processes():
        os.kill(pid, getattr(signal, "SIG" + flag("signal")))
elif program == "scontrol":
    (cloud / "requeue").write_text(argv[1])
    os.kill(int((cloud / "shell").read_text()), signal.SIGKILL)  # as Slurm ends the job that it queues again
"""


class Cloud:
    """The directory of the fakes, and what has become of it."""

    def __init__(self, folder, **settings):
        self.folder = folder
        self.bin = folder / "bin"
        self.state = folder / "cloud"
        self.workdir = folder / "runs" / "it's a run"
        for path in (self.bin, self.state, self.workdir):
            path.mkdir(parents=True)
        start = {
            "workers": 1,
            "preempt": False,
            "states": ["ACTIVE"],
            "failure": "",
            "jobset_installed": True,
            "no_room": 0,
            "fail": {},
            "port": 0,
            "saved": "",
            "files": 1,
        } | settings
        if not start["saved"]:  # a file of each process
            start |= {"saved": str(folder / "runs/*/saved-[0-9]"), "files": start["workers"]}
        (self.state / "settings.json").write_text(json.dumps(start))
        self.python = self.bin / "python-of-the-workers"
        self.python.write_text(RUN)
        self.python.chmod(0o755)

    def install(self, *names, source, header=COMMON, flags=" -SE"):
        for name in names:
            path = self.bin / name
            path.write_text(f"#!{sys.executable}{flags}\n{header}{source}")
            path.chmod(0o755)

    def install_gcloud(self):
        self.install("gcloud", source=GCLOUD)

    def install_kubectl(self):
        self.install("kubectl", source=KUBECTL, flags="")  # yaml is no part of the standard library
        self.install("controller", source=CONTROLLER)

    def install_slurm(self):
        self.install("sbatch", "srun", "scancel", "scontrol", "slurmd", source=SLURM)

    def launch(self, program, *flags, seconds=300, path=None):
        """Runs a launcher to its end."""
        path = f"{self.bin}:{os.environ['PATH']}" if path is None else path
        return subprocess.run(
            [sys.executable, f"launch/{program}.py", *flags],
            cwd=ROOT,
            env={**os.environ, "PATH": path, "FAKE_CLOUD": str(self.state)},
            capture_output=True,
            text=True,
            timeout=seconds,
        )

    def calls(self, *start):
        """The recorded calls that start with these words."""
        log = self.state / "calls.jsonl"
        found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [call for call in found if call[: len(start)] == list(start)]

    def srun_environment(self):
        """The variables of the last srun; the processes of the run have them too."""
        return json.loads((self.state / "srun.json").read_text())

    def commands(self):
        """What the workers were told to run."""
        log = self.workdir / "commands"
        return log.read_text().splitlines() if log.exists() else []


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(condition, what, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.05)
