"""Starts N processes of one run on this machine, over loopback, as a pod would start them on N hosts.

    python launch/local.py --processes=2 --devices=4 -- --config=configs/quickstart.py --workdir=DIR

Each process sees `--devices` virtual CPU devices; together they are one mesh. With one process's failure the others are
stopped, and its output is shown last. `--dry_run` prints the commands.
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import time


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def commands(processes: int, devices: int, port: int, rest: list[str]) -> list[list[str]]:
    """The command of each process."""
    return [
        [
            sys.executable,
            "-m",
            "jaxcl.main",
            *rest,
            "--config.mesh.platform=cpu",
            f"--config.mesh.cpu_devices={devices}",
            f"--coordinator=127.0.0.1:{port}",
            f"--processes={processes}",
            f"--process={i}",
        ]
        for i in range(processes)
    ]


def run(all_commands: list[list[str]], grace: float = 60.0) -> int:
    """Runs the processes until all end; returns the first exit code that is not 0, or 0.

    Ctrl-C and SIGTERM are passed on, so that the run saves itself; when one process fails, the others are ended after
    `grace` seconds at most.
    """
    # A session of its own each: a Ctrl-C of the terminal then arrives once, from here.
    children = [subprocess.Popen(c, start_new_session=True) for c in all_commands]

    def forward(number: int, frame: object) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    deadline = None
    told: set[int] = set()
    running = True
    while running:
        running = any(child.poll() is None for child in children)
        for i, child in enumerate(children):
            if child.poll() not in (None, 0) and i not in told:
                told.add(i)
                print(f"process {i} ended with exit code {child.returncode}", file=sys.stderr)
        if told and running and deadline is None:
            print(f"the others are stopped in {grace:.0f} s", file=sys.stderr)
            deadline = time.monotonic() + grace
        if deadline is not None and time.monotonic() > deadline:
            for child in children:
                if child.poll() is None:
                    child.kill()
        time.sleep(0.1)
    return next((child.returncode for child in children if child.returncode), 0)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2, help="number of processes")
    parser.add_argument(
        "--devices", type=int, default=4, help="virtual CPU devices of each process"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands and stop")
    parser.add_argument("rest", nargs="*", help="after --: the arguments of jaxcl.main")
    args = parser.parse_args()
    if args.processes < 1 or args.devices < 1:
        parser.error("--processes and --devices: expected 1 or more")
    todo = commands(args.processes, args.devices, free_port(), args.rest)
    if args.dry_run:
        for command in todo:
            print(shlex.join(command))
        return 0
    os.environ.setdefault("JAX_CPU_COLLECTIVES_IMPLEMENTATION", "gloo")
    return run(todo)


if __name__ == "__main__":
    sys.exit(main())
