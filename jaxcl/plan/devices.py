"""The devices that a program is compiled for: descriptions of TPUs that are not here, and virtual CPU devices."""

import importlib.metadata
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from jaxcl.plan.chips import PlanError, Topology

_LOCKED = re.compile("lockfile|already in use", re.IGNORECASE)
_RETRY_SECONDS = 5.0
# Without these libtpu asks the metadata server of a cloud machine who it is, and prints what it thinks of the answer. A
# description needs no answer.
_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def devices(topology: Topology, wait: float, say: Callable[[str], None]) -> list[jax.Device]:
    """The devices of a TPU slice or of a virtual CPU machine.

    Args:
      topology: what is asked for; GPUs cannot be described without one.
      wait: how many seconds to wait for another process that has libtpu.
      say: gets a line when waiting begins.

    Raises:
      PlanError: libtpu is missing, stays locked, or knows no such slice; too few CPU devices.
    """
    return _cpu(topology) if topology.chip.platform == "cpu" else _tpu(topology, wait, say)


def versions() -> dict[str, str]:
    """Of the packages on which a compiled program depends; libtpu is "" where it is not installed."""
    try:
        libtpu = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        libtpu = ""
    return {"jax": jax.__version__, "libtpu": libtpu}


def _cpu(topology: Topology) -> list[jax.Device]:
    count = topology.devices
    try:
        if jax.config.values["jax_num_cpu_devices"] < count:
            jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX runs already, perhaps with enough of them
        pass
    found = jax.devices("cpu")
    if len(found) < count:
        raise PlanError(
            f"topology {topology.text!r}: JAX already runs with {len(found)} CPU device(s) in this process; start a new one"
        )
    return found[:count]


def _tpu(topology: Topology, wait: float, say: Callable[[str], None]) -> list[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise PlanError(
            "compiling for TPU needs the libtpu wheel (no TPU): pip install -e '.[tpu]', or pip install 'jax[tpu]'"
        )
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if topology.megacore:
        options["chip_config_name"] = "megacore"
    if math.prod(topology.grid) < 4:
        # A host has 2x2 chips unless told otherwise.
        options["chips_per_host_bounds"] = [*topology.grid, *[1] * (3 - len(topology.grid))]
    name = f"{topology.text.partition(':')[0].strip().lower()}:{'x'.join(map(str, topology.grid))}"
    deadline = time.monotonic() + wait
    waiting = False
    while True:
        try:
            with _environment(_ALONE):
                found = topologies.get_topology_desc(name, "tpu", **options).devices
            break
        except (RuntimeError, ValueError, NotImplementedError) as error:
            text = str(error).partition("\n")[0]
            if not _LOCKED.search(text):
                raise PlanError(f"libtpu has no slice {name!r}: {text}") from error
            if time.monotonic() >= deadline:
                raise PlanError(
                    f"another process has libtpu, and had it for {wait:.0f} seconds (only one may at a time): wait for its end,"
                    " give more time with --wait=SECONDS, or set ALLOW_MULTIPLE_LIBTPU_LOAD=1, which is safe where both only"
                    f" compile (libtpu: {text})"
                ) from error
            if not waiting:
                say(f"another process has libtpu; waiting for it, {wait:.0f} seconds at most")
                waiting = True
            time.sleep(min(_RETRY_SECONDS, max(0.0, deadline - time.monotonic())))
    if len(found) != topology.devices:
        raise PlanError(f"{name!r} has {len(found)} devices, expected {topology.devices}")
    return list(found)


@contextmanager
def _environment(defaults: dict[str, str]) -> Iterator[None]:
    """Within, these variables have values; what is set already stays."""
    added = [name for name in defaults if name not in os.environ]
    os.environ.update({name: defaults[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


_SIZE = r"([\d.]+)([KMGT]?)i?B?"
_OUT_OF_MEMORY = (
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
    re.compile(rf"required for .*?\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
)


def out_of_memory(error: BaseException) -> int | None:
    """Bytes that a program would have needed, if a compiler refused it for lack of memory; else None.

    XLA gives up before it has placed everything, so it may need more.
    """
    text = str(error)
    for pattern in _OUT_OF_MEMORY:
        if found := pattern.search(text):
            return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))
    return 0 if "RESOURCE_EXHAUSTED" in text else None
