"""Metric learning side by side with pytorch-metric-learning, on the machine at hand: ``python -m jaxcl.bench_metric``.

For losses that are the same function in both (`tests/peers` compares their values and gradients): what a process grows by when loss
and gradient are really run once, in a process of its own, and the time, as the ratio of runs taken one after the other. The batch
has four rows of each class. Without the peer (tests/peers/requirements.txt) only jaxcl's columns are there.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl import bench, losses

PER_CLASS = 4
PEER = "pytorch_metric_learning"

OURS: dict[str, Callable[..., jax.Array]] = {
    "contrastive": losses.margin_contrastive,
    "triplet, all": losses.triplet,
    "triplet, semi-hard": functools.partial(losses.triplet, mining="semihard"),
    "triplet, batch-hard": functools.partial(losses.triplet, mining="batch_hard"),
    "multi-similarity": losses.multi_similarity,
    "NCA": losses.nca,
}


def peer_loss(name: str) -> Callable[[Any, Any], Any]:
    """The peer's loss of rows and labels that is the one of that name."""
    from pytorch_metric_learning import losses as peer
    from pytorch_metric_learning import miners

    made: dict[str, Callable[[], tuple[Any, Any]]] = {
        "contrastive": lambda: (peer.ContrastiveLoss(), None),
        "triplet, all": lambda: (peer.TripletMarginLoss(0.2), None),
        "triplet, semi-hard": lambda: (
            peer.TripletMarginLoss(0.2),
            miners.TripletMarginMiner(0.2, type_of_triplets="semihard"),
        ),
        "triplet, batch-hard": lambda: (peer.TripletMarginLoss(0.2), miners.BatchHardMiner()),
        "multi-similarity": lambda: (peer.MultiSimilarityLoss(), None),
        "NCA": lambda: (peer.NCALoss(), None),
    }
    loss, miner = made[name]()
    return lambda z, labels: loss(z, labels, miner(z, labels) if miner else None)


def batch(rows: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """``float32[rows, features]`` and labels ``int32[rows]``."""
    z = np.random.default_rng(0).normal(size=(rows, features)).astype(np.float32)
    return z, (np.arange(rows) // PER_CLASS).astype(np.int32)


def our_run(name: str, rows: int, features: int) -> Callable[[], Any]:
    """Loss and gradient, compiled."""
    z, labels = (jnp.asarray(x) for x in batch(rows, features))
    step = jax.jit(jax.value_and_grad(OURS[name])).lower(z, labels).compile()
    return lambda: jax.block_until_ready(step(z, labels))


def peer_run(name: str, rows: int, features: int) -> Callable[[], Any]:
    """Loss and gradient, as the peer does it."""
    import torch

    z, labels = (torch.tensor(x) for x in batch(rows, features))
    labels, loss = labels.long(), peer_loss(name)

    def run() -> Any:
        leaf = z.detach().requires_grad_()
        loss(leaf, labels).backward()
        return leaf.grad

    return run


def has_peer() -> bool:
    """Whether pytorch-metric-learning is installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", PEER))


def peak_mib(side: str, name: str, rows: int, options: argparse.Namespace) -> float:
    """By how many MiB a new process grows in one run; infinite if it takes more than ``--gib``."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    arguments = (send, side, name, rows, options.features, options.gib)
    child = context.Process(target=measure, args=arguments)
    child.start()
    send.close()
    try:
        grown: float = receive.recv()
    except EOFError:  # it ended without an answer: out of memory
        grown = math.inf
    child.join()
    return grown


def measure(answer: Any, side: str, name: str, rows: int, features: int, gib: float) -> None:
    """Runs a loss once in this process, and sends by how many MiB the process grew."""
    make = our_run if side == "jaxcl" else peer_run
    # The first call loads libraries and starts threads: that is not the loss.
    make(name, 16, features)()
    run = make(name, rows, features)
    before = bench.resident_mib("now")
    bench.limit_memory(before / 1024 + gib)
    try:
        run()
    except (MemoryError, RuntimeError):  # what torch and JAX raise when there is no more
        answer.send(math.inf)
        return
    answer.send(bench.resident_mib("peak") - before)


def table(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A line for each loss and size: peaks, the peer's milliseconds, and ours as a share of them."""
    sides = ("jaxcl", PEER) if has_peer() else ("jaxcl",)
    print(
        f"\n{'loss':>22s}{'rows':>8s}{'jaxcl MiB':>12s}{'peer MiB':>12s}{'jaxcl ms':>12s}{'peer ms':>12s}{'jaxcl / peer':>22s}"
    )
    lines: list[dict[str, Any]] = []
    for name in options.losses:
        fits = dict.fromkeys(sides, True)
        for rows in options.rows:
            peaks = {
                side: peak_mib(side, name, rows, options) if fits[side] else math.inf
                for side in sides
            }
            # What did not fit does not fit when it is larger.
            fits = {side: peak < math.inf for side, peak in peaks.items()}
            makers = {"jaxcl": our_run, PEER: peer_run}
            timed = [side for side in sides if fits[side]]
            runs = [makers[side](name, rows, options.features) for side in timed]
            seconds = dict(zip(timed, bench.interleaved(runs, options.rounds), strict=True))
            line: dict[str, Any] = {"loss": name, "rows": rows}
            line |= {f"{side} MiB": peak for side, peak in peaks.items()}
            line |= {f"{side} ms": 1000 * float(np.median(s)) for side, s in seconds.items()}
            ratio = ""
            if len(seconds) == 2:
                ratio = str(bench.ratio_of(seconds["jaxcl"], seconds[PEER]))
            lines.append(line | {"ratio": ratio})
            cells = [
                shown(line.get(f"{side} {unit}"), options.gib if unit == "MiB" else 0)
                for unit in ("MiB", "ms")
                for side in ("jaxcl", PEER)
            ]
            print(
                f"{name:>22s}{rows:>8,}"
                + "".join(f"{cell:>12s}" for cell in cells)
                + f"{ratio:>22s}"
            )
    return lines


def shown(value: float | None, limit_gib: float) -> str:
    """A figure of the table; a dash for none."""
    if value is None:
        return "-"
    return f"> {limit_gib * 1024:,.0f}" if value == math.inf else f"{value:,.1f}"


def flags() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxcl.bench_metric",
        description="Losses of metric learning beside pytorch-metric-learning.",
    )
    parser.add_argument(
        "--losses", type=lambda text: text.split(";"), default=list(OURS), help="separated by ;"
    )
    parser.add_argument("--rows", type=bench.numbers, default=[256, 1024, 4096])
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs for every ratio")
    parser.add_argument("--gib", type=float, default=4, help="what a run may take")
    parser.add_argument("--json", default="", help="where to write the table")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Flags, then the table."""
    options = flags().parse_args(arguments)
    for name in options.losses:
        if name not in OURS:
            raise SystemExit(f"--losses={name}: expected some of {'; '.join(OURS)}")
    machine = bench.machine(1)
    print("  ".join(f"{name} {value}" for name, value in machine.items()))
    found = {"machine": machine, "table": table(options), "load after": os.getloadavg()[0]}
    if not has_peer():
        print("\npytorch-metric-learning: not installed (tests/peers/requirements.txt)")
    print(f"\nload after: {found['load after']:.1f}; a ratio taken under a load is not worth much")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
