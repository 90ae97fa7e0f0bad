"""NT-Xent, ``python -m jaxcl.bench loss``: memory and time of the loss with its gradient side by side.

The formula as one writes it down and leaves to JAX ("plain"), and the forms of jaxcl; on several devices too, and beside the
losses of lightly and pytorch-metric-learning where these are installed. The Pallas kernel has columns on a TPU; what it and the
loops of XLA come to on one can be compiled and modelled without (``--topology``).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxcl import losses
from jaxcl.bench import memory
from jaxcl.bench.memory import MIB, resident_mib
from jaxcl.bench.timing import (
    interleaved,
    load_after,
    machine,
    numbers,
    print_machine,
    ratio_of,
    row_of_text,
    waiting,
)
from jaxcl.losses import nce

FORMS: tuple[nce.Form, ...] = ("dense", "tiled", "ring")
KERNEL: nce.Kernel = "pallas"
WALKS: tuple[nce.Kernel, ...] = ("xla", KERNEL)
PLAIN_FLOP = 6  # times views^2 * features: the matrix, and its two gradients
JAXCL_FLOP = 4  # one gradient serves both sides; tiles are made twice, but only half of them
PRODUCT_SIZE = 2048
PEERS = {"lightly": "lightly", "metric-learning": "pytorch_metric_learning"}


def plain_nt_xent(z: jax.Array, temperature: float = 0.1) -> jax.Array:
    """NT-Xent of two views as one writes it down, differentiated by JAX: the yardstick.

    Args:
        z: ``float[B, 2, D]``.
        temperature: divides the cosines.
    """
    rows = z.reshape(-1, z.shape[-1])
    rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    logits = jnp.matmul(rows, rows.T, precision="highest") / temperature
    index = jnp.arange(len(rows))
    logits = jnp.where(index[:, None] == index[None, :], -jnp.inf, logits)
    # Rows 2b and 2b + 1 are the views of image b.
    positive = jnp.take_along_axis(logits, (index ^ 1)[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - positive)


def loss_and_gradient(form: Any, mesh: Mesh | None = None) -> Any:
    """The jitted NT-Xent with its gradient; "plain" is the yardstick, "pallas" tiles or a ring by the kernel."""
    if form == "plain":
        return jax.jit(jax.value_and_grad(plain_nt_xent))
    how = {"kernel": KERNEL} if form == KERNEL else {"impl": form}
    return jax.jit(jax.value_and_grad(lambda z: losses.nt_xent(z, mesh=mesh, **how)))


def auto_takes(views: int, features: int, mesh: Mesh | None = None) -> nce.Form:
    """The form of a call that names none."""
    z = jax.ShapeDtypeStruct((views // 2, 2, features), jnp.float32)
    with nce.watched() as matrices:
        jax.eval_shape(lambda z: losses.nt_xent(z, mesh=mesh), z)
    return matrices[0].form


def kernels() -> tuple[str, ...]:
    """The Pallas kernel where it runs: on a CPU it is interpreted, and a time would say nothing."""
    return (KERNEL,) if jax.default_backend() == "tpu" else ()


def temporary_mib(form: str, views: int, features: int, mesh: Mesh | None = None) -> float:
    """Compiled temporary memory of a device in MiB; nothing is run."""
    sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec("data"))
    z = jax.ShapeDtypeStruct((views // 2, 2, features), jnp.float32, sharding=sharding)
    compiled = loss_and_gradient(form, mesh).lower(z).compile()
    return compiled.memory_analysis().temp_size_in_bytes / MIB


def product_rate() -> Callable[[], Any]:
    """A large float32 matrix product, ``2 * PRODUCT_SIZE^3`` floating-point operations."""
    a = jax.random.normal(jax.random.key(0), (PRODUCT_SIZE, PRODUCT_SIZE))
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    return lambda: product(a).block_until_ready()


def peers() -> tuple[str, ...]:
    """Those of the libraries to compare with that are installed."""
    if importlib.util.find_spec("torch") is None:
        return ()
    return tuple(name for name, module in PEERS.items() if importlib.util.find_spec(module))


def peer_run(name: str, z: np.ndarray) -> Callable[[], Any]:
    """NT-Xent with gradient as a peer does it; for two views it is the same function in all."""
    import torch

    tensor = torch.tensor(z)
    image = torch.arange(len(z)).repeat_interleave(2)
    if name == "lightly":
        from lightly.loss import NTXentLoss as LightlyLoss

        lightly = LightlyLoss(temperature=0.1)

        def loss(leaf: Any) -> Any:
            return lightly(leaf[:, 0], leaf[:, 1])
    else:
        from pytorch_metric_learning.losses import NTXentLoss as MetricLearningLoss

        metric_learning = MetricLearningLoss(temperature=0.1)

        def loss(leaf: Any) -> Any:
            return metric_learning(leaf.reshape(-1, leaf.shape[-1]), image)

    def run() -> Any:
        leaf = tensor.detach().requires_grad_()
        loss(leaf).backward()
        return leaf.grad

    return run


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Prints the tables and returns them."""
    devices = jax.devices()[: options.devices]
    mesh = mesh_of(devices)
    found: dict[str, Any] = {"machine": machine(len(devices))}
    print(f"NT-Xent and its gradient, float32, {options.features} features")
    print_machine(found["machine"])
    found["memory"] = memory_table(options, mesh)
    found["peak"] = peak_table(options, len(devices))
    found["time"] = time_table(options, found["peak"])
    found["devices"] = device_table(options, mesh) if len(devices) > 1 else []
    found["kernel"] = kernel_table(options) if options.topology else []
    if options.run:
        found["run"] = real_run(options.run, options.features)
    if not kernels():
        print(
            "\nthe Pallas kernel has columns on a TPU; --topology=v5e:2x4 compiles it here, and models its time"
        )
    if not peers():
        print("\nlightly, pytorch-metric-learning: not installed (tests/peers/requirements.txt)")
    found["load after"] = load_after()
    return found


