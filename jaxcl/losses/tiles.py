"""Row statistics and their gradients in memory linear in the rows: loops of XLA over square tiles.

Two walks over the tiles: `forward_self` and `gradient_self` contrast rows with themselves and visit
each pair once, for both of its directions; `forward_cross` and `gradient_cross` contrast rows with
other rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxcl.losses.pairs import (
    POSITION,
    Coefficients,
    Meta,
    Pairs,
    Relation,
    Side,
    Sums,
    TileSpec,
    as_columns,
    as_rows,
    merge,
    no_sums,
    tile_sums,
    tile_weights,
)

T = TypeVar("T")


def forward_self(spec: TileSpec, rows: jax.Array, scale: jax.Array, meta: Meta) -> Sums:
    """The sums ``[N]`` of ``rows[N, D]`` against themselves, from half of the tiles."""
    count = rows.shape[0]
    relation, rows, meta = _tiled(spec, rows, meta)
    tiles, size, _ = rows.shape
    turned = _turned(rows)
    sums = _start(spec, no_sums(spec, (tiles, size), rows.dtype))

    def row_of_tiles(i: jax.Array, mine_meta: Meta, sums: Sums) -> Sums:
        anchor, row_meta = _at(rows, i) * scale, as_rows(mine_meta)
        s, column_meta = _matmul(spec, anchor, _at(turned, i)), as_columns(mine_meta)
        mine = _row_sums(spec, s, relation.of_tile(row_meta, column_meta, s), column_meta)

        def tile(j: jax.Array, carry: tuple[Sums, Sums]) -> tuple[Sums, Sums]:
            mine, sums = carry
            s = _matmul(spec, anchor, _at(turned, j))
            column_meta = as_columns(_at(meta, j))
            pairs = None if relation.block else relation.of_tile(row_meta, column_meta, s)
            mine = merge(spec, mine, _row_sums(spec, s, pairs, column_meta))
            theirs = _column_sums(spec, s, pairs, row_meta)
            return mine, _put(sums, j, merge(spec, _at(sums, j), theirs))

        start = merge(spec, _at(sums, i), mine), sums
        mine, sums = lax.fori_loop(i + 1, tiles, tile, start)
        return _put(sums, i, mine)

    return _join(_for_each(meta, tiles, row_of_tiles, sums), count)


def gradient_self(
    spec: TileSpec, rows: jax.Array, scale: jax.Array, meta: Meta, coefficients: Coefficients
) -> jax.Array:
    """The gradient ``[N, D]`` with respect to the rows of `forward_self`, over `scale`."""
    count = rows.shape[0]
    relation, rows, meta = _tiled(spec, rows, meta)
    tiles, size, _ = rows.shape
    coefficients = _cut(coefficients, size)
    turned = _turned(rows)
    gradient = _start(spec, jnp.zeros(turned.shape, rows.dtype))

    def row_of_tiles(
        i: jax.Array, about: tuple[Meta, Coefficients], gradient: jax.Array
    ) -> jax.Array:
        mine_meta, row = about
        anchor, row_meta = _at(rows, i) * scale, as_rows(mine_meta)

        def weights(
            s: jax.Array, pairs: Pairs | None, column: Coefficients, theirs: Meta
        ) -> jax.Array:
            return tile_weights(
                spec,
                s,
                pairs,
                Side(as_rows(row), theirs.get(POSITION)),
                Side(as_columns(column), row_meta.get(POSITION)),
            )

        s, column_meta = _matmul(spec, anchor, _at(turned, i)), as_columns(mine_meta)
        w = weights(s, relation.of_tile(row_meta, column_meta, s), row, column_meta)
        mine = _matmul(spec, w, _at(rows, i))

        def tile(j: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            mine, gradient = carry
            s = _matmul(spec, anchor, _at(turned, j))
            column_meta = as_columns(_at(meta, j))
            pairs = None if relation.block else relation.of_tile(row_meta, column_meta, s)
            w = weights(s, pairs, _at(coefficients, j), column_meta)
            theirs = _at(gradient, j) + _matmul(spec, _at(turned, i), w)
            return mine + _matmul(spec, w, _at(rows, j)), _put(gradient, j, theirs)

        mine, gradient = lax.fori_loop(i + 1, tiles, tile, (mine, gradient))
        return _put(gradient, i, _at(gradient, i) + mine.T)

    gradient = _for_each((meta, coefficients), tiles, row_of_tiles, gradient)
    return _join(_turned(gradient), count)


def forward_cross(
    spec: TileSpec,
    relation: Relation | None,
    queries: jax.Array,
    keys: jax.Array,
    scale: jax.Array,
    query_meta: Meta,
    key_meta: Meta,
) -> Sums:
    """The sums ``[N]`` of ``queries[N, D]`` against ``keys[K, D]``.

    `relation` None means that all pairs are counted and none is positive.
    """
    count = queries.shape[0]
    relation, queries, query_meta, keys, key_meta = _tiled_both(
        spec, relation, queries, query_meta, keys, key_meta
    )
    turned = _turned(keys)

    def row_of_tiles(query: tuple[jax.Array, Meta]) -> Sums:
        anchor, row_meta = query[0] * scale, as_rows(query[1])

        def tile(sums: Sums, key: tuple[jax.Array, Meta]) -> tuple[Sums, None]:
            s, column_meta = _matmul(spec, anchor, key[0]), as_columns(key[1])
            pairs = None if relation is None else relation.of_tile(row_meta, column_meta, s)
            return merge(spec, sums, _row_sums(spec, s, pairs, column_meta)), None

        start = _start(spec, no_sums(spec, anchor.shape[:1], anchor.dtype))
        return lax.scan(tile, start, (turned, key_meta))[0]

    return _join(lax.map(row_of_tiles, (queries, query_meta)), count)


def gradient_cross(
    spec: TileSpec,
    relation: Relation | None,
    queries: jax.Array,
    keys: jax.Array,
    scale: jax.Array,
    query_meta: Meta,
    key_meta: Meta,
    row: Coefficients | None,
    column: Coefficients | None,
) -> jax.Array:
    """The part ``[N, D]`` that `keys` have in the gradient of `queries`, over `scale`.

    `row` and `column` say which sides are anchors, as in `tile_weights`.
    """
    count = queries.shape[0]
    relation, queries, query_meta, keys, key_meta = _tiled_both(
        spec, relation, queries, query_meta, keys, key_meta
    )
    row, column = _cut(row, queries.shape[1]), _cut(column, keys.shape[1])
    turned = _turned(keys)

    def row_of_tiles(query: tuple[jax.Array, Meta, Coefficients | None]) -> jax.Array:
        anchor, row_meta, mine = query[0] * scale, as_rows(query[1]), as_rows(query[2])

        def tile(
            gradient: jax.Array, key: tuple[jax.Array, jax.Array, Meta, Coefficients | None]
        ) -> tuple[jax.Array, None]:
            keys, turned, key_meta, theirs = key
            s, column_meta = _matmul(spec, anchor, turned), as_columns(key_meta)
            w = tile_weights(
                spec,
                s,
                None if relation is None else relation.of_tile(row_meta, column_meta, s),
                None if mine is None else Side(mine, column_meta.get(POSITION)),
                None if theirs is None else Side(as_columns(theirs), row_meta.get(POSITION)),
            )
            return gradient + _matmul(spec, w, keys), None

        start = _start(spec, jnp.zeros(anchor.shape, anchor.dtype))
        return lax.scan(tile, start, (keys, turned, key_meta, column))[0]

    return _join(lax.map(row_of_tiles, (queries, query_meta, row)), count)


def tile_size(rows: int, at_most: int, multiple_of: int = 1) -> int:
    """The size of equal tiles for `rows`: large, but with nothing to fill up if that can be had.

    A tile that is filled up needs masks, and makes all others need them.
    """
    at_most = max(multiple_of, at_most - at_most % multiple_of)
    fewest = -(-rows // at_most)
    for tiles in range(fewest, 2 * fewest):
        if rows % (tiles * multiple_of) == 0:
            return rows // tiles
    return -(-rows // (fewest * multiple_of)) * multiple_of


def fill_up(tree: T, size: int) -> T:
    """Leaves ``[N, ...]`` with zeros behind, up to whole tiles."""

    def fill(x: jax.Array) -> jax.Array:
        missing = -x.shape[0] % size
        return jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) if missing else x

    return jax.tree.map(fill, tree)


@dataclasses.dataclass(frozen=True)
class _Real:
    """A relation of tiles some of whose rows only fill up the last one: these pair with nothing."""

    inner: Relation | None

    def __call__(self, queries: Meta, keys: Meta, s: jax.Array) -> Pairs:
        real = queries["_real"] & keys["_real"]
        if self.inner is None:
            return Pairs(counted=real, positive=jnp.zeros_like(real))
        # A mask may be a tuple of levels.
        return jax.tree.map(lambda mask: mask * real, self.inner.of_tile(queries, keys, s))


def for_filled(
    relation: Relation | None, query_meta: Meta, query_count: int, key_meta: Meta, key_count: int
) -> tuple[Relation, Meta, Meta]:
    """The relation, and its metadata, of rows that will be filled up."""
    return (
        Relation(_Real(relation), sees_similarity=True),
        {**query_meta, "_real": jnp.ones(query_count, bool)},
        {**key_meta, "_real": jnp.ones(key_count, bool)},
    )


def _tiled(spec: TileSpec, rows: jax.Array, meta: Meta) -> tuple[Relation, jax.Array, Meta]:
    """Rows as ``[tiles, size, D]``, metadata as ``[tiles, size]``, and their relation."""
    count = len(rows)
    relation = spec.relation
    # Groups cut by the border of a tile would have pairs off the diagonal.
    size = tile_size(count, spec.size, relation.block or 1)
    if count % size:
        relation, meta, _ = for_filled(relation, meta, count, meta, count)
    return relation, _cut(rows, size), _cut(meta, size)


def _tiled_both(
    spec: TileSpec,
    relation: Relation | None,
    queries: jax.Array,
    query_meta: Meta,
    keys: jax.Array,
    key_meta: Meta,
) -> tuple[Relation | None, jax.Array, Meta, jax.Array, Meta]:
    """Both sides as in `_tiled`."""
    query_size, key_size = tile_size(len(queries), spec.size), tile_size(len(keys), spec.size)
    if len(keys) % key_size:
        relation, query_meta, key_meta = for_filled(
            relation, query_meta, len(queries), key_meta, len(keys)
        )
    return (
        relation,
        _cut(queries, query_size),
        _cut(query_meta, query_size),
        _cut(keys, key_size),
        _cut(key_meta, key_size),
    )


def _cut(tree: T, size: int) -> T:
    """Leaves ``[N, ...]`` as ``[tiles, size, ...]``."""
    return jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), fill_up(tree, size))


def _join(tree: T, count: int) -> T:
    """The inverse of `_cut`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], tree)


