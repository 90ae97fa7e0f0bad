"""Measures what jaxcl claims, on the machine at hand: ``python -m jaxcl.bench loss``.

``loss`` prints the memory and the time of NT-Xent with its gradient side by side: the formula as one
writes it down and leaves to JAX ("plain"), and the forms of jaxcl; on several devices too, and beside
the losses of lightly and pytorch-metric-learning where these are installed. Times are ratios within
pairs that were run one after the other; sizes where jaxcl loses are printed like the others.

``cache`` compares a batch in micro-batches (`jaxcl.models.gradient_cache`) with the same batch in one
shot: memory, time and result of NT-Xent's gradient through a ResNet-18, where BatchNorm has groups
and where its statistics are global.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxcl import losses, models
from jaxcl.losses import nce

MIB = 2**20
FORMS: tuple[nce.Form, ...] = ("dense", "tiled", "ring")
PLAIN_FLOP = 6  # times views^2 * features: the matrix, and its two gradients
PRODUCT_SIZE = 2048
PEERS = {"lightly": "lightly", "metric-learning": "pytorch_metric_learning"}
JAXCL_FLOP = 4  # one gradient serves both sides; tiles are made twice, but only half of them


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


@dataclasses.dataclass(frozen=True)
class Ratio:
    """The median of ratios of two times, each pair of them taken one after the other.

    Attributes:
        median: over the pairs.
        low: lower end of its 95 % interval, from the order of the ratios.
        high: upper end.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def ratio_of(times: Sequence[float], reference: Sequence[float]) -> Ratio:
    """The `Ratio` of paired times."""
    ratios = np.sort(np.asarray(times) / np.asarray(reference))
    # The number of ratios below the true median is binomial; normal approximation of its quantiles.
    reach = 0.98 * np.sqrt(len(ratios))
    low = max(0, int(np.floor(len(ratios) / 2 - reach)))
    high = min(len(ratios) - 1, int(np.ceil(len(ratios) / 2 + reach)) - 1)
    return Ratio(float(np.median(ratios)), float(ratios[low]), float(ratios[max(low, high)]))