def mesh_of(devices: Sequence[Any]) -> Mesh:
    """The devices in a row."""
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def memory_table(options: argparse.Namespace, mesh: Mesh) -> list[dict[str, Any]]:
    """Compiled temporaries of one device, and of each of several."""
    count = mesh.size
    print("\ntemporary memory, MiB (compiled, not run)")
    several = [f"{form}/{count}" for form in FORMS] if count > 1 else []
    columns = ["plain", "dense", "tiled", "plain:tiled", *several]
    print(row_of_text("views", columns))
    table = []
    for views in options.memory_views:
        line: dict[str, Any] = {"views": views}
        for form in ("plain", "dense", "tiled"):
            line[form] = temporary_mib(form, views, options.features)
        line["plain:tiled"] = line["plain"] / line["tiled"]
        for form, column in zip(FORMS, several, strict=False):
            line[column] = temporary_mib(form, views, options.features, mesh)
        table.append(line)
        print(row_of_text(views, [f"{line[column]:,.1f}" for column in columns]))
    if several:
        print(f"  .../{count}: on each of {count} devices")
    return table


def peak_table(options: argparse.Namespace, count: int) -> list[dict[str, Any]]:
    """What a process grows by when it really runs loss and gradient once; a new process each, of one and of `count` devices."""
    several = {f"{form}/{count}": (form, count) for form in FORMS} if count > 1 else {}
    alone = ("plain", "dense", "tiled", *peers())
    columns = {**{form: (form, 1) for form in alone}, **several}
    print("\npeak memory, MiB (growth of the process, really run)")
    print(row_of_text("views", list(columns)))
    limit = options.peer_gib * 1024
    table: list[dict[str, Any]] = []
    for views in options.views:
        line: dict[str, Any] = {"views": views}
        for column, (form, devices) in columns.items():
            if views // 2 % devices:
                line[column] = math.nan
                continue
            earlier = table[-1][column] if table else 0.0
            # What did not fit does not fit when it is larger.
            line[column] = (
                earlier if earlier == math.inf else peak_mib(form, views, options, devices)
            )
        table.append(line)
        print(row_of_text(views, [peak_text(line[column], limit) for column in columns]))
    if several:
        print(f"  .../{count}: one process with {count} devices, all of them together")
    return table


def peak_text(mib: float, limit: float) -> str:
    """A peak in a table; infinite: more than the limit; not a number: these views do not divide."""
    if math.isnan(mib):
        return "-"
    return f"> {limit:,.0f}" if mib == math.inf else f"{mib:,.1f}"


