"""What a few seeds say: means, their intervals, and whether one cell is above another."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence

import numpy as np

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The mean of one value a seed.

    Attributes:
      count: number of seeds.
      mean: over them.
      sd: standard deviation of a seed (divisor count - 1); None for a single one.
      low: lower end of the 95 % interval of the mean, by Student's t; None for a single seed.
      high: upper end.
    """

    count: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation and t interval of at least one value.

    Raises:
      ValueError: no value, or one that is not finite.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ValueError(f"estimate: expected one or more finite numbers, got {list(values)}")
    mean = float(x.mean())
    if len(x) == 1:
        return Estimate(1, mean)
    sd = float(x.std(ddof=1))
    reach = t_quantile(len(x) - 1) * sd / math.sqrt(len(x))
    return Estimate(len(x), mean, sd, mean - reach, mean + reach)


def t_quantile(freedom: int) -> float:
    """The factor of a two-sided 95 % interval: 12.7 for 1 degree of freedom, 1.96 for infinitely many."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


class Verdict(enum.StrEnum):
    """What the paired differences of a contrast say; the values are how it is told."""

    HOLDS = "holds beyond the seeds' spread"
    WITHIN = "within the seeds' spread"
    OPPOSITE = "opposite, beyond the seeds' spread"
    ONE_SEED = "one seed: no spread, no verdict"
    MISSING = "not measured"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One cell against another (or the best of several), seed by seed.

    Attributes:
      differences: seed -> the value of the cell expected above minus that of the one below.
      estimate: of their mean; None without a common seed.
      verdict: HOLDS if the whole interval of the mean difference is above the threshold, OPPOSITE if it is below, else WITHIN.
    """

    differences: Mapping[int, float]
    estimate: Estimate | None
    verdict: Verdict


def compare(
    higher: Mapping[int, float], lower: Sequence[Mapping[int, float]], tolerance: float = 0.0
) -> Comparison:
    """Compares seed by seed: equal seeds start from the same parameters and see the same order of images.

    Args:
      higher: seed -> value of the cell that is expected above.
      lower: the same for one or more cells; of several, each seed's best counts, which makes it harder for `higher`.
      tolerance: the threshold is so far below 0.
    """
    seeds = sorted(set(higher).intersection(*lower)) if lower else []
    differences = {s: higher[s] - max(values[s] for values in lower) for s in seeds}
    if not differences:
        return Comparison({}, None, Verdict.MISSING)
    found = estimate(list(differences.values()))
    if found.low is None or found.high is None:
        verdict = Verdict.ONE_SEED
    elif found.low > -tolerance:
        verdict = Verdict.HOLDS
    elif found.high < -tolerance:
        verdict = Verdict.OPPOSITE
    else:
        verdict = Verdict.WITHIN
    return Comparison(differences, found, verdict)