def interleaved(runs: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of every run in every round; each round runs all, from another one on."""
    for run in runs:
        run()
    seconds: list[list[float]] = [[] for _ in runs]
    for start in range(rounds):
        for k in range(len(runs)):
            which = (start + k) % len(runs)
            begin = time.perf_counter()
            runs[which]()
            seconds[which].append(time.perf_counter() - begin)
    return seconds


def waiting(function: Callable[[jax.Array], Any], z: jax.Array) -> Callable[[], Any]:
    """A run of the function that returns when its result is there."""
    return lambda: jax.block_until_ready(function(z))


def loss_and_gradient(form: Any, mesh: Mesh | None = None) -> Any:
    """The jitted NT-Xent with its gradient; form "plain" is the yardstick."""
    if form == "plain":
        return jax.jit(jax.value_and_grad(plain_nt_xent))
    return jax.jit(jax.value_and_grad(lambda z: losses.nt_xent(z, impl=form, mesh=mesh)))


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


def bench_loss(options: argparse.Namespace) -> dict[str, Any]:
    """Prints the tables of ``loss`` and returns them."""
    devices = jax.devices()[: options.devices]
    mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    found: dict[str, Any] = {"machine": machine(len(devices))}
    print(f"NT-Xent and its gradient, float32, {options.features} features")
    print("  ".join(f"{name} {value}" for name, value in found["machine"].items()))
    found["memory"] = memory_table(options, mesh)
    found["peak"] = peak_table(options)
    found["time"] = time_table(options, found["peak"])
    found["devices"] = device_table(options, mesh) if len(devices) > 1 else []
    if options.run:
        found["run"] = real_run(options.run, options.features)
    if not peers():
        print("\nlightly, pytorch-metric-learning: not installed (tests/peers/requirements.txt)")
    found["load after"] = os.getloadavg()[0]
    print(f"\nload after: {found['load after']:.1f}; a ratio taken under a load is not worth much")
    return found


def machine(devices: int) -> dict[str, Any]:
    """What a figure must be read with."""
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "platform": jax.default_backend(),
        "cores": os.cpu_count(),
        "devices": devices,
        "load": round(os.getloadavg()[0], 2),
    }


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


def peak_table(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What a process grows by when it really runs loss and gradient once; a new process each."""
    columns = ("plain", "dense", "tiled", *peers())
    print("\npeak memory on one device, MiB (growth of the process, really run)")
    print(row_of_text("views", columns))
    limit = options.peer_gib * 1024
    table: list[dict[str, Any]] = []
    for views in options.views:
        line: dict[str, Any] = {"views": views}
        for column in columns:
            earlier = table[-1][column] if table else 0.0
            # What did not fit does not fit when it is larger.
            line[column] = earlier if earlier == math.inf else peak_mib(column, views, options)
        table.append(line)
        cells = [f"> {limit:,.0f}" if line[c] == math.inf else f"{line[c]:,.1f}" for c in columns]
        print(row_of_text(views, cells))
    return table


def peak_mib(form: str, views: int, options: argparse.Namespace) -> float:
    """A line's entry in `peak_table`; infinite if it takes more than ``--peer_gib``."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    arguments = (send, form, views, options.features, options.peer_gib)
    child = context.Process(target=measure_peak, args=arguments)
    child.start()
    send.close()
    try:
        grown: float = receive.recv()
    except EOFError:  # it ended without an answer: out of memory
        grown = math.inf
    child.join()
    return grown


def measure_peak(answer: Any, form: str, views: int, features: int, gib: float) -> None:
    """Runs a form once in this process and sends by how many MiB the process grew."""
    if form in PEERS:
        # The first call loads libraries and starts threads: that is not the loss.
        peer_run(form, random_views(16, features))()
        run = peer_run(form, random_views(views, features))
    else:
        z = jnp.asarray(random_views(views, features))
        compiled = loss_and_gradient(form).lower(z).compile()
        run = waiting(compiled, z)
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


def random_views(views: int, features: int) -> np.ndarray:
    """``float32[views / 2, 2, features]``, unnormalised."""
    return np.random.default_rng(0).normal(size=(views // 2, 2, features)).astype(np.float32)


def time_table(
    options: argparse.Namespace, peaks: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """One device: milliseconds of the yardstick, and ratios to it; peers where they fit."""
    print("\ntime on one device: plain in ms, the others as shares of it, median [95 %]")
    columns = ["plain ms", "dense", "tiled", "auto takes", "its product rate", *peers()]
    print(row_of_text("views", columns))
    table = []
    for views, peak in zip(options.views, peaks, strict=True):
        z = random_views(views, options.features)
        fitting = [name for name in peers() if peak[name] < math.inf]
        names = ["plain", "dense", "tiled", *fitting]
        array = jnp.asarray(z)
        runs = [waiting(loss_and_gradient(form), array) for form in names[:3]]
        runs += [peer_run(name, z) for name in fitting]
        seconds = interleaved([*runs, product_rate()], options.rounds)
        ratios = {n: ratio_of(s, seconds[0]) for n, s in zip(names, seconds, strict=False)}
        auto = nce.choose(views, views, platform=jax.default_backend())
        product = 2 * PRODUCT_SIZE**3 / np.asarray(seconds[-1])
        work = JAXCL_FLOP * views**2 * options.features
        rate = float(np.median(work / np.asarray(seconds[names.index(auto)]) / product))
        milliseconds = 1000 * float(np.median(seconds[0]))
        table.append(
            {"views": views, "plain ms": milliseconds, "auto": auto, "product rate": rate}
            | {name: dataclasses.asdict(ratio) for name, ratio in ratios.items()}
        )
        cells = [f"{milliseconds:.1f}", str(ratios["dense"]), str(ratios["tiled"]), auto]
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
    print(row_of_text("views", ["plain ms", *FORMS, "auto takes"]))
    table = []
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    for views in options.views:
        if views // 2 % mesh.size:
            continue
        z = jax.device_put(random_views(views, options.features), sharding)
        runs = [waiting(loss_and_gradient(form, mesh), z) for form in ("plain", *FORMS)]
        seconds = interleaved(runs, options.rounds)
        ratios = {form: ratio_of(s, seconds[0]) for form, s in zip(FORMS, seconds[1:], strict=True)}
        auto = nce.choose(views, views, mesh.size, platform=jax.default_backend())
        plain = 1000 * float(np.median(seconds[0]))
        table.append(
            {"views": views, "plain ms": plain, "auto": auto}
            | {form: dataclasses.asdict(ratio) for form, ratio in ratios.items()}
        )
        cells = [f"{plain:.1f}", *(str(ratios[form]) for form in FORMS), auto]
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


def bench_cache(options: argparse.Namespace) -> dict[str, Any]:
    """Prints the table of ``cache`` and returns it."""
    pieces, views = options.micro_batches, 2 * options.images
    found: dict[str, Any] = {"machine": machine(1)}
    print(
        f"ResNet-18 of width {options.width}, {views:,} views of 32 x 32 pixels, float32: NT-Xent's "
        f"gradient in {pieces} micro-batches, as shares of one shot"
    )
    print("  ".join(f"{name} {value}" for name, value in found["machine"].items()))
    columns = ["one shot MiB", "micro MiB", "share", "one shot ms", "time", "gradient off by"]
    print(row_of_text("BN", columns))
    for name, groups in (("groups", pieces), ("global", 1)):
        steps = [cached_gradient(options, groups, count) for count in (1, pieces)]
        memory = [step.memory_analysis().temp_size_in_bytes / MIB for step, _ in steps]
        one, micro = (jax.tree.leaves(step(*inputs)) for step, inputs in steps)
        error = math.sqrt(
            sum(float(jnp.sum((a - b) ** 2)) for a, b in zip(one, micro, strict=True))
        )
        error /= math.sqrt(sum(float(jnp.sum(a**2)) for a in one))
        runs = [lambda s=step, i=inputs: jax.block_until_ready(s(*i)) for step, inputs in steps]
        seconds = interleaved(runs, options.rounds)
        ratio = ratio_of(seconds[1], seconds[0])
        milliseconds = 1000 * float(np.median(seconds[0]))
        found[name] = {
            "one shot MiB": memory[0],
            "micro-batches MiB": memory[1],
            "one shot ms": milliseconds,
            "time": dataclasses.asdict(ratio),
            "gradient off by": error,
        }
        cells = [*(f"{m:,.1f}" for m in memory), f"1/{memory[0] / memory[1]:.1f}"]
        print(row_of_text(name, [*cells, f"{milliseconds:,.0f}", str(ratio), f"{error:.1e}"]))
    found["load after"] = os.getloadavg()[0]
    print(f"\nload after: {found['load after']:.1f}; a ratio taken under a load is not worth much")
    return found


def cached_gradient(options: argparse.Namespace, groups: int, pieces: int) -> tuple[Any, Any]:
    """The compiled gradient through a network in that many micro-batches, and what it takes."""
    config = models.BackboneConfig("resnet18", options.width, "cifar", bn_groups=groups)
    model = models.build(config, {"z": models.HeadSpec((options.features,), init_std=None)})
    variables = model.init(jax.random.key(0), (32, 32, 3))
    network = dataclasses.replace(model, pieces=pieces)

    def loss(params: Any, stats: Any, images: jax.Array) -> jax.Array:
        (_, heads), _ = network.apply(params, stats, images, True)
        return losses.nt_xent(heads["z"][-1].reshape(-1, 2, options.features))

    images = jax.random.uniform(jax.random.key(1), (2 * options.images, 32, 32, 3))
    inputs = variables["params"], variables["batch_stats"], images
    return jax.jit(jax.grad(loss)).lower(*inputs).compile(), inputs


def row_of_text(head: Any, cells: Sequence[str]) -> str:
    """One line of a table."""
    head = f"{head:,}" if isinstance(head, int) else head
    return f"{head:>10s}" + "".join(f"{cell:>20s}" for cell in cells)


def numbers(text: str) -> list[int]:
    """``1024,4096`` as a list."""
    return [int(part.replace("_", "")) for part in text.split(",") if part]


BENCHES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "cache": bench_cache,
    "loss": bench_loss,
}


def flags() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxcl.bench", description="Memory and time, measured on this machine."
    )
    parser.add_argument("bench", choices=sorted(BENCHES))
    parser.add_argument("--views", type=numbers, default=[256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument(
        "--memory_views",
        type=numbers,
        default=[8192, 16384, 32768, 65536, 131072, 262144],
        help="sizes that are only compiled",
    )
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=11, help="pairs of runs for every ratio")
    parser.add_argument("--devices", type=int, default=8, help="virtual devices on CPU; 1: no mesh")
    parser.add_argument("--run", type=int, default=0, help="views of one real run, e.g. 131072")
    parser.add_argument(
        "--peer_gib", type=float, default=4, help="what a run of the peak table may take"
    )
    parser.add_argument("--images", type=int, default=128, help="of cache's batch, two views each")
    parser.add_argument("--micro_batches", type=int, default=16, help="of cache")
    parser.add_argument("--width", type=float, default=0.25, help="of cache's network")
    parser.add_argument("--json", default="", help="where to write the tables")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Flags, then the bench."""
    options = flags().parse_args(arguments)
    jax.config.update("jax_num_cpu_devices", options.devices)
    found = BENCHES[options.bench](options)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