def _turned(tiles: jax.Array) -> jax.Array:
    """Tiles of rows as tiles of columns.

    Products of a tile are written so that none has a transposed operand: XLA's fast kernels for
    small products on CPU want that, and made anew at every tile a transpose costs as much as the
    product.
    """
    return jnp.swapaxes(tiles, 1, 2)


def _matmul(spec: TileSpec, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=spec.precision)


def _row_sums(spec: TileSpec, s: jax.Array, pairs: Pairs | None, column_meta: Meta) -> Sums:
    sums = tile_sums(spec, s, pairs, 1, column_meta.get(POSITION))
    return {key: jnp.squeeze(value, 1) for key, value in sums.items()}


def _column_sums(spec: TileSpec, s: jax.Array, pairs: Pairs | None, row_meta: Meta) -> Sums:
    sums = tile_sums(spec, s, pairs, 0, row_meta.get(POSITION))
    return {key: jnp.squeeze(value, 0) for key, value in sums.items()}


def _at(tree: T, i: jax.Array | int) -> T:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), tree)


def _for_each(tree: Any, count: int, visit: Callable[[jax.Array, Any, T], T], carry: T) -> T:
    """`carry` after ``visit(i, tree[i], carry)`` for each i in turn.

    The leaves are fetched a turn ahead: where one slice serves the rows and the columns of a tile,
    XLA on CPU would else do the slicing anew for every element of the tile, at nine times the cost.
    """

    def turn(i: jax.Array, state: tuple[Any, T]) -> tuple[Any, T]:
        here, carry = state
        return _at(tree, i + 1), visit(i, here, carry)

    return lax.fori_loop(0, count, turn, (_at(tree, 0), carry))[1]


def _put(tree: T, i: jax.Array, value: T) -> T:
    return jax.tree.map(lambda x, v: lax.dynamic_update_index_in_dim(x, v, i, 0), tree, value)


def _start(spec: TileSpec, tree: T) -> T:
    """A loop's start with the type of what the loop makes of it: varying under `jax.shard_map`."""
    return lax.pcast(tree, spec.varying, to="varying") if spec.varying else tree
