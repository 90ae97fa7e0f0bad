"""What the commands about data sets have in common: the flags that name one."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

from jaxcl.data.config import DataConfig, parse_source


def data_parser(module: str, description: str) -> argparse.ArgumentParser:
    """A parser of the command ``python -m module`` that knows --data and --set; see `data_config`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, allow_abbrev=False
    )
    parser.add_argument(
        "--data", required=True, help="folder:DIR, table:FILE, cub:DIR, tfds:NAME[@DIR], ..."
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="another setting of the data, as in labels=path, dataset=2019 or splits={'train': 'a', 'test': 'b'};"
        " may be repeated",
    )
    return parser


def data_config(text: str, settings: Sequence[str]) -> DataConfig:
    """The data set of the command line.

    Args:
      text: "KIND", "KIND:PATH" or "tfds:NAME@DIR".
      settings: "FIELD=VALUE" of `DataConfig`.

    Raises:
      ValueError: an unknown field, with the nearest name, or a value that does not fit.
    """
    known = {field.name: field for field in dataclasses.fields(DataConfig)}
    fields: dict[str, Any] = parse_source(text)
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"--set {setting}: expected FIELD=VALUE of the data; {hint}")
        try:
            fields[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            fields[name] = value
    return DataConfig(**fields)
