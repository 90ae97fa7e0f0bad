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
    usual = dataclasses.asdict(DataConfig())
    fields: dict[str, Any] = parse_source(text)
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or name not in usual:
            near = difflib.get_close_matches(name, usual, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(usual)}"
            raise ValueError(f"--set {setting}: expected FIELD=VALUE of the data; {hint}")
        fields[name] = _fitting(setting, setting_value(value, usual[name]), usual[name])
    return DataConfig(**fields)


def setting_value(text: str, usual: object) -> Any:
    """What a text of the command line says, of a setting whose usual value is `usual`.

    It is a Python literal or a word. Where text is usual a number is text too: `2019` may be a version.
    """
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    if isinstance(usual, str) and isinstance(value, int | float | complex):
        return text
    return value


def _fitting(setting: str, value: Any, usual: object) -> Any:
    """The value as the type of the usual one: lists as tuples, whole numbers as float; ValueError if it is of another."""
    if isinstance(usual, tuple) and isinstance(value, list):
        return tuple(value)
    if isinstance(usual, float) and type(value) is int:
        return float(value)
    if type(value) is not type(usual):
        example = ", as in ('a',) or (4,)" if isinstance(usual, tuple) else ""
        raise ValueError(
            f"--set {setting}: expected {type(usual).__name__}{example}, got {value!r}"
        )
    return value
