"""Trains: `python -m jaxcl.main --config=configs/quickstart.py [--workdir=DIR] [--config.section.key=value ...]`."""

import sys

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
    "multihost", False, "One of several processes that the platform describes (TPU pod, Slurm)."
)
TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where an error came from.")


def main(argv: list[str]) -> None:
    """Flags only: everything else is `train.train(config, workdir)`."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: settings are --config.key=value")
    from jaxcl import config, mesh, train
    from jaxcl.checkpoint import CheckpointError

    logging.set_verbosity(logging.WARNING)
    try:
        cfg = config.from_dict(CONFIG.value)
        mesh.initialize(cfg.mesh)
        if COORDINATOR.value:
            mesh.join(COORDINATOR.value, PROCESSES.value, PROCESS.value)
        elif MULTIHOST.value:
            mesh.join()
        train.train(cfg, WORKDIR.value or f"runs/{cfg.name}")
    except (ValueError, OSError, train.RunError, CheckpointError) as error:
        if TRACEBACK.value:
            raise
        sys.exit(f"jaxcl: {error}\n(--traceback shows where)")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
