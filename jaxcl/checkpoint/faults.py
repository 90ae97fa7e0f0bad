"""Faults of the storage: which of them pass, which mean damage, and how a read is tried again.

A network disk that is gone for a minute says nothing of the checkpoint that lies on it: taken for
damage, it would cost the newest step, and with the last one the run. Local files, epath's buckets
and tensorstore each have errors of their own for that.
"""

import errno
import logging
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from jaxcl.checkpoint.errors import CheckpointError, DamagedError, UnreachableError, first_line

T = TypeVar("T")

PAUSES = (1.0, 4.0, 16.0, 60.0)
"""Seconds between the attempts. Processes wait 600 s for one another, in which this has to fit."""

_log = logging.getLogger(__name__)

_PASSING = {
    *(errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.EAGAIN, errno.EBUSY, errno.EINTR),
    *(errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ENOTCONN),
    *(errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET),
    *(errno.ENOLINK, errno.ESHUTDOWN, errno.EPROTO),
}
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
# The names that clients of buckets give to the same, without a common type.
_PASSING_TYPES = re.compile(
    "(Unavailable|DeadlineExceeded|ResourceExhausted|Internal|Aborted|Connection|Transport"
    "|ServerDisconnected|ClientPayload|ReadTimeout|ConnectTimeout)Error|ReadTimeout|ConnectTimeout"
)
_PASSING_HTTP = {408, 429, 500, 502, 503, 504}
# As tensorstore's errors begin, which are of the type ValueError whatever they are.
_PASSING_STATUS = re.compile(
    "(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|RESOURCE_EXHAUSTED|UNAVAILABLE|UNKNOWN): "
)
_DENIED_STATUS = re.compile("(PERMISSION_DENIED|UNAUTHENTICATED): ")
_FULL = re.compile("no space left|disk quota|file too large", re.IGNORECASE)
_OS_ERROR = re.compile(r"\[(?:os_error_code='|OS error )(\d+)")  # EIO's status is UNKNOWN


def may_pass(error: BaseException | None) -> bool:
    """Whether an error, or what it comes from, is a fault that the same call may not meet again.

    It is one of storage or the network. A full disk is none, as it stays full; nor is what XLA
    raises, whose lack of memory bears the same name (`mesh.lost_another` judges that).
    """
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError | DamagedError):
            return False
        if isinstance(error, UnreachableError) or _passes(error):
            return True
        error = error.__cause__
    return False


def _passes(error: BaseException) -> bool:
    text = str(error)
    if _FULL.search(text) or isinstance(error, BrokenPipeError):  # that is of the terminal
        return False
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    number = _number(error)
    if number is not None:
        return number in _PASSING
    if isinstance(error, ValueError | RuntimeError) and _PASSING_STATUS.match(text):
        return True
    answer: Any = getattr(error, "code", None)
    is_http = isinstance(answer, int) and answer in _PASSING_HTTP
    return is_http or _PASSING_TYPES.fullmatch(type(error).__name__) is not None


def _number(error: BaseException) -> int | None:
    """The errno of an OSError, or in a text of tensorstore."""
    if isinstance(error, OSError):
        return error.errno
    found = _OS_ERROR.search(str(error)) if isinstance(error, ValueError) else None
    return int(found[1]) if found else None


def is_missing(error: OSError | ValueError) -> bool:
    """Whether there is no such file: the path leads to none, or to something that is no file."""
    missing = FileNotFoundError | NotADirectoryError | IsADirectoryError
    return isinstance(error, missing) or _number(error) in _MISSING


def final(error: OSError | ValueError, what: str) -> CheckpointError:
    """The error for a read that failed by a fault that does not pass.

    Args:
      error: of the file system, or of tensorstore or a decoder (ValueError).
      what: could not be read.

    Returns:
      DamagedError where a file is missing or holds something else; CheckpointError where it may not
      be read, which says nothing of what is in it.
    """
    words = f"{what} cannot be read: {first_line(error)}"
    number = _number(error)
    if isinstance(error, OSError) or number is not None:
        is_damage = is_missing(error)
    else:
        is_damage = not _DENIED_STATUS.match(str(error))
    return DamagedError(words) if is_damage else CheckpointError(words)


def again(read: Callable[[], T], what: str) -> T:
    """The result of a read, which is tried again after each of `PAUSES` where its fault may pass.

    Args:
      read: is called without arguments; it leaves nothing behind when it fails.
      what: is read.

    Raises:
      UnreachableError: each attempt met such a fault.
      Exception: any other that `read` raises, at once.
    """
    pauses = iter(PAUSES)
    while True:
        try:
            return read()
        except Exception as error:
            if isinstance(error, UnreachableError) or not may_pass(error):
                raise
            pause = next(pauses, None)
            if pause is None:
                raise UnreachableError(
                    f"{what} cannot be read, in {len(PAUSES) + 1} attempts: {first_line(error)}."
                    " The storage does not answer, which says nothing of what is in it: nothing was"
                    " renamed or removed"
                ) from error
            _log.warning(
                "%s cannot be read: %s. Tried again in %g s", what, first_line(error), pause
            )
        time.sleep(pause)
