"""Kinds of Cloud TPU: names, chips, hosts."""

import math
import re
from typing import NamedTuple

from launch.calls import LaunchError


class Kind(NamedTuple):
    """A generation of TPUs.

    Attributes:
      queue: how Cloud TPU begins its types ("v5litepod-32").
      per_chip: how many of what such a type counts are one chip.
      alone: the largest number of chips that one host alone holds; of more, each host holds four.
      runtime: the software version of its machines.
      node: the label of its node pools in GKE.
      dimensions: of its topologies.
    """

    queue: str
    per_chip: int
    alone: int
    runtime: str
    node: str
    dimensions: int


KINDS = {
    "v4": Kind("v4", 2, 4, "tpu-ubuntu2204-base", "tpu-v4-podslice", 3),
    "v5e": Kind("v5litepod", 1, 8, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", 2),
    "v5p": Kind("v5p", 2, 4, "v2-alpha-tpuv5", "tpu-v5p-slice", 3),
    "v6e": Kind("v6e", 1, 8, "v2-alpha-tpuv6e", "tpu-v6e-slice", 2),
}


def of_type(accelerator_type: str) -> tuple[Kind, int]:
    """Kind and number of chips of a type such as "v5litepod-32".

    Raises:
      LaunchError: not a type; lists the known.
    """
    for kind in KINDS.values():
        match = re.fullmatch(rf"{kind.queue}-(\d+)", accelerator_type)
        if match and int(match[1]) and int(match[1]) % kind.per_chip == 0:
            return kind, int(match[1]) // kind.per_chip
    known = ", ".join(
        f"{k.queue}-N (N {'chips' if k.per_chip == 1 else 'cores, two a chip'})"
        for k in KINDS.values()
    )
    raise LaunchError(f"--type={accelerator_type}: expected one of {known}")


def of_topology(topology: str) -> tuple[Kind, str, int]:
    """Kind, topology proper and number of chips of, for example, "v5e:4x8".

    Raises:
      LaunchError: not a topology; lists the known kinds.
    """
    name, _, shape = topology.partition(":")
    kind = KINDS.get(name)
    sizes = [int(n) for n in shape.split("x")] if re.fullmatch(r"\d+(x\d+)*", shape) else []
    if kind is None or len(sizes) != kind.dimensions or not all(sizes):
        known = ", ".join(f"{n}:{'x'.join('ABC'[: k.dimensions])}" for n, k in KINDS.items())
        raise LaunchError(
            f"--topology={topology}: expected one of {known} with numbers for the letters"
        )
    return kind, shape, math.prod(sizes)


def cost(chips: int, price: str) -> str:
    """What each hour costs, as a formula."""
    return f"{chips} chips: each hour costs {chips} chip-hours, that is {chips} x {price}"
