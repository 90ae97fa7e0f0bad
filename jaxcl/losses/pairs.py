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
import numpy as np

Meta = dict[str, Any]
Mask = Any  # an array, or a tuple of arrays, one for each level
Stat = Literal[
    "lse",
    "max",
    "argmax",
    "positive_sum",
    "positive_lse",
    "positives",
    "positive_min",
    "positive_argmin",
]
Stats = dict[Stat, jax.Array]
Sums = dict[str, jax.Array]
Coefficients = dict[str, jax.Array]
T = TypeVar("T")

POSITION = "_position"  # metadata: the number of a row among all rows, for argmax and argmin
ARGUMENTS: dict[Stat, Stat] = {"argmax": "max", "positive_argmin": "positive_min"}
_NOWHERE = np.iinfo(np.int32).max


class Pairs(NamedTuple):
    """What a relation says about a tile, as arrays that broadcast to ``[m, n]``.

    A boolean array names pairs; an array of floats names those where it is not 0 and gives them
    weights, which multiply what the pairs add to a sum: ``sum w exp(s)`` (then w must not be
    negative), ``sum w s``, ``sum w``. No gradient flows into them. A tuple of such arrays asks the
    same for each of several levels at once, for little more than the cost of one.

    Attributes:
        counted: the pairs of the denominator, over which ``lse`` and ``max`` run.
        positive: the pairs to be pulled together, over which the other sums run.
    """

    counted: Mask
    positive: Mask


@dataclasses.dataclass(frozen=True)
class Relation:
    """Says for any tile which of its pairs are counted and which are positive.

    Attributes:
        pairs: a module-level function ``pairs(query_meta, key_meta) -> Pairs``. Leaves ``[N]`` arrive
            as ``[m, 1]`` and ``[1, n]``, so that comparing them gives the tile, and leaves ``[N, L]``
            as tuples of L such. Elementwise operations only; it is traced inside kernels. For
            self-contrast it is symmetric.
        block: for self-contrast, a promise that saves the masks of most tiles: rows come in
            consecutive groups of this size, and a pair of rows of two groups is always counted, with
            weight 1 at every level, and never positive. 0 promises nothing.
        sees_similarity: whether `pairs` takes a third argument, the tile's similarities ``[m, n]``,
            such as to compare them with a threshold in the metadata. The masks are constants to
            differentiation, and similarities are made anew in the backward pass, perhaps with
            another rounding: let nothing hang on a pair that equals its threshold.
    """

    pairs: Callable[..., Pairs]
    block: int = 0
    sees_similarity: bool = False

    def of_tile(self, query_meta: Meta, key_meta: Meta, s: jax.Array) -> Pairs:
        """The pairs of a tile; metadata as ``[m, 1]`` and ``[1, n]``."""
        if self.sees_similarity:
            return self.pairs(query_meta, key_meta, s)
        return self.pairs(query_meta, key_meta)


class Levels(NamedTuple):
    """How many levels a relation has; None where it gives an array and no tuple."""

    counted: int | None
    positive: int | None


def levels_of(relation: Relation, query_meta: Meta, key_meta: Meta, dtype: Any) -> Levels:
    """The levels of a relation, found by tracing it."""

    def entry(dtype: Any) -> jax.ShapeDtypeStruct:
        # NumPy's 64 bits are JAX's 32 unless it has been told otherwise.
        return jax.ShapeDtypeStruct((1, 1), jax.dtypes.canonicalize_dtype(dtype))

    def like(meta: Meta) -> Meta:
        return jax.tree.map(lambda x: entry(x.dtype), meta)

    pairs = jax.eval_shape(relation.of_tile, like(query_meta), like(key_meta), entry(dtype))
    return Levels(*(len(mask) if isinstance(mask, tuple) else None for mask in pairs))


