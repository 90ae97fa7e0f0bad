"""Micro-batches, ``python -m jaxcl.bench cache``: a batch in parts beside the same batch in one shot.

Memory, time and result of NT-Xent's gradient through a ResNet-18 (`jaxcl.models.gradient_cache`), where BatchNorm has groups and
where its statistics are global.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

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


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Prints the table and returns it."""
    pieces, views = options.micro_batches, 2 * options.images
    found: dict[str, Any] = {"machine": machine(1)}
    print(
        f"ResNet-18 of width {options.width}, {views:,} views of 32 x 32 pixels, float32: NT-Xent's "
        f"gradient in {pieces} micro-batches, as shares of one shot"
    )
    print_machine(found["machine"])
    columns = ["one shot MiB", "micro MiB", "share", "one shot ms", "time", "float64", "float32"]
    print(row_of_text("BN", columns))
    for name, groups in (("groups", pieces), ("global", 1)):
        steps = [cached_gradient(options, groups, count) for count in (1, pieces)]
        memory = [step.memory_analysis().temp_size_in_bytes / MIB for step, _ in steps]
        errors = {"float32": off_by(steps), "float64": off_by_in_float64(options, groups)}
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
        cells += [f"{errors[dtype]:.1e}" for dtype in ("float64", "float32")]
        print(row_of_text(name, cells))
    print(
        "  float64, float32: the distance of the two gradients as a share of their length; in float64 on about a quarter"
    )
    print(
        "  of the views. Above 1e-5 in float32 a ReLU is so near to 0 that rounding decides for it."
    )
    found["load after"] = load_after()
    return found


def off_by(steps: Sequence[tuple[Any, Any]]) -> float:
    """The distance of the gradients in one shot and in micro-batches, as a share of their length."""
    one, micro = (step(*inputs) for step, inputs in steps)
    apart = jax.tree.map(jnp.subtract, micro, one)
    return float(optax.tree.norm(apart) / optax.tree.norm(one))


def off_by_in_float64(options: argparse.Namespace, groups: int) -> float:
    """The same for fewer views, as XLA's convolutions in float64 are slow on CPU."""
    pieces = options.micro_batches
    images = math.ceil(options.images / 4 / pieces) * pieces
    fewer = argparse.Namespace(**{**vars(options), "images": images})
    with jax.enable_x64(True):
        return off_by([cached_gradient(fewer, groups, count, "float64") for count in (1, pieces)])


def cached_gradient(
    options: argparse.Namespace, groups: int, pieces: int, dtype: str = "float32"
) -> tuple[Any, Any]:
    """The compiled gradient through a network in that many micro-batches, and what it takes."""
    config = models.BackboneConfig(
        "resnet18", options.width, "cifar", bn_groups=groups, dtype=dtype
    )
    model = models.build(config, {"z": models.HeadSpec((options.features,), init_std=None)})
    variables = model.init(jax.random.key(0), (32, 32, 3))
    network = dataclasses.replace(model, pieces=pieces)

    def loss(params: Any, stats: Any, images: jax.Array) -> jax.Array:
        (_, heads), _ = network.apply(params, stats, images, True)
        return losses.nt_xent(heads["z"][-1].reshape(-1, 2, options.features))

    images = jax.random.uniform(jax.random.key(1), (2 * options.images, 32, 32, 3), dtype)
    inputs = variables["params"], variables["batch_stats"], images
    return jax.jit(jax.grad(loss)).lower(*inputs).compile(), inputs


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Those of this bench."""
    parser.add_argument("--images", type=int, default=128, help="of the batch, two views each")
    parser.add_argument("--micro_batches", type=int, default=16)
    parser.add_argument("--width", type=float, default=0.25, help="of the network")
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=11, help="pairs of runs for every ratio")
    parser.add_argument("--devices", type=int, default=8, help="virtual devices on CPU")
