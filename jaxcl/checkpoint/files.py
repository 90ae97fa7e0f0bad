"""Names and durable file operations in a directory of checkpoints, local or in a bucket."""

import os
import re
import shutil
from collections.abc import Callable

from etils import epath

from jaxcl.checkpoint import faults

_STEP = re.compile(r"0|[1-9][0-9]*")


def absolute(path: epath.PathLike) -> epath.Path:
    """The path without "~", and absolute if it is local (Orbax takes no other)."""
    given = epath.Path(path).expanduser()
    return epath.Path(os.path.abspath(given)) if is_local(given) else given


def steps(directory: epath.Path, suffix: str = "") -> list[int]:
    """Steps of the entries `<step><suffix>`, complete or not, in ascending order."""
    names = [path.name for path in _listed(directory)]
    stems = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
    return sorted(int(stem) for stem in stems if _STEP.fullmatch(stem))


def entries(directory: epath.Path, infix: str) -> list[epath.Path]:
    """Entries `<step><infix>...`, sorted by name."""
    stems = {p: p.name.partition(infix) for p in _listed(directory)}
    return sorted(p for p, (step, mark, _) in stems.items() if mark and _STEP.fullmatch(step))


def _listed(directory: epath.Path) -> list[epath.Path]:
    """The entries of a directory, none if it is not there.

    It is listed without being asked first whether it exists: a storage that does not answer would
    say no, and the run would begin from step 0.
    """
    try:
        return faults.again(lambda: list(directory.iterdir()), f"{directory}")
    except FileNotFoundError:
        return []
    except Exception as error:
        if type(error).__name__ == "NotFoundError":  # TensorFlow's
            return []
        raise


def exists(path: epath.Path) -> bool:
    """Whether a file or directory is there.

    Raises:
      UnreachableError: the storage does not answer, in several attempts.
      OSError: it is not to be known for another reason.
    """
    if not is_local(path):
        return faults.again(path.exists, f"{path}")
    return _answers(lambda: os.stat(path), path)


def is_file(path: epath.Path) -> bool:
    """Whether a file is there; in a bucket it is read, as there `exists` may take a fault for no.

    Raises:
      UnreachableError: the storage does not answer, in several attempts.
      OSError: it is not to be known for another reason.
    """
    return _answers((lambda: os.stat(path)) if is_local(path) else path.read_bytes, path)


def _answers(ask: Callable[[], object], path: epath.Path) -> bool:
    try:
        faults.again(ask, f"{path}")
    except Exception as error:
        if _is_missing(error):
            return False
        raise
    return True


def _is_missing(error: Exception) -> bool:
    if type(error).__name__ == "NotFoundError":  # TensorFlow's
        return True
    return isinstance(error, OSError) and faults.is_missing(error)


def is_local(path: epath.Path) -> bool:
    """Whether the path is in a file system, not in a bucket."""
    return "://" not in os.fspath(path)


def size(path: epath.Path) -> int | None:
    """Bytes of all files under the path; None for a bucket.

    Raises:
      OSError: a directory cannot be listed, or a file is gone.
    """
    if not is_local(path):
        return None
    return sum(
        os.path.getsize(os.path.join(root, name))
        for root, _, names in os.walk(path, onerror=_raise)
        for name in names
    )


def _raise(error: OSError) -> None:
    """What cannot be listed has not no files."""
    raise error


def free_bytes(path: epath.Path) -> int | None:
    """Free bytes of the file system of the path or its nearest parent; None for a bucket."""
    if not is_local(path):
        return None
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def in_words(size: int | None) -> str:
    """A number of bytes for people: "91.6 MB"."""
    if size is None:
        return "unknown"
    scaled, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if scaled < 1000:
            break
        scaled, unit = scaled / 1000, larger
    return f"{scaled:.3g} {unit}"


def write_synced(path: epath.Path, text: str) -> None:
    """Writes a file that is either there, whole and durable, or not there at all."""
    if not is_local(path):
        path.write_text(text)
        return
    temporary = os.fspath(path) + ".tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync(os.fspath(path.parent))


def sync_tree(path: epath.Path) -> None:
    """Makes a directory durable, with all in it and its name; in a bucket everything is."""
    if not is_local(path):
        return
    for root, _, names in os.walk(path):
        for name in names:
            _sync(os.path.join(root, name))
        _sync(root)
    _sync(os.fspath(path.parent))


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unused_name(path: epath.Path) -> epath.Path:
    """`path` with the first free number behind it: "200.damaged-1"."""
    number = 1
    while exists(candidate := path.parent / f"{path.name}-{number}"):
        number += 1
    return candidate
