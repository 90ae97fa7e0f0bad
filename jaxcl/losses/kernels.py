"""The walks of `tiles` over rows and other rows as Pallas kernels for TPU.

A step of the grid makes the similarities of one tile and folds them into sums or gradients; these
and the tile stay in the chip's vector memory while the keys pass by. The arithmetic of a tile is
that of `pairs`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import ManualAxisType

from jaxcl.losses.pairs import (
    Coefficients,
    Meta,
    Pairs,
    Relation,
    Sums,
    TileSpec,
    merge,
    no_sums,
    tile_sums,
    tile_weights,
)
from jaxcl.losses.tiles import fill_up, for_filled, tile_size

Vectors = dict[str, dict[str, jax.Array]]
Fold = Callable[[Sums, jax.Array, Pairs | None, jax.Array, Vectors, Vectors], Sums]

LANES = 128


def forward_rows(
    spec: TileSpec,
    relation: Relation | None,
    queries: jax.Array,
    keys: jax.Array,
    scale: jax.Array,
    query_meta: Meta,
    key_meta: Meta,
    *,
    own: bool = False,
) -> Sums:
    """As `tiles.forward_rows`. `own` says that the keys are the queries."""

    def fold(
        sums: Sums, s: jax.Array, pairs: Pairs | None, keys: jax.Array, row: Vectors, column: Vectors
    ) -> Sums:
        del keys, row, column
        return merge(sums, tile_sums(spec, s, pairs, axis=1))

    sums = _walk(
        spec,
        relation,
        queries * scale,
        keys,
        {"meta": query_meta},
        {"meta": key_meta},
        start=no_sums(spec, (1, 1), queries.dtype),
        fold=fold,
        own=own,
    )
    return {name: value[0] for name, value in sums.items()}


def gradient_rows(
    spec: TileSpec,
    relation: Relation | None,
    queries: jax.Array,
    keys: jax.Array,
    scale: jax.Array,
    query_meta: Meta,
    key_meta: Meta,
    row: Coefficients | None,
    column: Coefficients | None,
    *,
    own: bool = False,
) -> jax.Array:
    """As `tiles.gradient_rows`. `own` says that the keys are the queries."""

    def fold(
        sums: Sums, s: jax.Array, pairs: Pairs | None, keys: jax.Array, row: Vectors, column: Vectors
    ) -> Sums:
        weights = tile_weights(spec, s, pairs, row.get("anchors"), column.get("anchors"))
        return {"gradient": sums["gradient"] + _dot(spec, weights, keys, (1, 0))}

    query_vectors = {"meta": query_meta} | ({} if row is None else {"anchors": row})
    key_vectors = {"meta": key_meta} | ({} if column is None else {"anchors": column})
    return _walk(
        spec,
        relation,
        queries * scale,
        keys,
        query_vectors,
        key_vectors,
        start={"gradient": jnp.zeros((1, queries.shape[1]), queries.dtype)},
        fold=fold,
        own=own,
    )["gradient"]


def _walk(
    spec: TileSpec,
    relation: Relation | None,
    queries: jax.Array,
    keys: jax.Array,
    query_vectors: Vectors,
    key_vectors: Vectors,
    *,
    start: Sums,
    fold: Fold,
    own: bool,
) -> Sums:
    """Folds the tiles of every row of tiles into the sums of that row.

    Args:
        spec: as everywhere.
        relation: as for `tiles.forward_rows`.
        queries: ``[N, D]``, scaled.
        keys: ``[K, D]``.
        query_vectors: metadata and coefficients of the queries, ``[N]``.
        key_vectors: the same of the keys, ``[K]``.
        start: a row's sums over no tile, ``[1, width]``.
        fold: ``fold(sums, s, pairs, keys, query_vectors, key_vectors)`` adds one tile.
        own: whether the keys are the queries, so that the diagonal is where `Relation.block` says.

    Returns:
        The sums; ``[N, width]``, but ``[1, N]`` where width is 1: a vector lies along the lanes.
    """
    if queries.dtype != jnp.float32:
        raise ValueError(f'kernel="pallas" works in float32, not {queries.dtype}; use "xla".')
    count, features = queries.shape
    query_size = tile_size(count, spec.size, LANES)
    key_size = tile_size(len(keys), spec.size, LANES)
    if relation is not None and relation.block:
        whole = own and count % query_size == 0 and query_size % relation.block == 0
        relation = relation if whole else Relation(relation.pairs)
    if len(keys) % key_size:
        relation, query_vectors["meta"], key_vectors["meta"] = for_filled(
            relation, query_vectors["meta"], count, key_vectors["meta"], len(keys)
        )
    queries, query_vectors = fill_up((queries, query_vectors), query_size)
    keys, key_vectors = fill_up((keys, key_vectors), key_size)
    rows, columns = len(queries) // query_size, len(keys) // key_size
    query_leaves, query_tree = jax.tree.flatten(query_vectors)
    key_leaves, key_tree = jax.tree.flatten(key_vectors)

    def kernel(*refs: Any) -> None:
        query, key, *others = refs
        query_refs, others = others[: len(query_leaves)], others[len(query_leaves) :]
        key_refs, others = others[: len(key_leaves)], others[len(key_leaves) :]
        outputs, sums = others[: len(start)], others[len(start) :]
        i, j = pl.program_id(0), pl.program_id(1)

        @pl.when(j == 0)
        def _() -> None:
            for ref, value in zip(sums, initial, strict=True):
                ref[...] = jnp.full(ref.shape, value, ref.dtype)

        row = jax.tree.unflatten(
            query_tree,
            [_restore(ref[...].T, x) for ref, x in zip(query_refs, query_leaves, strict=True)],
        )
        column = jax.tree.unflatten(
            key_tree, [_restore(ref[...], x) for ref, x in zip(key_refs, key_leaves, strict=True)]
        )

        def add(pairs: Pairs | None) -> None:
            s = _dot(spec, query[...], key[...], (1, 1))
            before = {name: ref[...] for name, ref in zip(start, sums, strict=True)}
            after = fold(before, s, pairs, key[...], row, column)
            for name, ref in zip(start, sums, strict=True):
                ref[...] = after[name]

        if relation is None:
            add(None)
        elif relation.block:
            pl.when(i == j)(lambda: add(relation.pairs(row["meta"], column["meta"])))
            pl.when(i != j)(lambda: add(None))
        else:
            add(relation.pairs(row["meta"], column["meta"]))

        @pl.when(j == columns - 1)
        def _() -> None:
            for out, ref in zip(outputs, sums, strict=True):
                out[...] = ref[...] if ref.shape[1] > 1 else ref[...].T

    initial = [0.0 if name in ... else 0.0 for name in start]
    raise SystemExit
