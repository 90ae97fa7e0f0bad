"""Metric learning, ``python -m jaxcl.bench metric``: losses side by side with pytorch-metric-learning.

For losses that are the same function in both (`tests/peers` compares the values and gradients of every line here): what a process
grows by when loss and gradient are really run once, in a process of its own, and the time, as the ratio of runs taken one after the
other. The batch has four rows of each class. Without the peer (tests/peers/requirements.txt) only jaxcl's columns are there, and so
for the loss that it does not have.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl import losses
from jaxcl.bench import memory
from jaxcl.bench.timing import (
    interleaved,
    load_after,
    machine,
    numbers,
    print_machine,
    ratio_of,
)

PER_CLASS = 4
PEER = "pytorch_metric_learning"

OURS: dict[str, Callable[..., jax.Array]] = {
    "contrastive": losses.margin_contrastive,
    "contrastive, SNR": functools.partial(
        losses.margin_contrastive, neg_margin=2.0, distance="snr"
    ),
    "Hadsell": losses.hadsell,
    "triplet, all": losses.triplet,
    "triplet, semi-hard": functools.partial(losses.triplet, mining="semihard"),
    "triplet, batch-hard": functools.partial(losses.triplet, mining="batch_hard"),
    "margin": losses.margin_loss,
    "multi-similarity": losses.multi_similarity,
    "multi-similarity, mined": functools.partial(
        losses.multi_similarity, mining="multi_similarity"
    ),
    "lifted structure": losses.lifted_structure,
    "NCA": losses.nca,
    "circle": losses.circle,
    "FastAP": losses.fast_ap,
    "NT-Xent": losses.nt_xent_pairs,
    "N-pairs": losses.n_pairs,
    "proxy-NCA": losses.proxy_nca,
    "proxy-anchor": losses.proxy_anchor,
    "ArcFace": losses.arcface,
}
"""One of each family; those of `WITH_PROXIES` are given one vector of each class."""
WITH_PROXIES = ("proxy-NCA", "proxy-anchor", "ArcFace")
NO_PEER = ("Hadsell",)
"""What the peer does not have."""


def peer_loss(name: str, classes: int, features: int) -> Callable[[Any, Any], Any]:
    """The peer's loss of rows and labels that is the one of that name; its proxies, if any, are its own."""
    loss, miner = peer_parts(name, classes, features)
    return lambda z, labels: loss(z, labels, miner(z, labels) if miner else None)


def peer_parts(name: str, classes: int, features: int) -> tuple[Any, Any]:
    """The peer's loss, a module, and what mines for it, or None."""
    from pytorch_metric_learning import distances, miners
    from pytorch_metric_learning import losses as peer

    products = distances.DotProductSimilarity(normalize_embeddings=False)
    made: dict[str, Callable[[], tuple[Any, Any]]] = {
        "contrastive": lambda: (peer.ContrastiveLoss(), None),
        "contrastive, SNR": lambda: (
            peer.ContrastiveLoss(0, 2, distance=distances.SNRDistance()),
            None,
        ),
        "triplet, all": lambda: (peer.TripletMarginLoss(0.2), None),
        "triplet, semi-hard": lambda: (
            peer.TripletMarginLoss(0.2),
            miners.TripletMarginMiner(0.2, type_of_triplets="semihard"),
        ),
        "triplet, batch-hard": lambda: (peer.TripletMarginLoss(0.2), miners.BatchHardMiner()),
        "margin": lambda: (peer.MarginLoss(), None),
        "multi-similarity": lambda: (peer.MultiSimilarityLoss(), None),
        "multi-similarity, mined": lambda: (
            peer.MultiSimilarityLoss(),
            miners.MultiSimilarityMiner(),
        ),
        "lifted structure": lambda: (peer.LiftedStructureLoss(), None),
        "NCA": lambda: (peer.NCALoss(), None),
        "circle": lambda: (peer.CircleLoss(), None),
        "FastAP": lambda: (peer.FastAPLoss(), None),
        "NT-Xent": lambda: (peer.NTXentLoss(0.1), None),
        "N-pairs": lambda: (peer.NPairsLoss(distance=products), first_pairs),
        "proxy-NCA": lambda: (peer.ProxyNCALoss(classes, features), None),
        "proxy-anchor": lambda: (peer.ProxyAnchorLoss(classes, features), None),
        "ArcFace": lambda: (peer.ArcFaceLoss(classes, features), None),
    }
    return made[name]()


