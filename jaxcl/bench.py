"""Measures what jaxcl claims, on the machine at hand: ``python -m jaxcl.bench loss``.

``loss`` prints the memory and the time of NT-Xent with its gradient side by side: the formula as one
writes it down and leaves to JAX, and the forms of jaxcl; on several devices too, and beside the
losses of lightly and pytorch-metric-learning where these are installed. Times are ratios within
pairs that were run one after the other; sizes where jaxcl loses are printed like the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxcl import losses
from jaxcl.losses import nce

MIB = 2**20
FORMS: tuple[nce.Form, ...] = ("dense", "tiled", "ring")
PLAIN_FLOP = 6  # times views^2 * features: the matrix, and its two gradients
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


def product_rate(size: int = 2048) -> Callable[[], Any]:
    """A large float32 matrix product, ``2 * size^3`` floating-point operations."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    return lambda: product(a).block_until_ready()


def peer_runs(z: np.ndarray) -> dict[str, Callable[[], Any]]:
    """NT-Xent with gradient as lightly and pytorch-metric-learning do it, where installed."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    tensor = torch.tensor(z)
    runs: dict[str, Callable[[], Any]] = {}

    def backward(loss: Callable[[Any], Any]) -> Callable[[], Any]:
        def run() -> Any:
            leaf = tensor.detach().requires_grad_()
            loss(leaf).backward()
            return leaf.grad

        return run

    if importlib.util.find_spec("lightly") is not None:
        from lightly.loss import NTXentLoss as LightlyLoss

        lightly = LightlyLoss(temperature=0.1)
        runs["lightly"] = backward(lambda leaf: lightly(leaf[:, 0], leaf[:, 1]))
    if importlib.util.find_spec("pytorch_metric_learning") is not None:
        # With two views its NT-Xent is the same function: the denominator has every other row.
        from pytorch_metric_learning.losses import NTXentLoss as MetricLearningLoss

        metric_learning = MetricLearningLoss(temperature=0.1)
        image = torch.arange(len(z)).repeat_interleave(2)
        runs["pytorch-metric-learning"] = backward(
            lambda leaf: metric_learning(leaf.reshape(-1, leaf.shape[-1]), image)
        )
    return runs


def bench_loss(options: argparse.Namespace) -> dict[str, Any]:
    """Prints the tables of ``loss`` and returns them."""
    devices = jax.devices()[: options.devices]
    mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    found: dict[str, Any] = {"machine": machine(len(devices))}
    print(f"NT-Xent and its gradient, float32, {options.features} features")
    print("  ".join(f"{name} {value}" for name, value in found["machine"].items()))
    found["memory"] = memory_table(options, mesh)
    found["time"] = time_table(options)
    found["devices"] = device_table(options, mesh) if len(devices) > 1 else []
    if options.run:
        found["run"] = real_run(options.run, options.features)
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


def time_table(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One device: milliseconds of the yardstick, and ratios to it."""
    print("\ntime on one device: the plain form in ms, the others as shares of it, median [95 %]")
    columns = ["plain ms", "dense", "tiled", "auto takes", "auto's product rate"]
    print(row_of_text("views", columns))
    table = []
    for views in options.views:
        z = np.asarray(
            jax.random.normal(jax.random.key(0), (views // 2, 2, options.features), jnp.float32)
        )
        peers = peer_runs(z)
        names = ["plain", "dense", "tiled", *peers]
        array = jnp.asarray(z)
        runs = [waiting(loss_and_gradient(form), array) for form in names[:3]]
        seconds = interleaved([*runs, *peers.values(), product_rate()], options.rounds)
        auto = nce.choose(views, views, platform=jax.default_backend())
        ratios = {n: ratio_of(s, seconds[0]) for n, s in zip(names, seconds, strict=False)}
        best = float(np.median(seconds[names.index(auto)]))
        product = 2 * 2048**3 / float(np.median(seconds[-1]))
        rate = JAXCL_FLOP * views**2 * options.features / best / product
        line = {
            "views": views,
            "plain ms": 1000 * float(np.median(seconds[0])),
            "auto": auto,
            "auto's product rate": rate,
            **{name: dataclasses.asdict(ratio) for name, ratio in ratios.items()},
        }
        table.append(line)
        cells = [f"{line['plain ms']:.1f}", str(ratios["dense"]), str(ratios["tiled"]), auto]
        print(row_of_text(views, [*cells, f"{rate:.0%}"]))
        for name in peers:
            print(f"{'':10s}{name}: {ratios[name]} of plain")
    print(
        f"  product rate: {JAXCL_FLOP} * views^2 * features operations (plain needs {PLAIN_FLOP}) "
        "over the time,\n  as a share of what a product of two 2,048 x 2,048 matrices reaches"
    )
    if not table or not peer_runs(np.zeros((1, 2, 2), np.float32)):
        print("  lightly and pytorch-metric-learning: not installed (tests/peers/requirements.txt)")
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
        shape = (views // 2, 2, options.features)
        z = jax.device_put(jax.random.normal(jax.random.key(0), shape, jnp.float32), sharding)
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
    z = jax.random.normal(jax.random.key(0), (views // 2, 2, features), jnp.float32)
    run = loss_and_gradient("tiled").lower(z).compile()
    before = resident_mib()
    begin = time.perf_counter()
    value, gradient = jax.block_until_ready(run(z))
    seconds = time.perf_counter() - begin
    growth = resident_mib() - before
    print(
        f"\n{views:,} views really run: {seconds:.1f} s, loss {float(value):.6f}, "
        f"gradient norm {float(jnp.linalg.norm(gradient)):.4e}, peak memory +{growth:.0f} MiB"
    )
    return {"views": views, "seconds": seconds, "loss": float(value), "peak MiB": growth}


def resident_mib() -> float:
    """The largest resident size that this process has had, in MiB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024)


def row_of_text(head: Any, cells: Sequence[str]) -> str:
    """One line of a table."""
    head = f"{head:,}" if isinstance(head, int) else head
    return f"{head:>10s}" + "".join(f"{cell:>20s}" for cell in cells)


def numbers(text: str) -> list[int]:
    """``1024,4096`` as a list."""
    return [int(part.replace("_", "")) for part in text.split(",") if part]


BENCHES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"loss": bench_loss}


def main(arguments: Sequence[str] | None = None) -> None:
    """Flags, then the bench."""
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
    parser.add_argument("--json", default="", help="where to write the tables")
    options = parser.parse_args(arguments)
    jax.config.update("jax_num_cpu_devices", options.devices)
    found = BENCHES[options.bench](options)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
