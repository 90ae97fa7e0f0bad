"""The arrays of one checkpoint on disk: the one place that knows Orbax and tensorstore.

One process writes every array, whole, from its own memory, so that what is digested, written and
read back is the same buffer, and no barrier or collective of Orbax is part of a save. What is
written is an ordinary Orbax checkpoint in the subdirectory `state`.

It is read with tensorstore, on which Orbax is built: some arrays can be read without the others,
what a damaged file says of a shape is known before memory is taken, and errors are only raised.
"""

import logging
import math
import os
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from jaxcl import mesh
from jaxcl.checkpoint import faults, files, leaves
from jaxcl.checkpoint.errors import DamagedError

_NAME = "state"

REQUESTS = {"max_retries": 4, "initial_delay": "1s", "max_delay": "8s"}
"""How tensorstore repeats a request to a bucket. By default it would for a quarter of an hour, for
which no other process waits; `faults.again` reads anew after it."""


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    """Keeps Orbax's progress and advice off the terminal; its errors are raised, and told by us."""
    return f"{os.sep}orbax{os.sep}" not in record.pathname


logging.getLogger("absl").addFilter(_is_not_of_orbax)

# Orbax numbers its operations in a global counter; the newest and the best may be saved at once.
_one_at_a_time = threading.Lock()


class _SettlingHandler(ocp.type_handlers.NumpyHandler):
    """Orbax's own, but a write that fails is raised when all have ended, not while others go on.

    Otherwise the others would write into a directory that is being removed, and print tracebacks
    from their threads.
    """

    def __init__(self) -> None:
        super().__init__()
        self._failures: list[Exception] = []

    async def _open_and_write(self, *args: Any, **kwargs: Any) -> None:
        try:
            await super()._open_and_write(*args, **kwargs)
        except Exception as error:
            self._failures.append(error)

    async def _background_serialize(self, *args: Any, **kwargs: Any) -> None:
        await super()._background_serialize(*args, **kwargs)
        if self._failures:
            raise self._failures[0]


def write(directory: epath.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by path into a new directory; returns when Orbax has committed them."""
    directory.mkdir(parents=True)
    filled = {path: array for path, array in arrays.items() if array.size}
    if not filled:  # Orbax writes no empty trees, and no arrays without elements
        return
    this = mesh.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=this, active_processes={this})
    handler = ocp.PyTreeCheckpointHandler(
        use_zarr3=True,
        use_compression=False,  # trained weights do not compress
        multiprocessing_options=alone,
        type_handler_registry=ocp.type_handlers.create_type_handler_registry(
            (np.ndarray, _SettlingHandler())
        ),
    )
    checkpointer = ocp.Checkpointer(handler, multiprocessing_options=alone)
    with _one_at_a_time, checkpointer:
        checkpointer.save(directory / _NAME, ocp.args.PyTreeSave(leaves.nest(filled)))


def read(
    directory: epath.Path, wanted: Mapping[str, tuple[tuple[int, ...], np.dtype]]
) -> dict[str, np.ndarray]:
    """Reads arrays by path, and no others, to this process's memory.

    Args:
      directory: a finished checkpoint.
      wanted: path -> shape and dtype that the array must have.

    Raises:
      DamagedError: files are missing or cannot be decoded, or an array has another shape or dtype.
      UnreachableError: the storage does not answer, in several attempts.
      CheckpointError: the files may not be read.
    """
    return faults.again(lambda: _read(directory, wanted), f"{directory}")


def _read(
    directory: epath.Path, wanted: Mapping[str, tuple[tuple[int, ...], np.dtype]]
) -> dict[str, np.ndarray]:
    """`read`, in one attempt."""
    filled = {path: kind for path, kind in wanted.items() if math.prod(kind[0])}
    found = {path: np.empty(*kind) for path, kind in wanted.items() if path not in filled}
    _check_size(directory, filled)
    futures = _open(directory / _NAME, filled)
    opened = {}
    for path, (shape, dtype) in filled.items():
        array = _result(futures[path], path)
        if array.shape != shape or array.dtype.numpy_dtype != dtype:
            raise DamagedError(f"{path}: its files hold {array.dtype.name}{list(array.shape)}")
        opened[path] = array
    futures = {path: array.read() for path, array in opened.items()}
    return found | {path: _result(future, path) for path, future in futures.items()}


def _result(future: Any, path: str) -> Any:
    try:
        return future.result()
    except (ValueError, OSError) as error:  # so tensorstore reports all that is wrong in storage
        if faults.may_pass(error):
            raise
        raise faults.final(error, path) from error


def _open(directory: epath.Path, paths: Mapping[str, Any]) -> dict[str, Any]:
    """Futures of the stored arrays (Orbax joins the keys of a path by dots)."""
    where = os.fspath(directory) + "/"
    base: Any = {"driver": "file", "path": where} if files.is_local(directory) else where
    context = ts.Context(
        {
            "cache_pool": {"total_bytes_limit": 100_000_000},  # for the index
            "gcs_request_retries": REQUESTS,
            "s3_request_retries": REQUESTS,
        }
    )
    return {
        path: ts.open(
            {
                "driver": "zarr3",
                "kvstore": {"driver": "ocdbt", "base": base, "path": path.replace("/", ".") + "/"},
            },
            read=True,
            open=True,
            context=context,
        )
        for path in paths
    }


def _check_size(
    directory: epath.Path, wanted: Mapping[str, tuple[tuple[int, ...], np.dtype]]
) -> None:
    """Refuses shapes for which there are not enough bytes on disk, before memory is taken."""
    try:
        have = files.size(directory)
    except OSError as error:
        if faults.may_pass(error):
            raise
        raise faults.final(error, "the size of its files") from error
    need = sum(math.prod(shape) * dtype.itemsize for shape, dtype in wanted.values())
    if have is not None and have < need:
        raise DamagedError(f"its files have {have:,} bytes, but its arrays {need:,}")
