"""The settings of a command line, and what is wrong with them in a line instead of a traceback."""

import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from jaxcl import config as config_lib
from jaxcl.config import ConfigError

SETTING = "--config."


def parse(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Gives absl's flags the values of a command line.

    Args:
      argv: name of the command and arguments.
      values: where the flags are.

    Returns:
      name of the command and the arguments that are no flags.

    Raises:
      flags.Error: an unknown flag, or a value that does not suit its flag or setting.
      ConfigError: no such config file, or one that refuses its argument; a setting that the config does not have, with the
        nearest.
    """
    path = _config_path(argv)
    # What is wrong with the file ml_collections tells by a traceback, or not before the value is used.
    known = config_lib.flatten(config_lib.load(path).to_dict()) if path else {}
    try:
        return values(list(argv))
    except (AttributeError, KeyError) as error:  # ml_collections' for an unknown setting
        text = _unknown_setting(argv, path, known) or " ".join(str(error).split())
        raise ConfigError(text) from error


def parse_or_exit(argv: Sequence[str]) -> list[str]:
    """`parse`, for `app.run(main, flags_parser=...)`: a mistake ends the program with its text."""
    try:
        return parse(argv)
    except (flags.Error, ConfigError) as error:
        sys.exit(f"jaxcl: {error}")


def _config_path(argv: Sequence[str]) -> str:
    """The value of --config, or ""."""
    for argument, following in itertools.pairwise((*argv, "")):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            return value if equals else following
    return ""


def _unknown_setting(argv: Sequence[str], path: str, known: Mapping[str, Any]) -> str:
    """Text about the first setting of a command line that its config file does not have, or ""."""
    for argument in argv:
        key = argument.removeprefix(SETTING).partition("=")[0]
        if argument.startswith(SETTING) and known and key not in known:
            return f"{path} has no setting {config_lib.nearest(key, known)}"
    return ""
