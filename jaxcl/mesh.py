"""Devices and processes: the mesh, shardings, and the way of arrays between host and devices.

Nothing else in jaxcl knows how many devices or processes there are. The train step is written in global view: one axis,
`data`, over which the batch is sharded, and parameters that are placed by rules on their paths (all replicated today).
"""

import dataclasses
import glob
import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, get_args

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcl.losses import nce

AXIS = "data"

# How errors of JAX's runtime begin that a lost device or process can cause.
_LOST = re.compile("(ABORTED|CANCELLED|DATA_LOSS|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|UNKNOWN): ")

# The device files of TPUs, and of GPUs of NVIDIA, AMD and Windows' Linux.
_ACCELERATORS = (
    *("/dev/accel*", "/dev/vfio/[0-9]*"),
    *("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg"),
)

# (pattern of the path in the train state, partition). The first pattern that matches decides.
PARTITION_RULES: tuple[tuple[str, P], ...] = ((r".*", P()),)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Where the run takes place.

    Attributes:
      platform: "" for what JAX finds, or "cpu", "gpu", "tpu".
      cpu_devices: number of virtual devices when the platform is the CPU; 0 leaves JAX's default (one). Several
        virtual devices are often faster than one on a multi-core CPU, and change no number but by rounding.
      x64: 64-bit mode, for exact comparisons.
      compile_cache: directory of the persistent compilation cache; "" turns it off.
      loss_impl: form in which losses look at the similarities of all pairs: "dense", "tiled" or "ring", the same numbers in
        different memory and time; "auto" chooses for each (`losses.nce`). "ring" is for rows that are sharded: a queue, which
        every device has, is met in tiles.
      loss_kernel: what walks over the tiles: "xla", or "pallas" for TPU, in float32, with which "auto" takes no dense form. "auto"
        is "xla". Where a kernel can pay: `losses.nce.using`.
    """

    platform: str = ""
    cpu_devices: int = 0
    x64: bool = False
    compile_cache: str = "~/.cache/jaxcl/xla"
    loss_impl: str = "auto"
    loss_kernel: str = "auto"

    def __post_init__(self) -> None:
        if self.platform not in ("", "cpu", "gpu", "cuda", "rocm", "tpu"):
            raise ValueError(
                f"mesh.platform={self.platform!r}: expected '' (what JAX finds), 'cpu', 'gpu', 'cuda', 'rocm' or 'tpu'"
            )
        if self.cpu_devices < 0:
            raise ValueError(f"mesh.cpu_devices={self.cpu_devices}: expected 0 or more")
        for field, choices in (("loss_impl", nce.Impl), ("loss_kernel", nce.Kernel)):
            if getattr(self, field) not in get_args(choices):
                raise ValueError(
                    f"mesh.{field}={getattr(self, field)!r}: expected one of {', '.join(get_args(choices))}"
                )
        if self.loss_kernel == "pallas" and (self.loss_impl == "dense" or self.x64):
            raise ValueError(
                f"mesh.loss_kernel='pallas' with loss_impl={self.loss_impl!r}, x64={self.x64}: it walks over tiles in float32;"
                " expected 'auto', 'tiled' or 'ring', and False"
            )


def initialize(config: MeshConfig) -> None:
    """Applies the settings that JAX reads before it starts its devices.

    Raises:
      RuntimeError: JAX's devices are already running and differ from what the settings ask for.
    """
    if config.platform:
        jax.config.update("jax_platforms", config.platform)
    elif not jax.config.values["jax_platforms"] and only_compiles_for_tpu():
        jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", config.x64)
    if config.compile_cache:
        from etils import epath

        jax.config.update(
            "jax_compilation_cache_dir", str(epath.Path(config.compile_cache).expanduser())
        )
    if config.cpu_devices and jax.config.values["jax_num_cpu_devices"] != config.cpu_devices:
        try:
            jax.config.update("jax_num_cpu_devices", config.cpu_devices)
        except RuntimeError as error:
            raise RuntimeError(
                f"mesh.cpu_devices={config.cpu_devices}, but JAX already runs with {jax.device_count()} device(s) in this"
                " process: set it before the first use of JAX, or start a new process"
            ) from error


def only_compiles_for_tpu() -> bool:
    """Whether libtpu is installed on a Linux machine without any accelerator, as it is to compile for TPUs elsewhere.

    JAX would find that out by starting libtpu, which prints a page about it.
    """
    if sys.platform != "linux" or importlib.util.find_spec("libtpu") is None:
        return False
    return not any(glob.glob(pattern) for pattern in _ACCELERATORS)


def join(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Joins the other processes of the run; call it before anything that uses a device.

    Args:
      coordinator: host:port of process 0; None where the platform tells (Cloud TPU, Slurm, Open MPI).
      processes: how many processes there are.
      process: the number of this one.

    Raises:
      ValueError: nothing tells who the others are, or the numbers do not fit.
    """
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise ValueError(f"coordinator {coordinator!r}: expected host:port of process 0")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except ValueError as error:
        if coordinator is None:
            raise ValueError(
                "this process finds no TPU pod, Slurm or Open MPI job around it: start it in one, give --coordinator,"
                f" --processes and --process, or leave --multihost out (JAX: {error})"
            ) from error
        raise


