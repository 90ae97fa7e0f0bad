"""`python -m jaxcl.plan --config=configs/simclr_tpu.py --topology=v5e:4x8 [--config.section.key=value ...]`."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags, logging
from etils import epath
from ml_collections import config_flags
from rich.console import Console

from jaxcl import command
from jaxcl import config as config_lib
from jaxcl.plan import golden, page
from jaxcl.plan.chips import PlanError, known, parse
from jaxcl.plan.plan import Plan, make, weak_scaling


def main(arguments: Sequence[str] | None = None) -> None:
    """Flags, then the plan and its page."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options, rest = _parser().parse_known_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    progress = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    logging.set_verbosity(logging.WARNING)
    try:
        if options.write_golden and not options.golden:
            raise PlanError("--write_golden needs --golden=FILE")
        config = _config(rest)
        topology = parse(options.topology, options.megacore)
        # Nothing runs on a device, and a TPU or GPU of this machine may be busy with a training.
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_x64", config.mesh.x64)
        if options.weak_scaling:
            plans = weak_scaling(config, topology, options.wait, progress.print)
            console.print(page.scaling_table(plans))
        else:
            plans = [make(config, topology, options.wait, progress.print)]
            console.print(page.page(plans[0], options.rows))
        path = _json_name(plans[-1], options.weak_scaling) if options.json is None else options.json
        if path:
            tables: Any = [plan.to_dict() for plan in plans]
            text = json.dumps(tables if options.weak_scaling else tables[0], indent=2)
            epath.Path(path).write_text(text + "\n")
            progress.print(f"everything that is known of it: {path}")
        far = _against_record(plans, options.golden, options.write_golden, progress)
    except (ValueError, OSError, flags.Error) as error:
        if options.traceback:
            raise
        sys.exit(f"jaxcl: {error}\n(--traceback shows where)")
    if far:
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jaxcl.plan",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="What the train step of a configuration needs of each device of a pod, without the pod.",
        epilog="--config=FILE names the experiment, --config.section.key=value overrides a setting.\n"
        f"Topologies: {known()}.",
    )
    parser.add_argument(
        "--topology", required=True, help="v5e:4x8, v4:2x2x4, gpu:8xa100-80, cpu:8, ..."
    )
    parser.add_argument("--megacore", action="store_true", help="v4: a chip is one device, not two")
    parser.add_argument(
        "--weak_scaling",
        "--weak-scaling",
        action="store_true",
        help="plan the same share of the batch on 1, 2, 4, ... chips, up to those of the topology",
    )
    parser.add_argument(
        "--json",
        help="where to write everything that is known; plan-NAME-TOPOLOGY.json here unless told otherwise, nowhere for ''",
    )
    parser.add_argument("--rows", type=int, default=12, help="places of collectives on the page")
    parser.add_argument(
        "--golden",
        default="",
        help="file of recorded plans to compare with; exit code 1 beyond 5 %%",
    )
    parser.add_argument(
        "--write_golden", action="store_true", help="record the plans in --golden instead"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=600.0,
        help="seconds to wait for another process that has libtpu",
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    return parser


def _json_name(plan: Plan, weak_scaling: bool) -> str:
    """The file of a plan, in the current directory."""
    name = f"plan-{plan.name}-{plan.topology.text}{'-weak-scaling' if weak_scaling else ''}"
    return re.sub(r"[^\w.-]+", "-", name) + ".json"


def _config(arguments: Sequence[str]) -> config_lib.Config:
    """The configuration that the remaining arguments name."""
    values = flags.FlagValues()
    line = ["jaxcl.plan", *arguments]
    config_flags.DEFINE_config_file(
        "config", None, "The experiment.", lock_config=True, flag_values=values, sys_argv=line
    )
    left = command.parse(line, values)[1:]
    if left:
        raise PlanError(f"unexpected arguments {left}: settings are --config.key=value")
    if values["config"].value is None:
        raise PlanError(
            "--config=FILE is missing: name the experiment, for example configs/simclr_tpu.py"
        )
    return config_lib.from_dict(values["config"].value)


def _against_record(plans: Sequence[Plan], path: str, record: bool, progress: Console) -> bool:
    """Compares plans with their records, or makes these; returns whether any is too far from its own."""
    if not path:
        return False
    far = False
    for plan in plans:
        if record:
            golden.write(path, plan)
            continue
        known_numbers = golden.recorded(path, plan)
        if known_numbers is None:
            progress.print(
                f"{path} has no record of {golden.name(plan)} by {golden.versions(plan)}"
            )
            far = True
            continue
        lines = golden.differences(plan, known_numbers)
        for line in lines:
            progress.print(f"{golden.name(plan)}: {line}")
        far |= bool(lines)
    return far


if __name__ == "__main__":
    main()
