"""Random numbers on the host that are the same on every machine and with every version of NumPy.

NumPy keeps the raw words of a bit generator fixed, but not what its `Generator` makes of them; so
only raw words of Philox (Salmon et al. 2011) are used, keyed by what the numbers are for.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def uniform_order(n: int, seed: int, stream: int) -> npt.NDArray[np.int64]:
    """A random order of 0 ... n-1: i64[n], a pure function of the arguments (all >= 0)."""
    words = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(n)
    return np.argsort(words, kind="stable")


def uniforms(n: int, seed: int, step: int, row: int, view: int) -> npt.NDArray[np.float64]:
    """f64[n] uniform in [0, 1) for one view of one row of one step (all arguments >= 0)."""
    # The lowest word of the counter counts blocks, so the others tell the streams apart. The second
    # word of the key keeps them apart from the orders, whose streams number the epochs.
    bits = np.random.Philox(
        counter=np.array([0, view, row, step], np.uint64),
        key=np.array([seed, 2**64 - 1], np.uint64),
    )
    words = bits.random_raw(n) >> np.uint64(11)
    return words.astype(np.float64) * 2.0**-53
