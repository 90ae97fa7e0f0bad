"""Micro-batches, ``python -m jaxcl.bench cache``: a batch in parts beside the same batch in one shot.

Memory, time and result of NT-Xent's gradient through a ResNet-18 (`jaxcl.models.gradient_cache`), where BatchNorm has groups and
where its statistics are global.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxcl import losses, models
from jaxcl.bench.memory import MIB
from jaxcl.bench.timing import (
    interleaved,
    load_after,
    machine,
    print_machine,
    ratio_of,
    row_of_text,
)

DISTANCES = ("float64", "float32", "one shot off", "micro off")
"""In one shot from in micro-batches, in both; and each in float32 from one shot in float64."""


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Prints the table and returns it."""
    pieces, views = options.micro_batches, 2 * options.images
    found: dict[str, Any] = {"machine": machine(1)}
    print(
        f"ResNet-18 of width {options.width}, {views:,} views of 32 x 32 pixels, float32: NT-Xent's "
        f"gradient in {pieces} micro-batches, as shares of one shot"
    )
    print_machine(found["machine"])
    columns = ["one shot MiB", "micro MiB", "share", "one shot ms", "time", *DISTANCES]
    print(row_of_text("BN", columns))
    for name, groups in (("groups", pieces), ("global", 1)):
        steps = [cached_gradient(options, groups, count) for count in (1, pieces)]
        memory = [step.memory_analysis().temp_size_in_bytes / MIB for step, _ in steps]
        errors = distances(options, groups, steps)
        runs = [lambda s=step, i=inputs: jax.block_until_ready(s(*i)) for step, inputs in steps]
        seconds = interleaved(runs, options.rounds)
        ratio = ratio_of(seconds[1], seconds[0])
        milliseconds = 1000 * float(np.median(seconds[0]))
        found[name] = {
            "one shot MiB": memory[0],
            "micro-batches MiB": memory[1],
            "one shot ms": milliseconds,
            "time": dataclasses.asdict(ratio),
            "gradient off by": errors,
        }
        cells = [*(f"{m:,.1f}" for m in memory), f"1/{memory[0] / memory[1]:.1f}"]
        cells += [f"{milliseconds:,.0f}", str(ratio)]
        cells += [f"{errors[name]:.1e}" for name in DISTANCES]
        print(row_of_text(name, cells))
    print(
        "  float64, float32: the distance of the two gradients as a share of their length; one shot off, micro"
    )
    print(
        "  off: that of each in float32 from one shot in float64. Above 1e-5 in float32 a ReLU is so near to 0"
    )
    print(
        "  that rounding decides for it, in one shot of one batch and in micro-batches of another."
    )
    found["load after"] = load_after()
    return found


def distances(
    options: argparse.Namespace, groups: int, steps: Sequence[tuple[Any, Any]]
) -> dict[str, float]:
    """How far gradients are from one another, by the names `DISTANCES`.

    Args:
      options: of the bench.
      groups: of BatchNorm.
      steps: one shot and micro-batches in float32, compiled.
    """
    one, micro = (run(step) for step in steps)
    with jax.enable_x64(True):
        exact, exact_micro = (
            run(cached_gradient(options, groups, count, "float64"))
            for count in (1, options.micro_batches)
        )
    pairs = ((exact_micro, exact), (micro, one), (one, exact), (micro, exact))
    return {name: off_by(*pair) for name, pair in zip(DISTANCES, pairs, strict=True)}


def run(step: tuple[Any, Any]) -> Any:
    """The gradient that a compiled step gives, on the host."""
    compiled, inputs = step
    return jax.device_get(compiled(*inputs))


def off_by(gradient: Any, reference: Any) -> float:
    """The distance of two gradients as a share of the length of the second, in float64."""
    found, wanted = (
        np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree)])
        for tree in (gradient, reference)
    )
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def cached_gradient(
    options: argparse.Namespace, groups: int, pieces: int, dtype: str = "float32"
) -> tuple[Any, Any]:
    """The compiled gradient through a network in that many micro-batches, and what it takes."""
    heads = {"z": models.HeadSpec((options.features,), init_std=None)}
    narrow = models.BackboneConfig("resnet18", options.width, "cifar", bn_groups=groups)
    # Drawn in float32, so that another dtype computes with the same numbers.
    with jax.enable_x64(False):
        drawn = models.build(narrow, heads).init(jax.random.key(0), (32, 32, 3))
        images = jax.random.uniform(jax.random.key(1), (2 * options.images, 32, 32, 3))
    model = models.build(dataclasses.replace(narrow, dtype=dtype), heads)
    network = dataclasses.replace(model, pieces=pieces)

    def loss(params: Any, stats: Any, images: jax.Array) -> jax.Array:
        (_, heads), _ = network.apply(params, stats, images, True)
        return losses.nt_xent(heads["z"][-1].reshape(-1, 2, options.features))

    inputs = jax.tree.map(
        lambda x: np.asarray(x, dtype), (drawn["params"], drawn["batch_stats"], images)
    )
    return jax.jit(jax.grad(loss)).lower(*inputs).compile(), inputs


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Those of this bench."""
    parser.add_argument("--images", type=int, default=128, help="of the batch, two views each")
    parser.add_argument("--micro_batches", type=int, default=16)
    parser.add_argument("--width", type=float, default=0.25, help="of the network")
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=11, help="pairs of runs for every ratio")
    parser.add_argument("--devices", type=int, default=8, help="virtual devices on CPU")
