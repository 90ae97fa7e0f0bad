"""Trains on GPUs of a Slurm cluster, one process a GPU, again and again until the run is complete.

    python launch/slurm.py --nodes=4 --gpus_per_node=8 --time=24:00:00 --partition=gpu \\
        --config=configs/simclr_tpu.py --workdir=/shared/runs/simclr [-- --config.key=value ...]

It submits launch/slurm.sbatch. Before the time limit the run saves itself and its job is queued again; so it is by Slurm after a
preemption or the failure of a node. Each time it goes on from the newest checkpoint in the workdir. `--dry_run` prints the command.
See launch/README.md.
"""

import argparse
import pathlib
import re
import shlex
import sys
from collections.abc import Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from launch import calls
from launch.calls import LaunchError

# What sbatch says -> what is wrong. The first that fits is told.
ERRORS: tuple[tuple[str, str], ...] = (
    (r"[Ii]nvalid partition", "there is no such partition: `sinfo --summarize` lists them"),
    (
        r"[Ii]nvalid account|account/partition combination",
        "this account may not use this partition: `sacctmgr show associations user=$USER` lists what may be used",
    ),
    (
        r"[Ii]nvalid qos",
        "there is no such quality of service for this account: `sacctmgr show qos`",
    ),
    (
        r"[Tt]ime limit|time specification",
        "the time is longer than the partition allows: `sinfo --format='%P %l'` shows how long",
    ),
    (
        r"[Nn]ode configuration|[Gg]eneric resource|gres|[Mm]ore processors|nodes required",
        "the partition has no nodes like that: `sinfo --format='%P %D %G'` shows nodes and GPUs",
    ),
    (
        r"QOS.*[Ll]imit|[Aa]ssoc.*[Ll]imit|submit limit|[Jj]ob violates",
        "it is more than this account may have at once: fewer --nodes, a shorter --time, or ask the administrator",
    ),
    (
        r"[Uu]nable to contact|[Cc]onnection refused|Socket timed out|slurm_load_ctl_conf",
        "the controller of Slurm is not reached: is this a login node of the cluster? Otherwise try again later",
    ),
)


def submit_command(args: argparse.Namespace) -> list[str]:
    """The sbatch command."""
    # All GPUs of a node are visible to each of its processes, and JAX takes the one with the process's local number.
    # (--gpus-per-task would hide the others, and the numbers would not fit.)
    return [
        "sbatch",
        "--parsable",
        f"--job-name={args.name}",
        f"--nodes={args.nodes}",
        f"--ntasks-per-node={args.gpus_per_node}",
        f"--gpus-per-node={args.gpus_per_node}",
        f"--time={args.time}",
        f"--signal=B:USR1@{args.save_seconds}",
        f"--output={args.log}",
        f"--export=ALL,JAXCL_MAX_RESTARTS={args.max_restarts}",
        *([f"--partition={args.partition}"] if args.partition else []),
        *([f"--account={args.account}"] if args.account else []),
        *([f"--cpus-per-task={args.cpus_per_task}"] if args.cpus_per_task else []),
        *args.sbatch_arg,
        str(calls.ROOT / "launch/slurm.sbatch"),
        *calls.training(args.python, str(calls.ROOT / args.config), args.workdir, args.rest),
    ]


def submit(command: Sequence[str]) -> str:
    """Submits; returns the number of the job.

    Raises:
      LaunchError: Slurm refuses, with what to do.
    """
    answer = calls.call(command)
    if answer.code == 0 and (match := re.match(r"\d+", answer.out.strip())):
        return match[0]
    said = answer.err.strip() or answer.out.strip() or f"exit code {answer.code}"
    for pattern, meaning in ERRORS:
        if re.search(pattern, said):
            raise LaunchError(f"{meaning}.\nsbatch said: {said[-1500:]}")
    raise LaunchError(f"sbatch said: {said[-1500:]}")


def check(args: argparse.Namespace) -> None:
    """Checks the flags.

    Raises:
      LaunchError: names the flag.
    """
    calls.check_name(args.name)
    calls.check_config(args.config)
    calls.check_workdir(args.workdir, "each node has its own disk")
    for flag, least in (
        ("nodes", 1),
        ("gpus_per_node", 1),
        ("cpus_per_task", 0),
        ("max_restarts", 0),
        ("save_seconds", 60),
    ):
        if getattr(args, flag) < least:
            raise LaunchError(f"--{flag}={getattr(args, flag)}: expected {least} or more")
    if not re.fullmatch(r"\d+(-\d+(:\d+){0,2}|(:\d+){0,2})", args.time):
        raise LaunchError(
            f"--time={args.time}: expected MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS:MINUTES:SECONDS"
        )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", required=True, help="a config file of this repository")
    add("--workdir", required=True, help="on a disk that all nodes share, the same each time")
    add("--name", default="jaxcl", help="of the job")
    add("--nodes", type=int, default=1, help="number of nodes")
    add("--gpus_per_node", type=int, default=8, help="GPUs of each, one process a GPU")
    add(
        "--time",
        default="24:00:00",
        help="limit of each part of the run; it is queued again as often as needed",
    )
    add("--partition", default="", help="default: the cluster's")
    add("--account", default="", help="default: the user's")
    add(
        "--cpus_per_task",
        type=int,
        default=0,
        help="cores of each process, for decoding images (0: the cluster's default)",
    )
    add(
        "--save_seconds",
        type=int,
        default=300,
        help="how long before the limit the run saves itself",
    )
    add(
        "--max_restarts",
        type=int,
        default=100,
        help="restarts, after preemptions too, from which on a time limit is the end (a preemption never is)",
    )
    add(
        "--log",
        default="slurm-%x-%j.out",
        help="where the output goes: %%x is the name, %%j the number of the job",
    )
    add("--python", default=sys.executable, help="Python on the nodes (default: this one)")
    add(
        "--sbatch_arg",
        action="append",
        default=[],
        help="more for sbatch: --sbatch_arg=--qos=preempt",
    )
    add("--dry_run", action="store_true", help="print the command and stop")
    add("rest", nargs="*", help="after --: more flags of jaxcl.main")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    args = parse(argv)
    try:
        check(args)
        command = submit_command(args)
        gpus = args.nodes * args.gpus_per_node
        if args.dry_run:
            print(f"# {gpus} GPUs: each hour costs {gpus} GPU-hours")
            print(shlex.join(command))
            return 0
        calls.require("sbatch", "this is no login node of a Slurm cluster")
        number = submit(command)
    except LaunchError as error:
        print(f"slurm: {error}", file=sys.stderr)
        return 1
    log = args.log.replace("%x", args.name).replace("%j", number)
    print(f"job {number}: {gpus} GPUs, each hour costs {gpus} GPU-hours")
    print(f"what it prints:   tail -F {shlex.quote(log)}")
    print(f"how it is doing:  squeue --job={number}")
    print(f"save and stop it: scancel --signal=TERM {number}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
