"""The engine under every loss made of pairs: masked log-sum-exps of a similarity matrix.

A pair loss looks at the matrix ``S[i, j] = scale * <queries[i], keys[j]>`` only through a few sums
along its rows. `row_stats` gives these sums, differentiable in queries, keys and scale; what a loss
makes of them is arithmetic on vectors. Which pairs enter a sum is said by a relation, a function of
the metadata (index, label, ...) of a tile's rows and columns, so that no mask of the whole matrix
need ever exist.

Three forms give the same numbers:

* ``dense`` makes the matrix and keeps it for the backward pass: fast where it is small. Under
  `jax.jit` with the rows sharded over devices, XLA gathers the rows and, of each, its metadata and
  sums; the matrix stays sharded by rows.
* ``tiled`` walks over tiles of the matrix and makes them anew in the backward pass. It keeps the
  rows and their log-sum-exps, so its memory is linear in the rows. With a mesh, every device
  gathers the rows of all and does its own share of the tiles.
* ``ring`` needs a mesh and gathers nothing: blocks of rows travel round the devices. In the
  backward pass they travel again, with the log-sum-exps of their rows; gradients stay at home.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh

from jaxcl.losses import tiles
from jaxcl.losses.pairs import (
    Coefficients,
    Meta,
    Pairs,
    Relation,
    Stat,
    Stats,
    Sums,
    TileSpec,
    as_columns,
    as_rows,
    coefficients,
    finish,
    merge,
    tile_sums,
    tile_weights,
    usable_bound,
)
from jaxcl.losses.spread import AnyMesh, Places, over_other_devices, spread

__all__ = [
    "AnyMesh",
    "Impl",
    "Kernel",
    "Meta",
    "Pairs",
    "Relation",
    "Stat",
    "Stats",
    "choose",
    "row_stats",
]

Impl = Literal["auto", "dense", "tiled", "ring"]
Kernel = Literal["xla", "pallas"]
Form = Literal["dense", "tiled", "ring"]

TILE = 512
# How much of the matrix a device may hold in the dense form: on CPU measured by `jaxcl.bench loss`,
# elsewhere modelled from arithmetic and memory traffic.
DENSE_BYTES = {"cpu": 16 * 2**20}
DENSE_BYTES_ELSEWHERE = 64 * 2**20
RING_ROWS = 1024


def row_stats(
    queries: jax.Array,
    keys: jax.Array | None,
    relation: Relation,
    query_meta: Meta,
    key_meta: Meta | None = None,
    *,
    scale: jax.Array | float = 1.0,
    want: tuple[Stat, ...] = ("lse", "positive_sum", "positives"),
    bound: float | None = None,
    precision: Any = "highest",
    impl: Impl = "auto",
    mesh: AnyMesh | None = None,
    axis: str = "data",
    kernel: Kernel = "xla",
    tile: int = TILE,
) -> Stats:
    """Sums along the rows of ``scale * queries @ keys.T`` over the pairs that the relation names.

    Args:
        queries: ``float[N, D]``; made at least float32.
        keys: ``float[K, D]``, or None when the queries are contrasted with themselves. Where their
            gradient is not used, it is not computed.
        relation: which pairs are counted and which are positive; symmetric if `keys` is None.
        query_meta: what the relation reads of the queries, leaves ``[N]``.
        key_meta: the same of the keys, leaves ``[K]``; None together with `keys`.
        scale: multiplies every inner product, such as 1 / temperature.
        want: which of the sums to make.
        bound: what no ``|S[i, j]|`` exceeds, if known, such as 1 / temperature for unit rows. The
            tiles are cheaper with a small one. A wrong bound gives wrong numbers.
        precision: of the matrix products, as in `jax.numpy.matmul`.
        impl: the form, or "auto" for what `choose` says.
        mesh: over whose axis `axis` the rows are, or are to be, sharded; None takes the mesh set by
            `jax.set_mesh`, if any. Without a mesh "tiled" is for one device: on rows that are sharded
            all the same, every device would do all the work.
        axis: name of that axis.
        kernel: what walks over the tiles, loops of XLA or a Pallas kernel for TPU (float32 only; on
            a CPU it is interpreted, which is slow and meant for tests).
        tile: rows and columns of a tile at most.

    Returns:
        A dict of what was asked for, each ``[N]``: ``lse``, the ``log sum exp S[i, j]`` over
        counted pairs, -inf for a row that counts none; ``positive_sum``, the ``sum S[i, j]`` over
        positive pairs; ``positive_lse``, like lse over positive pairs; ``positives``, how many
        positive pairs there are, without gradient.

    Raises:
        ValueError: a form that is unknown or impossible for the mesh, shapes that do not fit.
    """
    mesh = _ambient_mesh(axis) if mesh is None else mesh
    _check(queries, keys, query_meta, key_meta, impl, kernel, mesh, axis)
    dtype = jnp.promote_types(queries.dtype, jnp.float32)
    queries = queries.astype(dtype)
    keys = None if keys is None else keys.astype(dtype)
    scale = jnp.asarray(scale, dtype)
    devices = 1 if mesh is None else mesh.shape[axis]
    rows, columns = len(queries), len(queries if keys is None else keys)
    platform = _platform(mesh)
    if kernel == "pallas" and platform not in ("tpu", "cpu"):
        raise ValueError(f'kernel="pallas" is for TPU, not for {platform}; use kernel="xla".')
    form: Form
    if impl != "auto":
        form = impl
    elif mesh is None:
        # Rows that JAX has sharded on its own are seen as whole; dense suits both cases longest.
        form = choose(rows, columns, jax.device_count(), dtype.itemsize, platform)
        form = "dense" if form == "dense" else "tiled"
    else:
        form = choose(rows, columns, devices, dtype.itemsize, platform)
    several = devices > 1 and form != "dense"
    spec = TileSpec(
        relation,
        want,
        usable_bound(bound, dtype),
        precision,
        tile,
        varying=(axis,) if several else (),
        interpret=platform == "cpu",
    )
    if form != "dense" and (rows % devices or columns % devices):
        raise ValueError(
            f'impl="{form}": {rows} rows and {columns} keys do not divide over the {devices} '
            f'devices of mesh axis "{axis}"; change the batch or use impl="dense".'
        )
    places = Places(mesh if several else None, axis, ring=form == "ring")
    plan = _Plan(spec, form, kernel, places)
    if keys is None:
        return _self_stats(plan, queries, scale, query_meta)
    return _cross_stats(plan, queries, keys, scale, query_meta, key_meta or {})


def choose(
    rows: int, keys: int, devices: int = 1, itemsize: int = 4, platform: str = "cpu"
) -> Form:
    """The form that "auto" takes.

    Dense while the two copies that its gradient needs of a device's share of the matrix stay below
    16 MiB on a CPU (up to 1,448 rows on one device) and 64 MiB elsewhere (2,896). Beyond that
    tiles; on several devices a ring from 1,024 rows a device on, where on TPU a hop's arithmetic
    begins to hide its traffic, and gathered rows below.
    """
    if 2 * itemsize * rows * keys <= DENSE_BYTES.get(platform, DENSE_BYTES_ELSEWHERE) * devices:
        return "dense"
    return "ring" if devices > 1 and rows // devices >= RING_ROWS else "tiled"


def _ambient_mesh(axis: str) -> AbstractMesh | None:
    """The mesh set by `jax.set_mesh` if it has the axis, and we are not inside a shard of it."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return mesh if axis in kinds and kinds[axis] != AxisType.Manual else None


