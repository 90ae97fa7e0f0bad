"""Random numbers on the host that are the same on every machine and with every version of NumPy.

NumPy keeps the raw words of a bit generator fixed, but not what its `Generator` makes of them; so
only raw words of Philox (Salmon et al. 2011) are used, keyed by what the numbers are for.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# The second word of the key tells the uses apart: orders have the number of their stream there.
_UNIFORMS = 2**64 - 1
_WORDS = 2**64 - 2


def uniform_order(n: int, seed: int, stream: int) -> npt.NDArray[np.int64]:
    """A random order of 0 ... n-1: i64[n], a pure function of the arguments (all >= 0)."""
    bits = np.random.Philox(key=np.array([seed, stream], np.uint64))
    return np.argsort(bits.random_raw(n), kind="stable")


def words(n: int, seed: int) -> npt.NDArray[np.uint64]:
    """Random words u64[n], a pure function of the arguments (seed >= 0)."""
    return np.random.Philox(key=np.array([seed, _WORDS], np.uint64)).random_raw(n)


def uniforms(n: int, seed: int, step: int, row: int, view: int) -> npt.NDArray[np.float64]:
    """f64[n] uniform in [0, 1) for one view of one row of one step (all arguments >= 0)."""
    # The lowest word of the counter counts blocks, so the others tell the streams apart.
    bits = np.random.Philox(
        counter=np.array([0, view, row, step], np.uint64),
        key=np.array([seed, _UNIFORMS], np.uint64),
    )
    return (bits.random_raw(n) >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Stream:
    """Random numbers one after another, a function of (seed, number) and of what was taken before.

    They are other numbers than those of `uniform_order(n, seed, number)`.
    """

    def __init__(self, seed: int, number: int) -> None:
        """Begins the stream of two numbers >= 0."""
        # An order counts its blocks in the lowest word of the counter; the highest one stays 0.
        self._bits = np.random.Philox(
            counter=np.array([0, 0, 0, 1], np.uint64), key=np.array([seed, number], np.uint64)
        )

    def order(self, n: int) -> npt.NDArray[np.int64]:
        """A random order of 0 ... n-1: i64[n]."""
        return np.argsort(self._bits.random_raw(n), kind="stable")

    def uniforms(self, n: int) -> npt.NDArray[np.float64]:
        """f64[n] uniform in [0, 1)."""
        return (self._bits.random_raw(n) >> np.uint64(11)).astype(np.float64) * 2.0**-53
