"""What a run takes of memory: one measurement for all benches."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import sys
from collections.abc import Callable
from typing import Any, Literal

MIB = 2**20


def peak_mib(
    make: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...], gib: float
) -> float:
    """By how many MiB a new process grows in one run; infinite if that takes more than `gib`.

    Args:
        make: a function of a module, by which the new process finds it; it prepares a run, such as by compiling, and returns it.
        arguments: of `make`.
        gib: what the run may take.
    """
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=measure, args=(send, make, arguments, gib))
    child.start()
    send.close()
    try:
        grown: float = receive.recv()
    except EOFError:  # it ended without an answer: out of memory
        grown = math.inf
    child.join()
    return grown


def measure(
    answer: Any, make: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...], gib: float
) -> None:
    """Makes a run and runs it once in this process, and sends by how many MiB the process grew in it."""
    run = make(*arguments)
    before = resident_mib("now")
    limit_memory(before / 1024 + gib)
    try:
        run()
    except (MemoryError, RuntimeError):  # what torch and JAX raise when there is no more
        answer.send(math.inf)
        return
    answer.send(resident_mib("peak") - before)


def limit_memory(gib: float) -> None:
    """Lets this process allocate so much in all, where the system can be told."""
    import resource

    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (int(gib * 2**30), resource.RLIM_INFINITY))


def resident_mib(when: Literal["now", "peak"]) -> float:
    """The resident size of this process, now or the largest so far, in MiB."""
    try:
        # Not ru_maxrss: a new process inherits that of the one that started it.
        with open("/proc/self/status", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["VmHWM" if when == "peak" else "VmRSS"].split()[0]) / 1024
    except FileNotFoundError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (MIB if sys.platform == "darwin" else 1024)