def lost_another(error: BaseException) -> bool:
    """Whether an error means that a device or another process has failed, so that nothing is wrong with the settings.

    Errors of the CPU's collectives arrive as ValueError, with the name of a status in front. A lack of memory is none of
    these: it would come again.
    """
    runtime = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
    return runtime and _LOST.match(str(error)) is not None


def leave(code: int) -> NoReturn:
    """Ends this process with an exit code, also when the other processes do not end.

    JAX would wait for them at its shutdown barrier, for minutes, and then abort with a code of its own.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, `data`, over the given devices (default: all of all processes)."""
    devices = jax.devices() if devices is None else list(devices)
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of the leading axis over `data`."""
    return NamedSharding(mesh, P(AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, P())


def state_shardings(mesh: Mesh, tree: Any, rules: Sequence[tuple[str, P]] = PARTITION_RULES) -> Any:
    """Shardings of a pytree by the first rule that matches each leaf's path ("params/backbone/...").

    Raises:
      ValueError: a leaf is covered by no rule.
    """

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, spec in rules:
            if re.search(pattern, name):
                return NamedSharding(mesh, spec)
        raise ValueError(f"no partition rule covers {name!r}: add a pattern for it")

    return jax.tree.map_with_path(place, tree)


def check_batch_size(mesh: Mesh | int, batch_size: int) -> None:
    """Refuses a batch that does not divide over the devices.

    Args:
      mesh: the mesh, or how many devices there would be.
      batch_size: images of the global batch.

    Raises:
      ValueError: with the nearest batch sizes that do.
    """
    count = mesh if isinstance(mesh, int) else mesh.size
    if batch_size % count:
        below, above = batch_size // count * count, (batch_size // count + 1) * count
        near = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"batch_size={batch_size} does not divide over {count} devices: choose {near}, or another number of devices"
        )


def to_global(mesh: Mesh, local: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a batch -> global arrays sharded over `data`.

    Args:
      mesh: the mesh.
      local: arrays [b, ...], the contiguous rows of this process, b = B / processes.

    Returns:
      arrays [B, ...].
    """
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in local.items()}


def to_host(tree: Any) -> Any:
    """Arrays -> NumPy on every process, also where an array spans processes."""

    def fetch(x: Any) -> Any:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            if x.is_fully_replicated:
                return np.asarray(x.addressable_data(0))
            return np.asarray(multihost_utils.process_allgather(x, tiled=True))
        return np.asarray(x)

    return jax.tree.map(fetch, tree)


def process_index() -> int:
    """Number of this process, from 0."""
    return jax.process_index()


def process_count() -> int:
    """Number of processes of the run."""
    return jax.process_count()


def is_main() -> bool:
    """Whether this process writes the logs and the report."""
    return jax.process_index() == 0


def agree(flag: bool) -> bool:
    """True on every process when it is true on any (for example: a signal reached one of them)."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def total(count: int) -> int:
    """The sum of a number over the processes, on each of them."""
    if jax.process_count() == 1:
        return count
    return int(np.sum(multihost_utils.process_allgather(np.asarray(count))))


def barrier(name: str, timeout: float) -> None:
    """Waits until every process is here, `timeout` seconds at most; `name` is new each time.

    It goes through the coordination service, not the devices, so any thread may call it.

    Raises:
      jax.errors.JaxRuntimeError: not all came in time.
    """
    if jax.process_count() > 1:
        # JAX has no public name for it that takes a time limit.
        client = distributed.global_state.client
        assert client is not None, "several processes have joined one another"
        client.wait_at_barrier(name, int(timeout * 1000))


def describe(mesh: Mesh) -> str:
    """One line: "8 devices (cpu) in 1 process"."""
    kind = mesh.devices.flat[0].device_kind
    many, procs = mesh.size, jax.process_count()
    return f"{many} device{'s' * (many > 1)} ({kind}) in {procs} process{'es' * (procs > 1)}"
