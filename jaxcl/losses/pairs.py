"""What a pair loss asks of a tile of the similarity matrix, and the arithmetic of one tile.

Everything here works on one tile ``s[m, n]`` of similarities, knows no loops, and is used as it is
by the dense form, the loops of XLA (`tiles`) and the Pallas kernels (`kernels`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

Meta = dict[str, jax.Array]
Stat = Literal["lse", "positive_sum", "positive_lse", "positives"]
Stats = dict[Stat, jax.Array]
Sums = dict[str, jax.Array]
Coefficients = dict[str, jax.Array]
T = TypeVar("T")


class Pairs(NamedTuple):
    """What a relation says about a tile: two boolean masks that broadcast to ``[m, n]``.

    Attributes:
        counted: the pairs of the denominator, over which ``lse`` runs.
        positive: the pairs to be pulled together; each one counts as one positive.
    """

    counted: jax.Array
    positive: jax.Array


@dataclasses.dataclass(frozen=True)
class Relation:
    """Says for any tile which of its pairs are counted and which are positive.

    Attributes:
        pairs: a module-level function ``pairs(query_meta, key_meta) -> Pairs``. Leaves arrive as
            ``[m, 1]`` and ``[1, n]``, so that comparing them gives the tile. Elementwise
            operations only; it is traced inside kernels. For self-contrast it is symmetric.
        block: for self-contrast, a promise that saves the masks of most tiles: rows come in
            consecutive groups of this size, and a pair of rows of two groups is always counted and
            never positive. 0 promises nothing.
    """

    pairs: Callable[[Meta, Meta], Pairs]
    block: int = 0


@dataclasses.dataclass(frozen=True)
class TileSpec:
    """What is done with every tile; static.

    Attributes:
        relation: which pairs are counted and positive.
        want: the names of the sums, see `jaxcl.losses.nce.row_stats`.
        bound: what no similarity exceeds in absolute value, or None. Given and small enough for the
            dtype's exponent, ``exp(s - bound)`` can neither overflow nor vanish: one exponential
            serves a pair in both directions, and running maxima are not needed.
        precision: of the matrix products.
        size: rows and columns of a tile at most.
        varying: the mesh axes over which the rows vary, inside `jax.shard_map`.
        interpret: whether Pallas kernels are interpreted instead of compiled.
    """

    relation: Relation
    want: tuple[Stat, ...]
    bound: float | None
    precision: Any
    size: int
    varying: tuple[str, ...] = ()
    interpret: bool = False


def usable_bound(bound: float | None, dtype: jax.typing.DTypeLike) -> float | None:
    """`bound` if ``exp(-2 * bound)`` is a normal number of `dtype`, with room to spare."""
    room = 80.0 if jnp.finfo(dtype).bits == 32 else 700.0
    return bound if bound is not None and 2 * bound <= room else None


def tile_sums(spec: TileSpec, s: jax.Array, pairs: Pairs | None, axis: int) -> Sums:
    """The sums of one tile along `axis`, which is kept with length 1.

    `pairs` None means that all pairs are counted and none is positive.
    """
    sums: Sums = {}
    if "lse" in spec.want:
        _add_exponentials(sums, "lse", spec, s, None if pairs is None else pairs.counted, axis)
    if pairs is None:
        return sums
    if "positive_lse" in spec.want:
        _add_exponentials(sums, "positive_lse", spec, s, pairs.positive, axis)
    if "positive_sum" in spec.want:
        sums["positive_sum"] = jnp.sum(jnp.where(pairs.positive, s, 0), axis, keepdims=True)
    if "positives" in spec.want:
        one = jnp.where(pairs.positive, jnp.ones_like(s), 0)
        sums["positives"] = jnp.sum(one, axis, keepdims=True)
    return sums


def _add_exponentials(
    sums: Sums, name: str, spec: TileSpec, s: jax.Array, mask: jax.Array | None, axis: int
) -> None:
    """Adds ``sum exp(s - top)`` under a mask, and ``top`` unless a bound makes it a constant."""
    if spec.bound is not None:
        terms = jnp.exp(s - spec.bound)
    else:
        seen = s if mask is None else jnp.where(mask, s, -jnp.inf)
        top = jnp.max(seen, axis, keepdims=True)
        sums[name + "_top"] = top
        terms = jnp.exp(s - _finite(top))
    if mask is not None:
        terms = jnp.where(mask, terms, 0)
    sums[name] = jnp.sum(terms, axis, keepdims=True)


def merge(into: Sums, new: Sums) -> Sums:
    """The sums over two disjoint sets of pairs; `new` may lack some that `into` has."""
    out = dict(into)
    for name, value in new.items():
        top = name + "_top"
        if top in new:
            highest = jnp.maximum(into[top], new[top])
            base = _finite(highest)
            # exp(-inf) = 0 drops a side that has seen nothing.
            out[name] = into[name] * jnp.exp(into[top] - base) + value * jnp.exp(new[top] - base)
            out[top] = highest
        elif not name.endswith("_top"):
            out[name] = into[name] + value
    return out


def no_sums(spec: TileSpec, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Sums:
    """The sums over no pairs at all."""
    sums: Sums = {}
    for name in spec.want:
        sums[name] = jnp.zeros(shape, dtype)
        if name.endswith("lse") and spec.bound is None:
            sums[name + "_top"] = jnp.full(shape, -jnp.inf, dtype)
    return sums


def finish(spec: TileSpec, sums: Sums) -> Stats:
    """Row statistics from the sums over all tiles of a row."""
    stats: Stats = {}
    for name in spec.want:
        total = sums[name]
        if name.endswith("lse"):
            # No pairs: -inf, either way. A NaN stays one.
            shift = spec.bound if spec.bound is not None else sums[name + "_top"]
            total = shift + jnp.log(total)
        stats[name] = total
    return stats


def coefficients(spec: TileSpec, stats: Stats, gradient: Stats) -> Coefficients:
    """What `tile_weights` needs of each row: the gradient of its sums, folded with its lse.

    Args:
        spec: as in the forward pass.
        stats: the results of the forward pass.
        gradient: of the loss with respect to each of them.
    """
    out: Coefficients = {}
    for name in spec.want:
        g = gradient[name]
        if name == "positive_sum":
            out[name] = g
        elif name.endswith("lse"):
            # A row without pairs has lse -inf; +inf makes its exponentials, and so its weights, 0.
            lse = stats[name]
            lse = jnp.where(lse == -jnp.inf, jnp.inf, lse)
            if spec.bound is not None:
                out[name] = g * jnp.exp(spec.bound - lse)
            else:
                out[name] = g
                out[name + "_at"] = lse
    return out


def tile_weights(
    spec: TileSpec,
    s: jax.Array,
    pairs: Pairs | None,
    row: Coefficients | None,
    column: Coefficients | None,
) -> jax.Array:
    """The gradient with respect to the similarities of a tile, ``[m, n]``.

    Args:
        spec: as in the forward pass.
        s: the similarities, made anew.
        pairs: as for `tile_sums`.
        row: coefficients ``[m, 1]`` of the rows' sums, or None if the rows are not anchors.
        column: the same ``[1, n]`` of the columns, which in self-contrast are anchors too.
    """
    sides = [side for side in (row, column) if side is not None]

    def softmax_weights(name: str) -> jax.Array:
        if spec.bound is not None:
            return jnp.exp(s - spec.bound) * _sum([side[name] for side in sides])
        return _sum([side[name] * jnp.exp(s - side[name + "_at"]) for side in sides])

    weights: list[jax.Array] = []
    if "lse" in spec.want:
        w = softmax_weights("lse")
        weights.append(w if pairs is None else jnp.where(pairs.counted, w, 0))
    if pairs is not None:
        pull: list[jax.Array] = []
        if "positive_sum" in spec.want:
            pull.append(_sum([side["positive_sum"] for side in sides]))
        if "positive_lse" in spec.want:
            pull.append(softmax_weights("positive_lse"))
        if pull:
            weights.append(jnp.where(pairs.positive, _sum(pull), jnp.zeros_like(s)))
    return _sum(weights) if weights else jnp.zeros_like(s)


def as_rows(tree: T) -> T:
    """Vectors ``[m]`` that belong to the rows of a tile, as ``[m, 1]``."""
    return jax.tree.map(lambda x: x[:, None], tree)


def as_columns(tree: T) -> T:
    """Vectors ``[n]`` that belong to the columns of a tile, as ``[1, n]``."""
    return jax.tree.map(lambda x: x[None, :], tree)


def _finite(top: jax.Array) -> jax.Array:
    """A maximum that may be subtracted: 0 where it was taken over nothing."""
    return jnp.where(top == -jnp.inf, jnp.zeros_like(top), top)


def _sum(terms: list[jax.Array]) -> jax.Array:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
