"""The command: ``python -m jaxcl.bench loss``, ``cache`` or ``metric``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import jax

from jaxcl.bench import cache, loss, metric

BENCHES = {"cache": cache, "loss": loss, "metric": metric}


def flags() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxcl.bench", description="Memory and time, measured on this machine."
    )
    benches = parser.add_subparsers(dest="bench", required=True)
    for name, module in BENCHES.items():
        assert module.__doc__
        about = module.__doc__.splitlines()[0].replace("``", "")
        own = benches.add_parser(name, help=about, description=about)
        module.add_flags(own)
        own.add_argument("--json", default="", help="where to write the tables")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Flags, then the bench."""
    options = flags().parse_args(arguments)
    if "devices" in options:
        jax.config.update("jax_num_cpu_devices", options.devices)
    found = BENCHES[options.bench].bench(options)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