def first_pairs(z: Any, labels: Any) -> tuple[Any, Any, Any, Any]:
    """The first two rows of each class, as the peer takes pairs; left to itself it draws them."""
    import torch

    del z
    order = torch.argsort(labels, stable=True)
    ordered = labels[order]
    before = torch.cat([ordered[:1] - 1, ordered[:-1]])
    first = torch.nonzero(ordered != before)[:, 0]
    first = first[first + 1 < len(labels)]
    first = first[ordered[first] == ordered[first + 1]]
    none = first[:0]
    return order[first], order[first + 1], none, none


def batch(rows: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """``float32[rows, features]`` and labels ``int32[rows]``."""
    z = np.random.default_rng(0).normal(size=(rows, features)).astype(np.float32)
    return z, (np.arange(rows) // PER_CLASS).astype(np.int32)


def our_run(name: str, rows: int, features: int) -> Callable[[], Any]:
    """Loss and gradients, compiled."""
    z, labels = (jnp.asarray(x) for x in batch(rows, features))
    given: tuple[jax.Array, ...] = (z, labels)
    trained: tuple[int, ...] = (0,)
    if name in WITH_PROXIES:
        proxies = losses.random_proxies(jax.random.key(0), classes_of(rows), features)
        given, trained = (z, labels, proxies), (0, 2)
    step = jax.jit(jax.value_and_grad(OURS[name], argnums=trained)).lower(*given).compile()
    return lambda: jax.block_until_ready(step(*given))


def classes_of(rows: int) -> int:
    """Classes in a batch."""
    return -(-rows // PER_CLASS)


def peer_run(name: str, rows: int, features: int) -> Callable[[], Any]:
    """Loss and gradient, as the peer does it."""
    import torch

    z, labels = (torch.tensor(x) for x in batch(rows, features))
    labels, loss = labels.long(), peer_loss(name, classes_of(rows), features)

    def run() -> Any:
        leaf = z.detach().requires_grad_()
        loss(leaf, labels).backward()
        return leaf.grad

    return run


def has_peer() -> bool:
    """Whether pytorch-metric-learning is installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", PEER))


def maker(side: str) -> Callable[[str, int, int], Callable[[], Any]]:
    """What makes the runs of a side."""
    return our_run if side == "jaxcl" else peer_run


def peak_mib(side: str, name: str, rows: int, options: argparse.Namespace) -> float:
    """A line's peak; infinite if it takes more than ``--gib``."""
    return memory.peak_mib(prepared, (side, name, rows, options.features), options.gib)


def prepared(side: str, name: str, rows: int, features: int) -> Callable[[], Any]:
    """A run of a loss, all ready but for the loss itself."""
    # The first call loads libraries and starts threads: that is not the loss.
    maker(side)(name, 16, features)()
    return maker(side)(name, rows, features)


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Prints the table and returns it."""
    for name in options.losses:
        if name not in OURS:
            raise SystemExit(f"--losses={name}: expected some of {'; '.join(OURS)}")
    found: dict[str, Any] = {"machine": machine(1)}
    print_machine(found["machine"])
    found["table"] = table(options)
    if not has_peer():
        print("\npytorch-metric-learning: not installed (tests/peers/requirements.txt)")
    found["load after"] = load_after()
    return found


def table(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A line for each loss and size: peaks, the peer's milliseconds, and ours as a share of them."""
    print(
        f"\n{'loss':>22s}{'rows':>8s}{'jaxcl MiB':>12s}{'peer MiB':>12s}{'jaxcl ms':>12s}{'peer ms':>12s}{'jaxcl / peer':>22s}"
    )
    lines: list[dict[str, Any]] = []
    for name in options.losses:
        sides = ("jaxcl", PEER) if has_peer() and name not in NO_PEER else ("jaxcl",)
        fits = dict.fromkeys(sides, True)
        for rows in options.rows:
            peaks = {
                side: peak_mib(side, name, rows, options) if fits[side] else math.inf
                for side in sides
            }
            # What did not fit does not fit when it is larger.
            fits = {side: peak < math.inf for side, peak in peaks.items()}
            timed = [side for side in sides if fits[side]]
            runs = [maker(side)(name, rows, options.features) for side in timed]
            seconds = dict(zip(timed, interleaved(runs, options.rounds), strict=True))
            line: dict[str, Any] = {"loss": name, "rows": rows}
            line |= {f"{side} MiB": peak for side, peak in peaks.items()}
            line |= {f"{side} ms": 1000 * float(np.median(s)) for side, s in seconds.items()}
            ratio = ""
            if len(seconds) == 2:
                ratio = str(ratio_of(seconds["jaxcl"], seconds[PEER]))
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


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Those of this bench."""
    parser.add_argument(
        "--losses", type=lambda text: text.split(";"), default=list(OURS), help="separated by ;"
    )
    parser.add_argument("--rows", type=numbers, default=[256, 1024, 4096])
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs for every ratio")
    parser.add_argument("--gib", type=float, default=4, help="what a run may take")
