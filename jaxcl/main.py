"""Trains: `python -m jaxcl.main --config=configs/quickstart.py [--workdir=DIR] [--config.section.key=value ...]`.

Exit codes, for what starts it: 0 when the run is complete; 1 for an error that the same command would meet again; 75 when
a device or another process has failed, or storage does not answer, so that the same command may go on from the newest checkpoint;
`--stopped_exit_code` (0 if not given) when a signal stopped the run and it has saved itself.
"""

import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, a Python file with get_config().", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", "", "Where the run is kept (default: runs/<name>).")
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "host:port of process 0 where the platform does not tell it (TPU pods and Slurm do).",
)
PROCESSES = flags.DEFINE_integer("processes", 1, "Number of processes, with --coordinator.")
PROCESS = flags.DEFINE_integer("process", 0, "Number of this process, with --coordinator.")
MULTIHOST = flags.DEFINE_bool(
    "multihost",
    False,
    "One of several processes that the platform describes (TPU pod, GKE, Slurm).",
)
STOPPED = flags.DEFINE_integer(
    "stopped_exit_code",
    0,
    "Exit code of a run that saved itself and stopped because of a signal; launchers give 143.",
)
PROFILE = flags.DEFINE_list(
    "profile",
    [],
    "FIRST,LAST step of a profiler trace, kept in workdir/profile: short for --config.run.profile.",
)
TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where an error came from.")

FAILED_ELSEWHERE = 75
"""Exit code when a device, another process or the storage has failed."""


def main(argv: list[str]) -> None:
    """Flags only: everything else is `train.train(config, workdir)`."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: settings are --config.key=value")
    from jaxcl import config, mesh, train
    from jaxcl.checkpoint import CheckpointError, may_pass

    logging.set_verbosity(logging.WARNING)
    try:
        if PROFILE.value:
            CONFIG.value.run.profile = tuple(int(n) if n.isdecimal() else n for n in PROFILE.value)
        cfg = config.from_dict(CONFIG.value)
        mesh.initialize(cfg.mesh)
        if COORDINATOR.value:
            mesh.join(COORDINATOR.value, PROCESSES.value, PROCESS.value)
        elif MULTIHOST.value:
            mesh.join()
        result = train.train(cfg, WORKDIR.value or f"runs/{cfg.name}")
    except Exception as error:
        lost, unreachable = mesh.lost_another(error), may_pass(error)
        named = isinstance(error, (ValueError, OSError, train.RunError, CheckpointError))
        if TRACEBACK.value or lost or not named:
            traceback.print_exc()
            if lost:
                print(
                    "jaxcl: a device or another process of the run has failed. The same command goes on from the newest"
                    " checkpoint",
                    file=sys.stderr,
                )
        else:
            print(f"jaxcl: {error}\n(--traceback shows where)", file=sys.stderr)
        if unreachable and not lost:
            print(
                "jaxcl: storage, the network or this machine has failed for now. When it answers, the same command goes on"
                " from the newest checkpoint",
                file=sys.stderr,
            )
        mesh.leave(FAILED_ELSEWHERE if lost or unreachable else 1)
    if not result["complete"]:
        sys.exit(STOPPED.value)


if __name__ == "__main__":
    from jaxcl import command

    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=command.parse_or_exit)
