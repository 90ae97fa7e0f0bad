"""What a device is: its memory and its peak rates, as their makers state them; and the places that can be planned for."""

import dataclasses
import math
import os
import re
from collections.abc import Mapping

GIB = 2**30

GPU_FRACTION = 0.92
"""Part of a GPU's memory that a program may use, as `launch/slurm.sbatch` sets it. JAX takes 0.75 unless told otherwise; the rest
is for CUDA, cuDNN and NCCL."""


class PlanError(ValueError):
    """A plan that cannot be made; the text says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts them: a TPU chip (or half of one), a GPU.

    Attributes:
      name: as in a topology.
      platform: "tpu", "gpu" or "cpu".
      memory: bytes that a program may use. For TPU what its compiler allows, which is a little less than is built in; of a GPU's
        `GPU_FRACTION`.
      flops: peak floating-point operations a second by type of arithmetic; {} if unknown.
      bandwidth: bytes a second between the device and its memory; 0 if unknown.
      link: bytes a second that a device can send to others over all its links; 0 if unknown.
    """

    name: str
    platform: str
    memory: int
    flops: Mapping[str, float] = dataclasses.field(default_factory=dict)
    bandwidth: float = 0.0
    link: float = 0.0

    def seconds(self, flops: Mapping[str, float]) -> float:
        """The least time for so many operations of each type; those whose rate is unknown are left out (`unrated`)."""
        return sum(count / self.flops[kind] for kind, count in flops.items() if kind in self.flops)

    def unrated(self, flops: Mapping[str, float]) -> tuple[str, ...]:
        """The types of operations whose rate is unknown, if any is known."""
        return tuple(sorted(set(flops) - set(self.flops))) if self.flops else ()


def _tpu(name: str, memory: float, tera: float, bandwidth: float, link: float) -> Chip:
    """A TPU device; memory in GiB, tera in 10^12 bf16 operations, the others in 10^9 bytes a second."""
    # The matrix unit multiplies bf16: float32 takes one, three or six passes, as the program asks for.
    passes = {"bf16": 1, "f32": 1, "f32 high": 3, "f32 highest": 6}
    rates = {kind: 1e12 * tera / count for kind, count in passes.items()}
    rates |= {"s8": 1e12 * tera, "u8": 1e12 * tera, "f16": 1e12 * tera}
    return Chip(name, "tpu", int(memory * GIB), rates, 1e9 * bandwidth, 1e9 * link)


def _gpu(
    name: str,
    memory: float,
    half: float,
    single: float,
    tensor: float,
    bandwidth: float,
    link: float,
) -> Chip:
    """A GPU; memory, all of it, in 10^9 bytes, rates in 10^12 dense operations, the others in 10^9 bytes a second.

    half: bf16 (fp16 where there is no bf16) on tensor cores; single: float32; tensor: float32 products as JAX makes them
    unless told otherwise (TF32 where there is such).
    """
    rates = {"bf16": half, "f16": half, "f32": tensor, "f32 high": tensor, "f32 highest": single}
    rates = {kind: 1e12 * rate for kind, rate in rates.items()} | {"f64": 1e12 * single / 2}
    usable = round(1e9 * memory * GPU_FRACTION)
    return Chip(name, "gpu", usable, rates, 1e9 * bandwidth, 1e9 * link)


# Cloud TPU's system architecture pages: peak bf16, memory bandwidth, interconnect in one direction. A v4 chip has two cores,
# which JAX counts as devices: the figures are of half a chip, and of a whole one where the two work as one device
# ("megacore"), as they always do on v5p. Memory is what libtpu 0.0.42 lets a program use.
TPUS: dict[str, Chip] = {
    "v4": _tpu("v4", 15.25, 137.5, 600, 150),
    "v5e": _tpu("v5e", 15.75, 197, 819, 200),
    "v5p": _tpu("v5p", 95.74, 459, 2765, 600),
    "v6e": _tpu("v6e", 31.25, 918, 1638, 400),
}
MEGACORE: dict[str, Chip] = {
    "v4": _tpu("v4 megacore", 30.75, 275, 1200, 300),
    "v5p": TPUS["v5p"],
}
_SIDES = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}
_CORES = {"v4": 2}

# NVIDIA's data sheets, SXM modules where there are such; links in one direction.
GPUS: dict[str, Chip] = {
    "v100-16": _gpu("v100-16", 16, 125, 15.7, 15.7, 900, 150),
    "v100-32": _gpu("v100-32", 32, 125, 15.7, 15.7, 900, 150),
    "a100-40": _gpu("a100-40", 40, 312, 19.5, 156, 1555, 300),
    "a100-80": _gpu("a100-80", 80, 312, 19.5, 156, 2039, 300),
    "h100": _gpu("h100", 80, 989, 67, 494, 3350, 450),
    "h200": _gpu("h200", 141, 989, 67, 494, 4800, 450),
    "l4": _gpu("l4", 24, 121, 30.3, 60, 300, 32),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Where a plan is for.

    Attributes:
      text: as asked for, "v5e:4x8".
      chip: each of its devices.
      devices: how many JAX counts.
      grid: chips along each side of a TPU slice, () for others.
      megacore: the two cores of a chip are one device.
    """

    text: str
    chip: Chip
    devices: int
    grid: tuple[int, ...] = ()
    megacore: bool = False

    @property
    def note(self) -> str:
        """What has to be known about the devices, "" for nothing."""
        if self.chip.platform == "gpu":
            return (
                f"A program may use {GPU_FRACTION:.0%} of a GPU's memory if it is started by launch/slurm.py or with"
                f" XLA_CLIENT_MEM_FRACTION={GPU_FRACTION:g}; JAX takes 75% by itself"
            )
        chips = math.prod(self.grid)
        if self.grid and self.devices == 2 * chips:
            return f"{chips} chips are {self.devices} devices of half a chip; --megacore makes each chip one"
        return ""

    @property
    def half(self) -> "Topology | None":
        """The same with half as many chips, None where there is no such; a TPU program takes the whole of a slice."""
        if not self.grid:
            count = self.devices // 2
            name = (
                f"gpu:{count}x{self.chip.name}" if self.chip.platform == "gpu" else f"cpu:{count}"
            )
            return None if self.devices % 2 else dataclasses.replace(self, text=name, devices=count)
        *others, longest = sorted(self.grid)
        if longest % 2:
            return None
        grid = sorted([*others, longest // 2])
        if len(grid) == 3 and grid[0] == 1:  # two chips by two are 2x2x1, not 1x2x2
            grid.reverse()
        name = f"{self.text.partition(':')[0]}:{'x'.join(map(str, grid))}"
        return dataclasses.replace(self, text=name, devices=self.devices // 2, grid=tuple(grid))


def parse(text: str, megacore: bool = False) -> Topology:
    """Reads "v5e:4x8" (a TPU slice), "gpu:8xA100-80" (or "h100" for one) or "cpu:8".

    Raises:
      PlanError: lists what is known.
    """
    family, _, size = text.strip().lower().partition(":")
    if megacore and family not in MEGACORE:
        raise PlanError(f"--megacore is for {' and '.join(MEGACORE)}, not for {text!r}")
    if family in TPUS:
        sides = _SIDES[family]
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size) or size.count("x") != sides - 1:
            example = "x".join("2" * sides)
            raise PlanError(
                f"topology {text!r}: expected {family}: and the chips along each of {sides} sides,"
                f" such as {family}:{example}"
            )
        grid = tuple(int(n) for n in size.split("x"))
        cores = 1 if megacore else _CORES.get(family, 1)
        chip = MEGACORE[family] if megacore else TPUS[family]
        return Topology(text, chip, cores * math.prod(grid), grid, megacore)
    if family == "cpu" and re.fullmatch(r"[1-9]\d*", size):
        return Topology(text, Chip("cpu", "cpu", _host_memory()), int(size))
    if family == "gpu":
        count, _, name = size.rpartition("x")
        if name in GPUS and re.fullmatch(r"([1-9]\d*)?", count):
            return Topology(text, GPUS[name], int(count or 1))
    if not size and family in GPUS:
        return Topology(text, GPUS[family], 1)
    raise PlanError(f"unknown topology {text!r}: {known()}")


def known() -> str:
    """The topologies that can be asked for, in words."""
    return (
        f"known are TPU slices of {', '.join(TPUS)} by the chips along each side (v5e:4x8, v4:2x2x4), GPUs gpu:NxNAME (or the"
        f" name alone) with a name of {', '.join(GPUS)}, and virtual CPU devices cpu:N"
    )


def _host_memory() -> int:
    """Bytes of memory of this machine, 0 if it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
