"""Distances between embeddings, with a finite gradient everywhere.

Of every distance smaller is closer, and a similarity is minus a distance. Each comes in two forms: of rows one by one
(`of_rows`, any leading axes, which broadcast) and of all pairs of two sets of rows (`of_pairs`). Everything is at least
float32. At a kink, such as two equal rows under a root or a row without direction, the gradient is 0.

The products of `l2`, `squared_l2`, `cosine`, `dot` and `snr` are products of matrices; `l1` and `lp` have to look at all
differences, and do so in blocks of rows that are made anew in the backward pass, so that no ``[N, M, D]`` array of a large
batch ever exists.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxcl.losses.contrastive import normalize

# Differences of [N, M, D] that are made at once, in elements; 16 MiB in float32.
_BLOCK = 2**22


@dataclasses.dataclass(frozen=True)
class Distance:
    """A distance by name; make one with `distance`.

    Attributes:
        name: one of `DISTANCES`.
        p: the exponent of "lp".
    """

    name: str = "l2"
    p: float = 2.0

    def __post_init__(self) -> None:
        if self.name not in DISTANCES:
            raise ValueError(f"distance={self.name!r}: expected one of {', '.join(DISTANCES)}")
        if not self.p >= 1:
            raise ValueError(f"p={self.p}: expected a number from 1 on, or inf, for an Lp distance")

    @property
    def symmetric(self) -> bool:
        """Whether ``d(x, y) = d(y, x)``; all are but "snr", whose first row is the signal."""
        return self.name != "snr"

    @property
    def zero_on_diagonal(self) -> bool:
        """Whether ``d(x, x) = 0`` and no distance is below 0; all but "dot"."""
        return self.name != "dot"

    def of_rows(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Distances ``[...]`` of ``x[..., D]`` and ``y[..., D]``; leading axes broadcast."""
        x, y = _floats(x, y)
        if self.name == "lp":
            return _lp(x, y, self.p)
        return _ROWS[self.name](x, y)

    def of_pairs(
        self, x: jax.Array, y: jax.Array | None = None, *, precision: Any = "highest"
    ) -> jax.Array:
        """Distances ``[N, M]`` of ``x[N, D]`` and ``y[M, D]``; of x and itself if y is None.

        Distances by products that are below the rounding of the rows' norms are exactly 0, so that a
        row and its duplicates are at distance 0 of each other.

        Args:
            x: ``float[N, D]``.
            y: ``float[M, D]``.
            precision: of the matrix products, as in `jax.numpy.matmul`.

        Raises:
            ValueError: x and y are not two matrices of equal width.
        """
        y = x if y is None else y
        if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
            raise ValueError(
                f"distances of pairs need x[N, D] and y[M, D], got {list(x.shape)} and {list(y.shape)}"
            )
        x, y = _floats(x, y)
        if self.name in ("l1", "lp"):
            return _in_blocks(self.of_rows, x, y)
        return _PAIRS[self.name](x, y, precision)


def distance(name: str, p: float = 2.0) -> Distance:
    """The distance of a name.

    Args:
        name: of `x` and `y` with D features each:

            * "l1": ``sum |x - y|``;
            * "l2": ``sqrt(sum (x - y)^2)``;
            * "squared_l2": ``sum (x - y)^2``;
            * "lp": ``(sum |x - y|^p)^(1/p)``, p = inf for the largest difference;
            * "cosine": ``1 - <x, y> / (|x| |y|)``, in [0, 2]; a zero row is at 1 of every row;
            * "dot": ``-<x, y>``, which is no metric;
            * "snr": ``var(x - y) / var(x)``, variances over the features, x the anchor (Yuan et al.,
              CVPR 2019, equation 5); an anchor without variance divides by 1.
        p: for "lp", from 1 on.

    Raises:
        ValueError: an unknown name, or p below 1.
    """
    return Distance(name, p)