def _platform(mesh: AnyMesh | None) -> str:
    """Where the work is done: an explicit mesh may be of devices that this process has not."""
    if isinstance(mesh, Mesh):
        return mesh.devices.flat[0].platform
    return jax.default_backend()


def _check(
    queries: jax.Array,
    keys: jax.Array | None,
    query_meta: Meta,
    key_meta: Meta | None,
    impl: str,
    kernel: str,
    mesh: AnyMesh | None,
    axis: str,
) -> None:
    if impl not in get_args(Impl):
        known = ", ".join(f'"{name}"' for name in get_args(Impl))
        raise ValueError(f'impl="{impl}" is unknown; it is one of {known}.')
    if kernel not in get_args(Kernel):
        raise ValueError(f'kernel="{kernel}" is unknown; it is "xla" or "pallas".')
    if mesh is None and impl == "ring":
        raise ValueError('impl="ring" passes rows between devices: give it a mesh=.')
    if mesh is not None and axis not in mesh.shape:
        raise ValueError(f'mesh has no axis "{axis}", only {tuple(mesh.shape)}.')
    if (keys is None) != (key_meta is None):
        raise ValueError("keys and key_meta go together: give both or neither.")
    for name, rows, meta in (("query", queries, query_meta), ("key", keys, key_meta)):
        if rows is None:
            continue
        if rows.ndim != 2:
            raise ValueError(f"{name} rows must be [rows, features], got {list(rows.shape)}.")
        for field, value in (meta or {}).items():
            if value.shape != rows.shape[:1]:
                raise ValueError(
                    f"{name}_meta[{field!r}] must be [{len(rows)}], one for each row; "
                    f"got {list(value.shape)}."
                )


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is done with a tile, by which walk, and where; static."""

    spec: TileSpec
    form: Form
    kernel: Kernel
    places: Places

    @property
    def walks(self) -> Any:
        """The module that walks over the tiles."""
        if self.kernel == "pallas":
            # Not at the top: Pallas takes its time to be imported.
            from jaxcl.losses import kernels

            return kernels
        return tiles


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _self_stats(plan: _Plan, rows: jax.Array, scale: jax.Array, meta: Meta) -> Stats:
    """`row_stats` of rows against themselves."""
    return _self_forward(plan, rows, scale, meta)[0]


def _self_forward(plan: _Plan, rows: jax.Array, scale: jax.Array, meta: Meta) -> tuple[Stats, Any]:
    spec = plan.spec
    if plan.form == "dense":
        s, stats = _matrix(spec, rows, rows, scale, meta, meta)
        return stats, (rows, scale, meta, stats, s)

    def share(scale: jax.Array, rows: jax.Array, meta: Meta) -> Sums:
        relation, meta_abroad = _abroad(spec.relation, rows, meta)

        def block(sums: Sums, other: tuple[jax.Array, Meta]) -> Sums:
            new = plan.walks.forward_cross(
                spec, relation, rows, other[0], scale, meta_abroad, other[1]
            )
            return merge(sums, new)

        own = plan.walks.forward_self(spec, rows, scale, meta)
        return over_other_devices(plan.places, block, own, (rows, meta_abroad))

    stats = finish(spec, spread(plan.places, share)(scale, rows, meta))
    return stats, (rows, scale, meta, stats, None)


def _self_backward(plan: _Plan, saved: Any, gradient: Stats) -> tuple[Any, ...]:
    spec = plan.spec
    rows, scale, meta, stats, s = saved
    anchors = coefficients(spec, stats, gradient)

    def share(scale: jax.Array, rows: jax.Array, meta: Meta, anchors: Coefficients) -> jax.Array:
        relation, meta_abroad = _abroad(spec.relation, rows, meta)

        def block(total: jax.Array, other: tuple[jax.Array, Meta, Coefficients]) -> jax.Array:
            # Both rows of a pair are anchors, and what each wants of the pair is known at home.
            return total + plan.walks.gradient_cross(
                spec, relation, rows, other[0], scale, meta_abroad, other[1], anchors, other[2]
            )

        own = plan.walks.gradient_self(spec, rows, scale, meta, anchors)
        return over_other_devices(plan.places, block, own, (rows, meta_abroad, anchors))

    if plan.form == "dense":
        pairs = spec.relation.pairs(as_rows(meta), as_columns(meta))
        weights = tile_weights(spec, s, pairs, as_rows(anchors), as_columns(anchors))
        total = jnp.matmul(weights, rows, precision=spec.precision)
    else:
        total = spread(plan.places, share)(scale, rows, meta, anchors)
    # A pair of rows is in the gradient of both, hence the half.
    return scale * total, jnp.sum(rows * total) / 2, None


_self_stats.defvjp(_self_forward, _self_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_stats(
    plan: _Plan,
    queries: jax.Array,
    keys: jax.Array,
    scale: jax.Array,
    query_meta: Meta,
    key_meta: Meta,
) -> Stats:
    """`row_stats` of queries against keys."""
    return _cross_forward(plan, queries, keys, scale, query_meta, key_meta)[0]


def _cross_forward(
    plan: _Plan,
    queries: jax.Array,
    keys: jax.Array,
    scale: jax.Array,
    query_meta: Meta,
    key_meta: Meta,
) -> tuple[Stats, Any]:
    spec = plan.spec
    if plan.form == "dense":
        s, stats = _matrix(spec, queries, keys, scale, query_meta, key_meta)
        return stats, (queries, keys, scale, query_meta, key_meta, stats, s)

    def share(
        scale: jax.Array, queries: jax.Array, keys: jax.Array, query_meta: Meta, key_meta: Meta
    ) -> Sums:
        def block(sums: Sums | None, here: tuple[jax.Array, Meta]) -> Sums:
            new = plan.walks.forward_cross(
                spec, spec.relation, queries, here[0], scale, query_meta, here[1]
            )
            return new if sums is None else merge(sums, new)

        here = (keys, key_meta)
        return over_other_devices(plan.places, block, block(None, here), here)

    stats = finish(spec, spread(plan.places, share)(scale, queries, keys, query_meta, key_meta))
    return stats, (queries, keys, scale, query_meta, key_meta, stats, None)


def _cross_backward(plan: _Plan, saved: Any, gradient: Stats) -> tuple[Any, ...]:
    spec = plan.spec
    queries, keys, scale, query_meta, key_meta, stats, s = saved
    anchors = coefficients(spec, stats, gradient)

    def query_share(
        scale: jax.Array,
        queries: jax.Array,
        keys: jax.Array,
        query_meta: Meta,
        key_meta: Meta,
        anchors: Coefficients,
    ) -> jax.Array:
        def block(total: jax.Array | float, here: tuple[jax.Array, Meta]) -> jax.Array:
            return total + plan.walks.gradient_cross(
                spec, spec.relation, queries, here[0], scale, query_meta, here[1], anchors, None
            )

        here = (keys, key_meta)
        return over_other_devices(plan.places, block, block(0.0, here), here)

    def key_share(
        scale: jax.Array,
        queries: jax.Array,
        keys: jax.Array,
        query_meta: Meta,
        key_meta: Meta,
        anchors: Coefficients,
    ) -> jax.Array:
        turned = Relation(_Turned(spec.relation))

        def block(
            total: jax.Array | float, here: tuple[jax.Array, Meta, Coefficients]
        ) -> jax.Array:
            return total + plan.walks.gradient_cross(
                spec, turned, keys, here[0], scale, key_meta, here[1], None, here[2]
            )

        here = (queries, query_meta, anchors)
        return over_other_devices(plan.places, block, block(0.0, here), here)

    # The keys' part stands apart, so that it falls away where it is not used. On a ring this makes
    # the queries travel, too, but no gradient.
    if plan.form == "dense":
        pairs = spec.relation.pairs(as_rows(query_meta), as_columns(key_meta))
        weights = tile_weights(spec, s, pairs, as_rows(anchors), None)
        query_total = jnp.matmul(weights, keys, precision=spec.precision)
        key_total = jnp.matmul(weights.T, queries, precision=spec.precision)
    else:
        arguments = (scale, queries, keys, query_meta, key_meta, anchors)
        query_total = spread(plan.places, query_share)(*arguments)
        key_total = spread(plan.places, key_share)(*arguments)
    return scale * query_total, scale * key_total, jnp.sum(queries * query_total), None, None


_cross_stats.defvjp(_cross_forward, _cross_backward)


def _matrix(
    spec: TileSpec,
    queries: jax.Array,
    keys: jax.Array,
    scale: jax.Array,
    query_meta: Meta,
    key_meta: Meta,
) -> tuple[jax.Array, Stats]:
    """The whole matrix as one tile, and its row statistics."""
    s = jnp.matmul(queries * scale, keys.T, precision=spec.precision)
    pairs = spec.relation.pairs(as_rows(query_meta), as_columns(key_meta))
    sums = tile_sums(spec, s, pairs, axis=1)
    return s, finish(spec, {name: jnp.squeeze(value, 1) for name, value in sums.items()})


@dataclasses.dataclass(frozen=True)
class _Turned:
    """A relation seen from the keys: its tiles have keys as rows and queries as columns."""

    inner: Relation

    def __call__(self, keys: Meta, queries: Meta) -> Pairs:
        return self.inner.pairs(queries, keys)


def _abroad(relation: Relation, rows: jax.Array, meta: Meta) -> tuple[Relation | None, Meta]:
    """The relation to rows of other devices, and the metadata it needs.

    If no group of rows is cut by the border between devices, there is nothing to ask.
    """
    if relation.block and len(rows) % relation.block == 0:
        return None, {}
    return Relation(relation.pairs), meta