@dataclasses.dataclass(frozen=True)
class Part:
    """One sum along the rows of a tile: a statistic at a level.

    Attributes:
        stat: which statistic; for an argument (argmax, positive_argmin) that of its value.
        level: None where the relation knows no levels.
    """

    stat: Stat
    level: int | None

    @property
    def key(self) -> str:
        """Its name among the sums."""
        return self.stat if self.level is None else f"{self.stat}/{self.level}"

    @property
    def counts(self) -> bool:
        """Whether it runs over the counted pairs, and not over the positive."""
        return self.stat in ("lse", "max")

    @property
    def exponential(self) -> bool:
        """Whether it is the logarithm of a sum of exponentials."""
        return self.stat in ("lse", "positive_lse")

    @property
    def extreme(self) -> bool:
        """Whether it is a largest or smallest similarity."""
        return self.stat in ("max", "positive_min")

    @property
    def worst(self) -> float:
        """What an extreme is over no pairs."""
        return -np.inf if self.stat == "max" else np.inf

    def better(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """The extreme of two."""
        return jnp.maximum(a, b) if self.stat == "max" else jnp.minimum(a, b)

    def mask(self, pairs: Pairs | None) -> jax.Array | None:
        """Its mask of a tile; None for all pairs."""
        if pairs is None:
            return None
        mask = pairs.counted if self.counts else pairs.positive
        return mask if self.level is None else mask[self.level]


@dataclasses.dataclass(frozen=True)
class TileSpec:
    """What is done with every tile; static.

    Attributes:
        relation: which pairs are counted and positive.
        want: the statistics to make, see `jaxcl.losses.nce.row_stats`; arguments come with their
            values and are not named.
        levels: of the relation.
        bound: what no similarity exceeds in absolute value, or None. Given and small enough for the
            dtype's exponent, ``exp(s - bound)`` can neither overflow nor vanish: one exponential
            serves a pair in both directions and at all levels, and running maxima are not needed.
        precision: of the matrix products.
        size: rows and columns of a tile at most.
        varying: the mesh axes over which the rows vary, inside `jax.shard_map`.
        interpret: whether Pallas kernels are interpreted instead of compiled.
    """

    relation: Relation
    want: tuple[Stat, ...]
    levels: Levels
    bound: float | None
    precision: Any
    size: int
    varying: tuple[str, ...] = ()
    interpret: bool = False

    @property
    def parts(self) -> list[Part]:
        """The sums to make."""
        out = []
        for stat in self.want:
            part = Part(stat, None)
            levels = self.levels.counted if part.counts else self.levels.positive
            out += [part] if levels is None else [Part(stat, level) for level in range(levels)]
        return out


def usable_bound(bound: float | None, dtype: jax.typing.DTypeLike) -> float | None:
    """`bound` if ``exp(-2 * bound)`` is a normal number of `dtype`, with room to spare."""
    room = 80.0 if jnp.finfo(dtype).bits == 32 else 700.0
    return bound if bound is not None and 2 * bound <= room else None


def tile_sums(spec: TileSpec, s: jax.Array, pairs: Pairs | None, axis: int, position: Any) -> Sums:
    """The sums of one tile along `axis`, which is kept with length 1.

    Args:
        spec: what to make.
        s: the similarities ``[m, n]``.
        pairs: None means that all pairs are counted and none is positive.
        axis: 1 for the sums of the rows, 0 for those of the columns.
        position: ``i32[1, n]`` of the columns for axis 1, ``i32[m, 1]`` of the rows for axis 0; needed
            for extremes only, else None.
    """
    sums: Sums = {}
    for part in spec.parts:
        if pairs is None and not part.counts:
            continue
        mask = part.mask(pairs)
        if part.extreme:
            seen = s if mask is None else jnp.where(_names(mask), s, part.worst)
            reduce = jnp.max if part.stat == "max" else jnp.min
            best = reduce(seen, axis, keepdims=True)
            here = seen == best if mask is None else (seen == best) & _names(mask)
            sums[part.key] = best
            sums[part.key + "_at"] = jnp.min(
                jnp.where(here, position, _NOWHERE), axis, keepdims=True
            )
            continue
        if part.exponential and spec.bound is not None:
            terms = jnp.exp(s - spec.bound)
        elif part.exponential:
            seen = s if mask is None else jnp.where(_names(mask), s, -jnp.inf)
            top = jnp.max(seen, axis, keepdims=True)
            sums[part.key + "_top"] = top
            terms = jnp.exp(s - _finite(top))
        else:
            terms = s if part.stat == "positive_sum" else jnp.ones_like(s)
        sums[part.key] = jnp.sum(_under(mask, terms), axis, keepdims=True)
    return sums


def merge(spec: TileSpec, into: Sums, new: Sums) -> Sums:
    """The sums over two disjoint sets of pairs; `new` may lack some that `into` has."""
    out = dict(into)
    for part in spec.parts:
        key = part.key
        if key not in new:
            continue
        if part.extreme:
            at, old, now = key + "_at", into[key], new[key]
            best = part.better(old, now)
            # Between equals the lower position wins, whatever the order of the tiles.
            out[at] = jnp.minimum(
                jnp.where(old == best, into[at], _NOWHERE),
                jnp.where(now == best, new[at], _NOWHERE),
            )
            out[key] = best
        elif part.exponential and spec.bound is None:
            top = key + "_top"
            highest = jnp.maximum(into[top], new[top])
            base = _finite(highest)
            # exp(-inf) = 0 drops a side that has seen nothing.
            old, now = into[key] * jnp.exp(into[top] - base), new[key] * jnp.exp(new[top] - base)
            out[key] = old + now
            out[top] = highest
        else:
            out[key] = into[key] + new[key]
    return out


def no_sums(spec: TileSpec, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Sums:
    """The sums over no pairs at all."""
    sums: Sums = {}
    for part in spec.parts:
        sums[part.key] = jnp.full(shape, part.worst if part.extreme else 0, dtype)
        if part.extreme:
            sums[part.key + "_at"] = jnp.full(shape, _NOWHERE, jnp.int32)
        elif part.exponential and spec.bound is None:
            sums[part.key + "_top"] = jnp.full(shape, -jnp.inf, dtype)
    return sums


def finish(spec: TileSpec, sums: Sums) -> Stats:
    """Row statistics ``[N]``, or ``[N, levels]``, from the sums over all tiles of a row."""
    found: dict[Stat, list[jax.Array]] = {}
    with_levels: set[Stat] = set()
    argument_of = {value: argument for argument, value in ARGUMENTS.items()}
    for part in spec.parts:
        value = sums[part.key]
        made: list[Stat] = [part.stat]
        if part.exponential:
            # No pairs: -inf, either way. A NaN stays one.
            shift = spec.bound if spec.bound is not None else sums[part.key + "_top"]
            value = shift + jnp.log(value)
        found.setdefault(part.stat, []).append(value)
        if part.extreme:
            at = sums[part.key + "_at"]
            made.append(argument_of[part.stat])
            found.setdefault(made[-1], []).append(jnp.where(at == _NOWHERE, -1, at))
        if part.level is not None:
            with_levels.update(made)
    return {
        stat: jnp.stack(values, axis=1) if stat in with_levels else values[0]
        for stat, values in found.items()
    }


def coefficients(spec: TileSpec, sums: Sums, gradient: Stats) -> Coefficients:
    """What `tile_weights` needs of each row: the gradient of its sums, divided by its sum of exponentials.

    A log-sum-exp would do as well in exact arithmetic. But of the size 1 / temperature it is rounded by
    so much, and with it all weights of its row.

    Args:
        spec: as in the forward pass, but without what has no gradient.
        sums: over all tiles of each row, of the forward pass.
        gradient: of the loss with respect to the statistics made of them.
    """
    out: Coefficients = {}
    for part in spec.parts:

        def at_level(values: jax.Array, level: int | None = part.level) -> jax.Array:
            return values if level is None else values[:, level]

        g = at_level(gradient[part.stat])
        if part.extreme:
            out[part.key] = g
            out[part.key + "_at"] = sums[part.key + "_at"]
        elif part.exponential:
            # A row without pairs gives them no weight.
            none = sums[part.key] == 0
            out[part.key] = jnp.where(none, 0, g) / jnp.where(none, 1, sums[part.key])
            if spec.bound is None:
                top = sums[part.key + "_top"]
                out[part.key + "_at"] = jnp.where(none, jnp.inf, top)
        elif part.stat == "positive_sum":
            out[part.key] = g
    return out


class Side(NamedTuple):
    """The anchors on one side of a tile.

    Attributes:
        coefficients: ``[m, 1]`` of the rows or ``[1, n]`` of the columns.
        position: of the other side, ``i32[1, n]`` or ``i32[m, 1]``; needed for extremes only, else
            None.
    """

    coefficients: Coefficients
    position: Any


def tile_weights(
    spec: TileSpec, s: jax.Array, pairs: Pairs | None, row: Side | None, column: Side | None
) -> jax.Array:
    """The gradient with respect to the similarities of a tile, ``[m, n]``.

    Args:
        spec: as for `coefficients`.
        s: the similarities, made anew.
        pairs: as for `tile_sums`.
        row: the rows as anchors, or None if they are not.
        column: the columns, which in self-contrast are anchors too.
    """
    sides = [side for side in (row, column) if side is not None]
    exponential = jnp.exp(s - spec.bound) if spec.bound is not None else None
    weights: list[jax.Array] = []
    for part in spec.parts:
        if (pairs is None and not part.counts) or part.stat == "positives":
            continue
        at = part.key + "_at"
        if part.extreme:
            terms = [
                jnp.where(side.position == side.coefficients[at], side.coefficients[part.key], 0)
                for side in sides
            ]
            weights.append(jnp.broadcast_to(_sum(terms), s.shape))
            continue
        if part.exponential and exponential is None:
            terms = [x.coefficients[part.key] * jnp.exp(s - x.coefficients[at]) for x in sides]
        else:
            terms = [x.coefficients[part.key] for x in sides]
        total = _sum(terms)
        if part.exponential and exponential is not None:
            total = exponential * total
        weights.append(_under(part.mask(pairs), jnp.broadcast_to(total, s.shape)))
    return _sum(weights) if weights else jnp.zeros_like(s)


def as_rows(tree: T) -> T:
    """Vectors ``[m]`` that belong to the rows of a tile, as ``[m, 1]``."""
    return jax.tree.map(lambda x: x[:, None], tree)


def as_columns(tree: T) -> T:
    """Vectors ``[n]`` that belong to the columns of a tile, as ``[1, n]``."""
    return jax.tree.map(lambda x: x[None, :], tree)


def _names(mask: jax.Array) -> jax.Array:
    return mask if mask.dtype == bool else mask != 0


def _under(mask: jax.Array | None, x: jax.Array) -> jax.Array:
    """`x` times the mask's weights, and 0 where it names no pair, whatever `x` is there."""
    if mask is None:
        return x
    return jnp.where(_names(mask), x if mask.dtype == bool else x * mask.astype(x.dtype), 0)


def _finite(top: jax.Array) -> jax.Array:
    """A maximum that may be subtracted: 0 where it was taken over nothing."""
    return jnp.where(top == -jnp.inf, jnp.zeros_like(top), top)


def _sum(terms: list[jax.Array]) -> jax.Array:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
