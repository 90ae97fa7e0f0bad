"""The command: `python -m jaxcl.study --config=configs/studies/NAME.py [--workdir=DIR] [--seeds=0,1,2] [--cells=GLOB] [--list]`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxcl.study",
        description="Runs a study: cells x seeds -> one table with intervals, a figure, and a verdict on each contrast.",
        allow_abbrev=False,
    )

    def seeds(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split(",") if part)

    parser.add_argument(
        "--config", required=True, help="The study, a Python file with get_study()."
    )
    parser.add_argument("--workdir", default="", help="default: runs/studies/NAME")
    parser.add_argument(
        "--seeds", type=seeds, default=(), help="instead of the study's, as in 0,1,2"
    )
    parser.add_argument(
        "--cells", default="*", metavar="GLOB", help="run only the cells of these names"
    )
    parser.add_argument(
        "--list", action="store_true", help="show the runs and which are finished; run nothing"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=0,
        help="cut every run to so many steps, to try the study out (in a workdir of its own)",
    )
    return parser.parse_args(list(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Flags, then `run_study`; 0, or 1 if a cell failed or the study cannot be run, or 130 if it was stopped."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = parse(arguments)
    from absl import logging

    from jaxcl.study import StudyError, load_study, plan, run_study
    from jaxcl.study.cells import Stopped

    logging.set_verbosity(logging.WARNING)
    name = Path(options.config.partition(":")[0]).stem + (
        f"-{options.steps}-steps" if options.steps else ""
    )
    workdir = options.workdir or f"runs/studies/{name}"
    try:
        study = load_study(options.config)
        if options.list:
            from etils import epath

            runs = plan(
                study,
                epath.Path(workdir),
                options.seeds or study.seeds,
                options.cells,
                options.steps,
            )
            for run in runs:
                settings = ", ".join(
                    f"{k}={v}" for k, v in run.cell.settings.items() if not isinstance(v, dict)
                )
                print(f"{run.title:40s} {run.state(study):14s} {settings}")
            hours = len(runs) * study.seconds / 3600
            print(
                f"{len(runs)} runs"
                + (f"; {hours:.1f} hours if each takes its {study.seconds:g} s" if hours else "")
            )
            return 0
        result = run_study(
            study,
            workdir,
            seeds=options.seeds,
            pattern=options.cells,
            steps=options.steps,
            command=shlex.join(["python", "-m", "jaxcl.study", *arguments]),
            say=lambda line: print(line, flush=True),
        )
    except Stopped as stopped:
        print(stopped)
        return 130
    except (StudyError, ValueError, OSError) as error:
        print(f"jaxcl.study: {error}", file=sys.stderr)
        return 1
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
