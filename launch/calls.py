"""What the launchers share: calls of other programs, waiting with a limit, and the command of the run.

Only the standard library: a launcher runs where no JAX is installed.
"""

import pathlib
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]

STOPPED = 143
"""Exit code of a run that a signal stopped and that has saved itself."""

FINAL = (1, 2, 126, 127)
"""Exit codes that the same command would meet again: wrong settings, wrong flags, no such program."""


class LaunchError(RuntimeError):
    """A launch that cannot start or go on; the text says why and what to do."""


class Answer(NamedTuple):
    """What a program answered: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str


def require(program: str, advice: str) -> None:
    """Checks that a program is on PATH.

    Raises:
      LaunchError: it is not; with the advice.
    """
    if shutil.which(program) is None:
        raise LaunchError(f"{program} was not found on PATH: {advice}")


def call(command: Sequence[str], *, stdin: str | None = None, seconds: float = 300) -> Answer:
    """Runs a program to its end; one that does not end in time answers with code 124."""
    try:
        done = subprocess.run(
            command,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return Answer(124, "", f"{command[0]} gave no answer within {seconds:.0f} s")
    return Answer(done.returncode, done.stdout, done.stderr)


class Pace:
    """Pauses between two looks at something: each half as long again as the one before, up to a longest, until a limit."""

    def __init__(self, first: float, longest: float, limit: float, what: str) -> None:
        """All times in seconds; `what` is being waited for, in the words of the error."""
        self.pause, self.longest, self.limit, self.what = first, longest, limit, what
        self.started = time.monotonic()

    def wait(self) -> None:
        """Sleeps.

        Raises:
          LaunchError: the limit has passed.
        """
        waited = time.monotonic() - self.started
        if waited >= self.limit:
            raise LaunchError(f"{self.what}: not within {waited / 3600:.2g} h, given up")
        time.sleep(min(self.pause, self.limit - waited))
        self.pause = min(1.5 * self.pause, self.longest)


def check_name(name: str) -> None:
    """Checks a name that clouds accept.

    Raises:
      LaunchError: they would not.
    """
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
        raise LaunchError(
            f"--name={name}: expected up to 40 lower-case letters, digits and hyphens, the first one a letter"
        )


def check_config(config: str) -> pathlib.Path:
    """The file of a `--config` value ("configs/simclr_tpu.py:1000"), relative to the repository.

    Raises:
      LaunchError: it is not a file of the repository.
    """
    path = config.partition(":")[0]
    if pathlib.PurePath(path).is_absolute() or ".." in pathlib.PurePath(path).parts:
        raise LaunchError(f"--config={config}: expected a path relative to {ROOT}")
    if not (ROOT / path).is_file():
        known = ", ".join(sorted(f"configs/{p.name}" for p in (ROOT / "configs").glob("*.py")))
        raise LaunchError(f"--config={config}: {ROOT / path} is not a file. There are {known}")
    return pathlib.Path(path)


def check_workdir(workdir: str, why: str) -> None:
    """Checks that a workdir is a bucket or an absolute path.

    Raises:
      LaunchError: it is neither; `why` says what would become of it.
    """
    if not re.match(r"(gs|s3)://[^/]+/.|/.", workdir):
        raise LaunchError(
            f"--workdir={workdir}: expected gs://BUCKET/DIR or an absolute path that is the same shared disk everywhere;"
            f" {why}"
        )


def check_env(pairs: Sequence[str]) -> None:
    """Checks settings of the environment.

    Raises:
      LaunchError: one is not NAME=VALUE.
    """
    for pair in pairs:
        if not re.match(r"[A-Za-z_]\w*=", pair):
            raise LaunchError(f"--env={pair}: expected NAME=VALUE")


def training(python: str, config: str, workdir: str, rest: Sequence[str]) -> list[str]:
    """The command of each process of the run."""
    return [
        python,
        "-m",
        "jaxcl.main",
        f"--config={config}",
        f"--workdir={workdir}",
        "--multihost",
        f"--stopped_exit_code={STOPPED}",
        *rest,
    ]
