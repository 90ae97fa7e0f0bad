"""One run at a time in a workdir: a lock that the system takes back when its process ends, however it ends."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator

from etils import epath

from jaxcl import mesh

NAME = "run.lock"
"""The file in the workdir that is locked. That it is there says nothing: it stays when the run has ended."""


_SETTLE = 0.2  # seconds in which who has just locked the file has written its name


class InUseError(OSError):
    """Another run has the workdir.

    Attributes:
      holder: "process PID on HOST" of its process 0; "" where that is not known.
    """

    def __init__(self, message: str, holder: str) -> None:
        super().__init__(message)
        self.holder = holder


@contextlib.contextmanager
def hold(workdir: epath.PathLike, say: Callable[[str], None], name: str = NAME) -> Iterator[None]:
    """Within, no other run can hold the workdir, which is made if it is not there. Reading it stays free.

    Process 0 holds the lock; the others come here too and learn whether it could. A bucket has no locks: there, and in a
    file system without them, nothing is held.

    Args:
      workdir: of the run.
      say: gets a line where the file system has no locks.
      name: of the file that is locked.

    Raises:
      InUseError: another run has the workdir.
      OSError: the workdir cannot be written.
    """
    root = epath.Path(workdir)
    if "://" in os.fspath(root):
        yield
        return
    held: int | None = None
    refused: OSError | None = None
    if mesh.is_main():
        try:
            held = _take(root, say, name)
        except OSError as error:  # the others must hear of it, whatever it is
            refused = error
    try:
        if mesh.agree(refused is not None):
            raise refused or OSError(f"process 0 could not have {root}, and says why")
        yield
    finally:
        if held is not None:
            # An error that is under way must not be hidden by one of these.
            with contextlib.suppress(OSError):
                os.ftruncate(held, 0)
            with contextlib.suppress(OSError):
                os.close(held)


def _take(root: epath.Path, say: Callable[[str], None], name: str) -> int:
    """The descriptor of the locked file; to close it is to unlock it."""
    root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(root / name, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(_SETTLE)  # until then the name may be that of a run that was killed
        holder = os.read(descriptor, 1000).decode(errors="replace").strip()
        os.close(descriptor)
        raise InUseError(
            f"{root} is in use: {holder or 'another process'} trains there, and two runs would spoil each other's files."
            " Wait for it or stop it (it saves at Ctrl-C), or choose another --workdir",
            holder,
        ) from None  # the lock's EAGAIN is no fault of storage, which would be met by starting again
    except OSError as error:
        say(
            f"{root} cannot be locked ({error.strerror}): nothing keeps another run from writing there"
        )
    # A name for others to read: on a full disk there is none, and the run's own files say why.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor
