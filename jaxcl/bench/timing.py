"""Times that can be compared, and the tables that they are printed in."""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np


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


def print_machine(found: dict[str, Any]) -> None:
    """A line of what `machine` says."""
    print("  ".join(f"{name} {value}" for name, value in found.items()))


def load_after() -> float:
    """The load of the machine when all is measured, which is printed."""
    load = os.getloadavg()[0]
    print(f"\nload after: {load:.1f}; a ratio taken under a load is not worth much")
    return load


def row_of_text(head: Any, cells: Sequence[str]) -> str:
    """One line of a table."""
    head = f"{head:,}" if isinstance(head, int) else head
    return f"{head:>10s}" + "".join(f" {cell:>21s}" for cell in cells)


def numbers(text: str) -> list[int]:
    """``1024,4096`` as a list."""
    return [int(part.replace("_", "")) for part in text.split(",") if part]