def peak_mib(form: str, views: int, options: argparse.Namespace, devices: int = 1) -> float:
    """A line's entry in `peak_table`; infinite if it takes more than ``--peer_gib``."""
    made = (form, views, options.features, devices)
    return memory.peak_mib(prepared, made, options.peer_gib)


def prepared(form: str, views: int, features: int, devices: int = 1) -> Callable[[], Any]:
    """A run of a form or of a peer, all ready but for the loss itself; in a new process, whose devices these are."""
    if form in PEERS:
        # The first call loads libraries and starts threads: that is not the loss.
        peer_run(form, random_views(16, features))()
        return peer_run(form, random_views(views, features))
    if devices == 1:
        z, mesh = jnp.asarray(random_views(views, features)), None
    else:
        jax.config.update("jax_num_cpu_devices", devices)
        mesh = mesh_of(jax.devices()[:devices])
        sharding = NamedSharding(mesh, PartitionSpec("data"))
        z = jax.device_put(random_views(views, features), sharding).block_until_ready()
    return waiting(loss_and_gradient(form, mesh).lower(z).compile(), z)


def random_views(views: int, features: int) -> np.ndarray:
    """``float32[views / 2, 2, features]``, unnormalised."""
    return np.random.default_rng(0).normal(size=(views // 2, 2, features)).astype(np.float32)


def time_table(
    options: argparse.Namespace, peaks: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """One device: milliseconds of the yardstick, and ratios to it; peers where they fit."""
    print("\ntime on one device: plain in ms, the others as shares of it, median [95 %]")
    forms = ("dense", "tiled", *kernels())
    columns = ["plain ms", *forms, "auto takes", "its product rate", *peers()]
    print(row_of_text("views", columns))
    table = []
    for views, peak in zip(options.views, peaks, strict=True):
        z = random_views(views, options.features)
        fitting = [name for name in peers() if peak[name] < math.inf]
        names = ["plain", *forms, *fitting]
        array = jnp.asarray(z)
        runs = [waiting(loss_and_gradient(form), array) for form in ("plain", *forms)]
        runs += [peer_run(name, z) for name in fitting]
        seconds = interleaved([*runs, product_rate()], options.rounds)
        ratios = {n: ratio_of(s, seconds[0]) for n, s in zip(names, seconds, strict=False)}
        auto = auto_takes(views, options.features)
        product = 2 * PRODUCT_SIZE**3 / np.asarray(seconds[-1])
        work = JAXCL_FLOP * views**2 * options.features
        rate = float(np.median(work / np.asarray(seconds[names.index(auto)]) / product))
        milliseconds = 1000 * float(np.median(seconds[0]))
        table.append(
            {"views": views, "plain ms": milliseconds, "auto": auto, "product rate": rate}
            | {name: dataclasses.asdict(ratio) for name, ratio in ratios.items()}
        )
        cells = [f"{milliseconds:.1f}", *(str(ratios[form]) for form in forms), auto]
        others = [str(ratios[name]) if name in fitting else "does not fit" for name in peers()]
        print(row_of_text(views, [*cells, f"{rate:.0%}", *others]))
    print(
        f"  product rate: {JAXCL_FLOP} * views^2 * features operations (plain needs {PLAIN_FLOP}) "
        f"over the time, as a share\n  of what a product of two {PRODUCT_SIZE:,} x "
        f"{PRODUCT_SIZE:,} matrices reaches in the same rounds"
    )
    return table


def device_table(options: argparse.Namespace, mesh: Mesh) -> list[dict[str, Any]]:
    """Several devices: ratios to the plain form on the same sharded batch."""
    print(f"\ntime on {mesh.size} devices: as above, the plain form being partitioned by XLA")
    forms = (*FORMS, *kernels())
    print(row_of_text("views", ["plain ms", *forms, "auto takes"]))
    table = []
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    for views in options.views:
        if views // 2 % mesh.size:
            continue
        z = jax.device_put(random_views(views, options.features), sharding)
        runs = [waiting(loss_and_gradient(form, mesh), z) for form in ("plain", *forms)]
        seconds = interleaved(runs, options.rounds)
        ratios = {form: ratio_of(s, seconds[0]) for form, s in zip(forms, seconds[1:], strict=True)}
        auto = auto_takes(views, options.features, mesh)
        plain = 1000 * float(np.median(seconds[0]))
        table.append(
            {"views": views, "plain ms": plain, "auto": auto}
            | {form: dataclasses.asdict(ratio) for form, ratio in ratios.items()}
        )
        cells = [f"{plain:.1f}", *(str(ratios[form]) for form in forms), auto]
        print(row_of_text(views, cells))
    return table


def kernel_table(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A ring on a TPU slice, its tiles walked by loops of XLA and by the kernel: compiled, and its time modelled.

    Products and traffic of the loops are counted in the compiled program. Of the kernel, which the compiler does not look into,
    they are those of its grid: all tiles, of which each column of keys is read once for each row of tiles.
    """
    # Not at the top: each peak is that of a new process, which has no need of them.
    from jaxcl.plan import hlo, parse
    from jaxcl.plan.cost import cost
    from jaxcl.plan.devices import devices as plan_devices

    topology = parse(options.topology)
    chip, devices = topology.chip, topology.devices
    mesh = mesh_of(plan_devices(topology, 600.0, print))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    print(
        f"\na ring on {options.topology}: compiled, not run; ms of products and of memory MODELLED"
    )
    columns = ["xla MiB", "products", "memory", "pallas MiB", "products", "memory"]
    print(row_of_text("views", columns))
    table = []
    for views in options.views:
        rows = views // devices
        if views // 2 % devices or rows % 128:
            continue
        z = jax.ShapeDtypeStruct((views // 2, 2, options.features), jnp.float32, sharding=sharding)
        line: dict[str, Any] = {"views": views}
        for kernel in WALKS:
            loss = functools.partial(losses.nt_xent, impl="ring", kernel=kernel, mesh=mesh)
            compiled: Any = jax.jit(jax.value_and_grad(loss)).lower(z).compile()
            counted = cost(hlo.parse(compiled.as_text()))
            work, bytes_moved = dict(counted.flops), counted.moved
            if kernel == KERNEL:
                # Forward one product, backward two.
                work = {"f32 highest": 3 * 2 * rows * views * options.features}
                passes = -(-rows // nce.TILE) * views * options.features * 4
                bytes_moved += 2 * passes
            line[kernel] = {
                "MiB": compiled.memory_analysis().temp_size_in_bytes / MIB,
                "products ms": 1000 * chip.seconds(work),
                "memory ms": 1000 * bytes_moved / chip.bandwidth,
            }
        table.append(line)
        cells = [f"{value:,.3f}" for kernel in WALKS for value in line[kernel].values()]
        print(row_of_text(views, cells))
    return table


def real_run(views: int, features: int) -> dict[str, Any]:
    """One loss and gradient of that many views, really run: seconds and growth of the process."""
    z = jnp.asarray(random_views(views, features))
    run = loss_and_gradient("tiled").lower(z).compile()
    before = resident_mib("now")
    begin = time.perf_counter()
    value, gradient = jax.block_until_ready(run(z))
    seconds = time.perf_counter() - begin
    growth = resident_mib("peak") - before
    print(
        f"\n{views:,} views really run: {seconds:.1f} s, loss {float(value):.6f}, "
        f"gradient norm {float(jnp.linalg.norm(gradient)):.4e}, peak memory +{growth:.0f} MiB"
    )
    return {"views": views, "seconds": seconds, "loss": float(value), "peak MiB": growth}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Those of this bench."""
    parser.add_argument(
        "--views", type=numbers, default=[64, 128, 256, 512, 1024, 2048, 4096, 8192]
    )
    parser.add_argument(
        "--memory_views",
        type=numbers,
        default=[8192, 16384, 32768, 65536, 131072, 262144],
        help="sizes that are only compiled",
    )
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=11, help="pairs of runs for every ratio")
    parser.add_argument("--devices", type=int, default=8, help="virtual devices on CPU; 1: no mesh")
    parser.add_argument(
        "--topology", default="", help="a TPU slice, such as v5e:2x4, for the table of kernels"
    )
    parser.add_argument("--run", type=int, default=0, help="views of one real run, e.g. 131072")
    parser.add_argument(
        "--peer_gib", type=float, default=4, help="what a run of the peak table may take"
    )