def _floats(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, y = jnp.asarray(x), jnp.asarray(y)
    dtype = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
    return x.astype(dtype), y.astype(dtype)


def _root(square: jax.Array) -> jax.Array:
    """The square root, with gradient 0 at 0."""
    zero = square == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


def _absolute(x: jax.Array) -> jax.Array:
    """The absolute value, with gradient 0 at 0."""
    return jnp.where(x == 0, 0, jnp.abs(x))


def _l1(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sum(_absolute(x - y), axis=-1)


def _squared_l2(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x - y), axis=-1)


def _l2(x: jax.Array, y: jax.Array) -> jax.Array:
    return _root(_squared_l2(x, y))


def _lp(x: jax.Array, y: jax.Array, p: float) -> jax.Array:
    gap = _absolute(x - y)
    # Powers of differences over their largest neither overflow nor vanish; the sum is homogeneous,
    # so that the largest may stay a constant to the gradient.
    largest = jax.lax.stop_gradient(jnp.max(gap, axis=-1, initial=0))
    if p == math.inf:
        return jnp.max(gap, axis=-1, initial=0)
    zero = largest == 0
    unit = jnp.where(zero, 1, largest)
    total = jnp.sum((gap / unit[..., None]) ** p, axis=-1)
    return jnp.where(zero, 0, unit * jnp.where(zero, 1, total) ** (1 / p))


def _cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    return _one_less(jnp.sum(normalize(x) * normalize(y), axis=-1))


def _one_less(cosine: jax.Array) -> jax.Array:
    """The distance of a cosine; 0, with gradient 0, where rounding alone is left. NaN stays NaN."""
    gap = 1 - cosine
    # Half the squared distance of two unit rows, and so half its rounding.
    return jnp.where(gap <= 8 * float(jnp.finfo(gap.dtype).eps), 0, gap)


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    return -jnp.sum(x * y, axis=-1)


def _snr(x: jax.Array, y: jax.Array) -> jax.Array:
    x, y = _centred(x), _centred(y)
    return _squared_l2(x, y) / _signal(x)


def _centred(x: jax.Array) -> jax.Array:
    return x - jnp.mean(x, axis=-1, keepdims=True)


def _signal(centred: jax.Array) -> jax.Array:
    """The sum of squares of centred rows, 1 where there is no variance."""
    square = jnp.sum(jnp.square(centred), axis=-1)
    return jnp.where(square <= jnp.finfo(square.dtype).tiny, 1, square)


def _products(x: jax.Array, y: jax.Array, precision: Any) -> jax.Array:
    return jnp.matmul(x, y.T, precision=precision)


def _squared_l2_pairs(x: jax.Array, y: jax.Array, precision: Any) -> jax.Array:
    norms = jnp.sum(x * x, axis=1)[:, None] + jnp.sum(y * y, axis=1)[None, :]
    square = norms - 2 * _products(x, y, precision)
    # What is left of equal rows is rounding, of either sign. NaN stays NaN.
    rounding = 8 * float(jnp.finfo(norms.dtype).eps) * jax.lax.stop_gradient(norms)
    return jnp.where(square <= rounding, 0, square)


def _l2_pairs(x: jax.Array, y: jax.Array, precision: Any) -> jax.Array:
    return _root(_squared_l2_pairs(x, y, precision))


def _cosine_pairs(x: jax.Array, y: jax.Array, precision: Any) -> jax.Array:
    return _one_less(_products(normalize(x), normalize(y), precision))


def _dot_pairs(x: jax.Array, y: jax.Array, precision: Any) -> jax.Array:
    return -_products(x, y, precision)


def _snr_pairs(x: jax.Array, y: jax.Array, precision: Any) -> jax.Array:
    x, y = _centred(x), _centred(y)
    return _squared_l2_pairs(x, y, precision) / _signal(x)[:, None]


def _in_blocks(
    of_rows: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, y: jax.Array
) -> jax.Array:
    """`of_rows` of all pairs ``[N, M]``, some rows of x at a time where all are too many."""
    rows = max(1, _BLOCK // max(1, y.size))
    if rows >= len(x):
        return of_rows(x[:, None], y[None])
    block = jax.checkpoint(lambda row: of_rows(row, y))
    return jax.lax.map(block, x, batch_size=rows)


_ROWS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "l1": _l1,
    "l2": _l2,
    "squared_l2": _squared_l2,
    "cosine": _cosine,
    "dot": _dot,
    "snr": _snr,
}
_PAIRS: dict[str, Callable[[jax.Array, jax.Array, Any], jax.Array]] = {
    "l2": _l2_pairs,
    "squared_l2": _squared_l2_pairs,
    "cosine": _cosine_pairs,
    "dot": _dot_pairs,
    "snr": _snr_pairs,
}
DISTANCES = ("l1", "l2", "squared_l2", "lp", "cosine", "dot", "snr")
