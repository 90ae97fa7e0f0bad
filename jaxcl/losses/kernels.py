"""The walks of `tiles` over rows and other rows as Pallas kernels for TPU.

A step of the grid makes the similarities of one tile and folds them into sums or gradients; these
and the tile stay in the chip's vector memory while the keys pass by. The arithmetic of a tile is
that of `pairs`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import ManualAxisType

from jaxcl.losses.pairs import (
    POSITION,
    Coefficients,
    Meta,
    Pairs,
    Relation,
    Side,
    Sums,
    TileSpec,
    merge,
    no_sums,
    tile_sums,
    tile_weights,
)
from jaxcl.losses.tiles import fill_up, for_filled, tile_size

Vectors = dict[str, dict[str, Any]]
Fold = Callable[[Sums, jax.Array, Pairs | None, jax.Array, Vectors, Vectors], Sums]

LANES = 128


def forward_self(spec: TileSpec, rows: jax.Array, scale: jax.Array, meta: Meta) -> Sums:
    """As `tiles.forward_self`, from all tiles."""
    return _forward(spec, spec.relation, rows, rows, scale, meta, meta, own=True)


def forward_cross(
    spec: TileSpec,
    relation: Relation | None,
    queries: jax.Array,
    keys: jax.Array,
    scale: jax.Array,
    query_meta: Meta,
    key_meta: Meta,
) -> Sums:
    """As `tiles.forward_cross`."""
    return _forward(spec, relation, queries, keys, scale, query_meta, key_meta, own=False)


def gradient_self(
    spec: TileSpec, rows: jax.Array, scale: jax.Array, meta: Meta, anchors: Coefficients
) -> jax.Array:
    """As `tiles.gradient_self`, from all tiles."""
    return _gradient(spec, spec.relation, rows, rows, scale, meta, meta, anchors, anchors, own=True)


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
    """As `tiles.gradient_cross`."""
    return _gradient(
        spec, relation, queries, keys, scale, query_meta, key_meta, row, column, own=False
    )


def _forward(
    spec: TileSpec,
    relation: Relation | None,
    queries: jax.Array,
    keys: jax.Array,
    scale: jax.Array,
    query_meta: Meta,
    key_meta: Meta,
    *,
    own: bool,
) -> Sums:
    def fold(
        sums: Sums,
        s: jax.Array,
        pairs: Pairs | None,
        keys: jax.Array,
        row: Vectors,
        column: Vectors,
    ) -> Sums:
        del keys, row
        return merge(spec, sums, tile_sums(spec, s, pairs, 1, column["meta"].get(POSITION)))

    return _walk(
        spec,
        relation,
        queries * scale,
        keys,
        {"meta": query_meta},
        {"meta": key_meta},
        start=lambda size: no_sums(spec, (size, 1), queries.dtype),
        fold=fold,
        own=own,
    )


def _gradient(
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
    own: bool,
) -> jax.Array:
    def fold(
        sums: Sums,
        s: jax.Array,
        pairs: Pairs | None,
        keys: jax.Array,
        row: Vectors,
        column: Vectors,
    ) -> Sums:
        mine, theirs = row.get("anchors"), column.get("anchors")
        weights = tile_weights(
            spec,
            s,
            pairs,
            None if mine is None else Side(mine, column["meta"].get(POSITION)),
            None if theirs is None else Side(theirs, row["meta"].get(POSITION)),
        )
        return {"gradient": sums["gradient"] + _dot(spec, weights, keys, contract=(1, 0))}

    return _walk(
        spec,
        relation,
        queries * scale,
        keys,
        {"meta": query_meta} | ({} if row is None else {"anchors": row}),
        {"meta": key_meta} | ({} if column is None else {"anchors": column}),
        start=lambda size: {"gradient": jnp.zeros((size, queries.shape[1]), queries.dtype)},
        fold=fold,
        own=own,
    )["gradient"].reshape(queries.shape)


def _walk(
    spec: TileSpec,
    relation: Relation | None,
    queries: jax.Array,
    keys: jax.Array,
    query_vectors: Vectors,
    key_vectors: Vectors,
    *,
    start: Callable[[int], Sums],
    fold: Fold,
    own: bool,
) -> Sums:
    """Folds the tiles of every row of tiles into the sums of that row.

    Args:
        spec: as everywhere.
        relation: as for `tiles.forward_cross`.
        queries: ``[N, D]``, scaled.
        keys: ``[K, D]``.
        query_vectors: metadata and coefficients of the queries, ``[N]``.
        key_vectors: the same of the keys, ``[K]``.
        start: the sums ``[size, width]`` of that many rows over no tile.
        fold: ``fold(sums, s, pairs, keys, query_vectors, key_vectors)`` adds one tile.
        own: whether the keys are the queries, so that the diagonal is where `Relation.block` says.

    Returns:
        The sums, ``[N, width]``, or ``[N]`` where width is 1.
    """
    if queries.dtype != jnp.float32:
        raise ValueError(f'kernel="pallas" works in float32, not {queries.dtype}; use "xla".')
    count, features = queries.shape
    query_size = tile_size(count, spec.size, LANES)
    key_size = tile_size(len(keys), spec.size, LANES)
    if len(keys) % key_size:
        relation, query_meta, key_meta = for_filled(
            relation, query_vectors["meta"], count, key_vectors["meta"], len(keys)
        )
        query_vectors = {**query_vectors, "meta": query_meta}
        key_vectors = {**key_vectors, "meta": key_meta}
    elif relation is not None and relation.block and (not own or query_size % relation.block):
        relation = dataclasses.replace(relation, block=0)
    queries, query_vectors = fill_up((queries, query_vectors), query_size)
    keys, key_vectors = fill_up((keys, key_vectors), key_size)
    query_leaves, query_tree = jax.tree.flatten(query_vectors)
    key_leaves, key_tree = jax.tree.flatten(key_vectors)
    sums = jax.eval_shape(lambda: start(query_size))
    last = len(keys) // key_size - 1

    def kernel(*refs: Any) -> None:
        query, key, *vectors = refs[: 2 + len(query_leaves) + len(key_leaves)]
        totals = refs[-len(sums) :]
        outputs = refs[-2 * len(sums) : -len(sums)]
        i, j = pl.program_id(0), pl.program_id(1)

        def read(refs: list[Any], leaves: list[jax.Array], turn: bool) -> list[jax.Array]:
            values = [ref[...].T if turn else ref[...] for ref in refs]
            return [v != 0 if x.dtype == bool else v for v, x in zip(values, leaves, strict=True)]

        row = jax.tree.unflatten(
            query_tree, read(vectors[: len(query_leaves)], query_leaves, turn=True)
        )
        column = jax.tree.unflatten(
            key_tree, read(vectors[len(query_leaves) :], key_leaves, turn=False)
        )

        def write(values: Sums) -> None:
            for name, ref in zip(sums, totals, strict=True):
                ref[...] = values[name]

        def add(relation: Relation | None) -> None:
            s = _dot(spec, query[...], key[...], contract=(1, 1))
            pairs = None
            if relation is not None:
                pairs = relation.of_tile(row["meta"], column["meta"], s)
            before = {name: ref[...] for name, ref in zip(sums, totals, strict=True)}
            write(fold(before, s, pairs, key[...], row, column))

        @pl.when(j == 0)
        def _() -> None:
            write(start(query_size))

        if relation is not None and relation.block:
            pl.when(i == j)(lambda: add(relation))
            pl.when(i != j)(lambda: add(None))
        else:
            add(relation)

        @pl.when(j == last)
        def _() -> None:
            for out, ref in zip(outputs, totals, strict=True):
                out[...] = ref[...].T if ref.shape[1] == 1 else ref[...]

    # Vectors lie along the lanes: as [N, 1] each would take up 128 times its size.
    query_lane = pl.BlockSpec((1, query_size), lambda i, j: (0, i))
    key_lane = pl.BlockSpec((1, key_size), lambda i, j: (0, j))
    query_rows = pl.BlockSpec((query_size, features), lambda i, j: (i, 0))
    key_rows = pl.BlockSpec((key_size, features), lambda i, j: (j, 0))
    outputs = pl.pallas_call(
        kernel,
        grid=(len(queries) // query_size, last + 1),
        in_specs=[
            query_rows,
            key_rows,
            *(query_lane for _ in query_leaves),
            *(key_lane for _ in key_leaves),
        ],
        out_specs=[query_lane if x.shape[1] == 1 else query_rows for x in sums.values()],
        out_shape=[
            jax.ShapeDtypeStruct(
                (1, len(queries)) if x.shape[1] == 1 else queries.shape,
                x.dtype,
                manual_axis_type=ManualAxisType(varying=frozenset(spec.varying)),
            )
            for x in sums.values()
        ],
        scratch_shapes=[pltpu.VMEM(x.shape, x.dtype) for x in sums.values()],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=pltpu.InterpretParams() if spec.interpret else False,
    )(queries, keys, *(_lane(x) for x in query_leaves), *(_lane(x) for x in key_leaves))
    return {
        name: out[0, :count] if out.shape[0] == 1 else out[:count]
        for name, out in zip(sums, outputs, strict=True)
    }


def _lane(x: jax.Array) -> jax.Array:
    """A vector as one row; Mosaic has no booleans in memory."""
    return (x.astype(jnp.int32) if x.dtype == bool else x)[None, :]


def _dot(spec: TileSpec, a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=spec.precision)
