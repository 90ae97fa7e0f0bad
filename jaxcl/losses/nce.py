"""The engine under every loss made of pairs: masked log-sum-exps of a similarity matrix.

A pair loss looks at the matrix ``S[i, j] = scale * <queries[i], keys[j]>`` only through a few sums
along its rows, and its hardest pairs. `row_stats` gives these, differentiable in queries, keys and
scale; what a loss makes of them is arithmetic on vectors. Which pairs enter, at which levels and with
what weights, is said by a relation, a function of the metadata (index, label, ...) of a tile's rows
and columns, so that no mask of the whole matrix need ever exist.

Three forms give the same numbers:

* ``dense`` makes the matrix and keeps it for the backward pass: fast where it is small. Under
  `jax.jit` with the rows sharded over devices, XLA gathers the rows and, of each, its metadata and
  sums; the matrix stays sharded by rows.
* ``tiled`` walks over tiles of the matrix and makes them anew in the backward pass. It keeps the
  rows and their log-sum-exps, so its memory is linear in the rows. With a mesh, every device
  gathers the rows of all and does its own share of the tiles.
* ``ring`` needs a mesh and gathers nothing: blocks of rows travel round the devices. In the
  backward pass they travel again, with the log-sum-exps of their rows; gradients stay at home.

Keys that every device has, such as a queue or class weights, are sent nowhere: each device meets
them with its own queries. Keys that nothing is differentiated with respect to get no gradient
computed.

In float32 a loss of rows of 128 features is right to 1e-6 at temperatures from 1 to 0.005, and its
gradient, in relative L2, to these limits (at 0.005; tests/losses/test_nce.py holds it to them):

======================  ==================  ==================
gradient of             dense               tiled
======================  ==================  ==================
3 to 70 rows            2e-6                2e-6
NT-Xent, 999 rows       2e-6, jax 0.12      2e-6
                        2.5e-6
SupCon, 666 rows        2.2e-6, jax 0.12    1.5e-6, jax 0.12
                        3e-6                2.6e-6
... of 64 features      3e-6, jax 0.12      2.2e-6, jax 0.12
                        3.5e-6              2.8e-6
... of 16 features      6e-6                6e-6
======================  ==================  ==================

Fewer features make rows more alike, and a similarity of up to 1 / temperature is rounded by as much as
it is large; at 0.1 SupCon's gradient is right to 1e-6. A loss so small that little but such roundings
is left of it (of three rows at 0.005, for one) is right to 1e-8 / temperature besides.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values
from jax.sharding import AbstractMesh, AxisType, Mesh

from jaxcl.losses import tiles
from jaxcl.losses.pairs import (
    ARGUMENTS,
    POSITION,
    Coefficients,
    Meta,
    Pairs,
    Relation,
    Side,
    Stat,
    Stats,
    Sums,
    TileSpec,
    as_columns,
    as_rows,
    coefficients,
    finish,
    levels_of,
    merge,
    tile_sums,
    tile_weights,
    usable_bound,
)
from jaxcl.losses.spread import AnyMesh, Places, on_auto_axis, over_other_devices, spread

__all__ = [
    "AnyMesh",
    "Impl",
    "Kernel",
    "Matrix",
    "Meta",
    "Pairs",
    "Relation",
    "Stat",
    "Stats",
    "ambient_mesh",
    "choose",
    "row_stats",
    "using",
    "watched",
]

Impl = Literal["auto", "dense", "tiled", "ring"]
Kernel = Literal["auto", "xla", "pallas"]
Form = Literal["dense", "tiled", "ring"]
T = TypeVar("T")

# Rows and columns of a tile: large enough that XLA divides the exponentials of a tile over the cores of
# a CPU (256 take 1.6 times as long), and that a TPU's matrix units are fed; 1024 gain nothing more.
TILE = 512
# How much of the matrix a device may hold in the dense form: on CPU measured by `jaxcl.bench loss`,
# elsewhere modelled from arithmetic and memory traffic.
DENSE_BYTES = {"cpu": 16 * 2**20}
DENSE_BYTES_ELSEWHERE = 64 * 2**20
RING_ROWS = 1024

_PREFERRED: contextvars.ContextVar[tuple[str, str]] = contextvars.ContextVar(
    "preferred form and kernel", default=("auto", "auto")
)


class Matrix(NamedTuple):
    """A matrix of similarities that `row_stats` has looked at.

    Attributes:
        form: how.
        rows: N.
        columns: K.
        keys: ``[K, D]``, as traced.
        itemsize: bytes of a number.
        keys_everywhere: as given.
    """

    form: Form
    rows: int
    columns: int
    keys: jax.Array
    itemsize: int
    keys_everywhere: bool


_WATCHED: contextvars.ContextVar[list[Matrix] | None] = contextvars.ContextVar(
    "matrices that are watched for", default=None
)


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
    keys_everywhere: bool = False,
    kernel: Kernel = "auto",
    tile: int | None = None,
) -> Stats:
    """Sums along the rows of ``scale * queries @ keys.T`` over the pairs that the relation names.

    Args:
        queries: ``float[N, D]``; made at least float32.
        keys: ``float[K, D]``, or None when the queries are contrasted with themselves. Keys that
            are constant, or behind `jax.lax.stop_gradient`, get no gradient computed.
        relation: which pairs are counted and which are positive; symmetric if `keys` is None.
        query_meta: what the relation reads of the queries, arrays ``[N]`` or ``[N, L]``.
        key_meta: the same of the keys, ``[K]`` or ``[K, L]``; None together with `keys`.
        scale: multiplies every inner product, such as 1 / temperature.
        want: which of the statistics to make.
        bound: what no ``|S[i, j]|`` exceeds, if known, such as 1 / temperature for unit rows. The
            tiles are cheaper with a small one. A wrong bound gives wrong numbers.
        precision: of the matrix products, as in `jax.numpy.matmul`.
        impl: the form, or "auto" for what `using` prefers or else `choose` says.
        mesh: over whose axis `axis` the rows are, or are to be, sharded; None takes the mesh set by
            `jax.set_mesh`, or by which the rows are typed (on an Explicit axis), if any. Without a mesh
            "tiled" and "auto" are for one device: on rows that are sharded all the same, tiles make
            every device do all the work.
        axis: name of that axis.
        keys_everywhere: whether the keys are, or are to be, whole on every device instead of sharded.
            K need not divide over the devices then, and the form is "dense" or "tiled".
        kernel: what walks over the tiles, loops of XLA or a Pallas kernel for TPU (float32 only; on
            a CPU it is interpreted, which is slow and meant for tests), with which "auto" does not
            take the dense form; "auto" is what `using` prefers, or else loops.
        tile: rows and columns of a tile at most; None: 512.

    Returns:
        A dict of what was asked for, each ``[N]``, or ``[N, levels]`` where the relation names its
        pairs by levels (w is 1 but for pairs with weights):

        * ``lse``: ``log sum w exp S[i, j]`` over counted pairs, -inf for a row that counts none;
        * ``positive_sum``: ``sum w S[i, j]`` over positive pairs;
        * ``positive_lse``: like lse, over positive pairs;
        * ``positives``: ``sum w`` over positive pairs, without gradient;
        * ``max``, ``argmax``: the largest S[i, j] of the counted pairs and the number of its key (of
          equal ones the first), such as the hardest negative; -inf and -1 where none is counted;
        * ``positive_min``, ``positive_argmin``: the smallest of the positive pairs; inf and -1 where
          there is none.

    Raises:
        ValueError: a form that is unknown or impossible for the mesh, shapes that do not fit.
    """
    mesh = ambient_mesh(axis, (queries, keys)) if mesh is None else mesh
    preferred_impl, preferred_kernel = _PREFERRED.get()
    kernel = preferred_kernel if kernel == "auto" else kernel  # type: ignore[assignment]
    _check(queries, keys, query_meta, key_meta, impl, kernel, mesh, axis, keys_everywhere)
    dtype = jnp.promote_types(queries.dtype, jnp.float32)
    made = tuple(dict.fromkeys(ARGUMENTS.get(stat, stat) for stat in want))
    extremes = any(stat in ARGUMENTS.values() for stat in made)
    query_meta = _opened(query_meta, len(queries), extremes)
    key_meta = _opened(key_meta or {}, len(queries if keys is None else keys), extremes)
    devices = 1 if mesh is None else mesh.shape[axis]
    rows, columns = len(queries), len(queries if keys is None else keys)
    platform = _platform(mesh)
    if kernel == "pallas" and platform not in ("tpu", "cpu"):
        raise ValueError(f'kernel="pallas" is for TPU, not for {platform}; use kernel="xla".')
    form: Form
    if impl != "auto":
        form = impl
    elif preferred_impl != "auto":
        form = preferred_impl  # type: ignore[assignment]
    elif kernel == "pallas":
        form = _walk(rows, devices)
    else:
        form = choose(rows, columns, devices, dtype.itemsize, platform)
    if form == "ring" and (mesh is None or keys_everywhere):
        form = "tiled"
    check_preference(form, kernel)
    several = devices > 1 and form != "dense"
    if several and (rows % devices or (columns % devices and not keys_everywhere)):
        chosen = f'impl="{form}"' if impl == form else f'impl="auto" takes "{form}"'
        step = math.lcm(devices, relation.block or 1)
        fits = max(step, rows - rows % step)
        raise ValueError(
            f"{chosen}: {rows:,} rows and {columns:,} keys do not divide over the {devices} devices of "
            f'mesh axis "{axis}"; choose a batch of a multiple of {devices} images, such as one of '
            f"{fits:,} rows."
        )
    if (seen := _WATCHED.get()) is not None:
        whose = queries if keys is None else keys
        seen.append(Matrix(form, rows, columns, whose, dtype.itemsize, keys_everywhere))
    spec = TileSpec(
        relation,
        made,
        levels_of(relation, query_meta, query_meta if keys is None else key_meta, dtype),
        usable_bound(bound, dtype),
        precision,
        TILE if tile is None else tile,
        varying=(axis,) if several else (),
        interpret=platform == "cpu",
    )

    def stats_of(mesh: AnyMesh | None, queries: jax.Array, keys: Any, *others: Any) -> Stats:
        places = Places(mesh if several else None, axis, form == "ring", keys_everywhere)
        plan = _Plan(spec, form, kernel, places)
        scale, query_meta, key_meta = others
        if keys is None:
            stats = _self_stats(plan, queries, scale, query_meta)
        else:
            stats = _cross_stats(plan, queries, keys, scale, query_meta, key_meta)
        return {stat: stats[stat] for stat in want}

    queries = queries.astype(dtype)
    keys = None if keys is None else keys.astype(dtype)
    scale = jnp.asarray(scale, dtype)
    return on_auto_axis(
        stats_of, mesh, axis, rows % devices == 0, queries, keys, scale, query_meta, key_meta
    )


@contextlib.contextmanager
def using(impl: Impl | str = "auto", kernel: Kernel | str = "auto") -> Iterator[None]:
    """What losses that are traced in here take for ``impl="auto"`` and ``kernel="auto"``.

    It is for what calls a loss that has no argument for it, such as a training step: which form suits
    depends on the devices. A "ring" is taken where rows travel, and tiles where they do not. What
    `jax.jit` has traced before stays as it is.

    The Pallas kernel has not met a TPU yet, so "auto" does not take it. What can be said without one is
    compiled, with times modelled from peak rates (``python -m jaxcl.bench loss --topology=v5e:2x4``): XLA
    keeps the tiles of its loops on the chip, too, so that both are bound by their products. On a ring of
    8 v5e chips and 32,768 views of 128 features the loops have 3.0 ms of products and 0.2 ms of traffic
    with memory, the kernel 3.1 ms and 0.4 ms; what it saves is 2 MiB of temporaries. On one device it
    visits both halves of the matrix, the loops one. So it pays if the turns of a loop cost more than
    this model knows, or if a compiler sends tiles through memory (2 to 5 us each), and else it does not.

    Raises:
        ValueError: an unknown form or kernel, or the kernel with the form that has no tiles.
    """
    check_preference(impl, kernel)
    token = _PREFERRED.set((impl, kernel))
    try:
        yield
    finally:
        _PREFERRED.reset(token)


@contextlib.contextmanager
def watched() -> Iterator[list[Matrix]]:
    """The matrices that losses look at which are traced in here, for what plans a program."""
    seen: list[Matrix] = []
    token = _WATCHED.set(seen)
    try:
        yield seen
    finally:
        _WATCHED.reset(token)


def check_preference(impl: str, kernel: str) -> None:
    """Refuses what `using` does not know.

    Raises:
        ValueError: names it, and what is known.
    """
    for name, value, choices in (("impl", impl, Impl), ("kernel", kernel, Kernel)):
        if value not in get_args(choices):
            known = ", ".join(f'"{choice}"' for choice in get_args(choices))
            raise ValueError(f'{name}="{value}" is unknown; it is one of {known}.')
    if (impl, kernel) == ("dense", "pallas"):
        raise ValueError(
            'kernel="pallas" walks over tiles, which impl="dense" has not; use "tiled".'
        )


def choose(
    rows: int, keys: int, devices: int = 1, itemsize: int = 4, platform: str = "cpu"
) -> Form:
    """The form that "auto" takes.

    Dense while the two copies that its gradient needs of a device's share of the matrix stay below
    16 MiB on a CPU (up to 1,448 rows on one device) and 64 MiB elsewhere (2,896). Beyond that
    tiles; on several devices a ring from 1,024 rows a device on, where on TPU a hop's arithmetic
    begins to hide its traffic, and gathered rows below (as for keys that every device has anyway).
    """
    if 2 * itemsize * rows * keys <= DENSE_BYTES.get(platform, DENSE_BYTES_ELSEWHERE) * devices:
        return "dense"
    return _walk(rows, devices)


def _walk(rows: int, devices: int) -> Form:
    """The form of `choose` that has tiles."""
    return "ring" if devices > 1 and rows // devices >= RING_ROWS else "tiled"


def ambient_mesh(axis: str = "data", rows: Any = None) -> AbstractMesh | None:
    """The mesh set by `jax.set_mesh`, or that of the types of the rows, if it has the axis, and we are not inside a shard of it."""
    typed = [jax.typeof(x).sharding.mesh for x in jax.tree.leaves(rows)]
    for mesh in (jax.sharding.get_abstract_mesh(), *typed):
        kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
        if axis in kinds and kinds[axis] != AxisType.Manual:
            return mesh
    return None


def _opened(meta: Meta, count: int, positions: bool) -> Meta:
    """Metadata with vectors only: those ``[count, L]`` as tuples of L, and the number of each row."""
    opened = {
        name: tuple(x[:, level] for level in range(x.shape[1])) if x.ndim == 2 else x
        for name, x in meta.items()
    }
    return opened | ({POSITION: jnp.arange(count, dtype=jnp.int32)} if positions else {})


def _platform(mesh: AnyMesh | None) -> str:
    """Where the work is done: an explicit mesh may be of devices that this process has not."""
    if isinstance(mesh, Mesh):
        return mesh.devices.flat[0].platform
    device = None if mesh is None else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform


def _check(
    queries: jax.Array,
    keys: jax.Array | None,
    query_meta: Meta,
    key_meta: Meta | None,
    impl: str,
    kernel: str,
    mesh: AnyMesh | None,
    axis: str,
    keys_everywhere: bool,
) -> None:
    check_preference(impl, kernel)
    if mesh is None and impl == "ring":
        raise ValueError('impl="ring" passes rows between devices: give it a mesh=.')
    if keys_everywhere and (keys is None or impl == "ring"):
        raise ValueError(
            'keys_everywhere is for keys that do not travel: give keys=, and an impl but "ring".'
        )
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
            if value.shape[:1] != rows.shape[:1] or value.ndim > 2:
                raise ValueError(
                    f"{name}_meta[{field!r}] must be [{len(rows)}] or [{len(rows)}, levels], one for "
                    f"each row; got {list(value.shape)}."
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
    return finish(plan.spec, _self_sums(plan, rows, scale, meta)[0])


def _self_sums(
    plan: _Plan, rows: jax.Array, scale: jax.Array, meta: Meta
) -> tuple[Sums, jax.Array | None]:
    """The sums of all rows, and the matrix where it is kept."""
    spec = plan.spec
    if plan.form == "dense":
        return _matrix(spec, rows, rows, scale, meta, meta)

    def share(scale: jax.Array, rows: jax.Array, meta: Meta) -> Sums:
        relation, meta_abroad = _abroad(spec.relation, rows, meta)

        def block(sums: Sums, other: tuple[jax.Array, Meta]) -> Sums:
            new = plan.walks.forward_cross(
                spec, relation, rows, other[0], scale, meta_abroad, other[1]
            )
            return merge(spec, sums, new)

        own = plan.walks.forward_self(spec, rows, scale, meta)
        return over_other_devices(plan.places, block, own, (rows, meta_abroad))

    return spread(plan.places, share, (scale,), (rows, meta)), None


def _self_forward(plan: _Plan, rows: Any, scale: Any, meta: Any) -> tuple[Stats, Any]:
    rows, scale, meta = custom_vjp_primal_tree_values((rows, scale, meta))
    sums, s = _self_sums(plan, rows, scale, meta)
    return finish(plan.spec, sums), (rows, scale, meta, sums, s)


def _self_backward(plan: _Plan, saved: Any, gradient: Stats) -> tuple[Any, ...]:
    rows, scale, meta, sums, s = saved
    spec = _differentiated(plan.spec, gradient)
    anchors = coefficients(spec, sums, gradient)

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
        weights = _matrix_weights(spec, s, meta, meta, anchors, anchors)
        total = jnp.matmul(weights, rows, precision=spec.precision)
    else:
        total = spread(plan.places, share, (scale,), (rows, meta, anchors))
    # A pair of rows is in the gradient of both, hence the half.
    return scale * total, jnp.sum(rows * total) / 2, None


_self_stats.defvjp(_self_forward, _self_backward, symbolic_zeros=True)


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
    return finish(plan.spec, _cross_sums(plan, queries, keys, scale, query_meta, key_meta)[0])


def _cross_sums(
    plan: _Plan,
    queries: jax.Array,
    keys: jax.Array,
    scale: jax.Array,
    query_meta: Meta,
    key_meta: Meta,
) -> tuple[Sums, jax.Array | None]:
    """The sums of all rows, and the matrix where it is kept."""
    spec = plan.spec
    if plan.form == "dense":
        return _matrix(spec, queries, keys, scale, query_meta, key_meta)

    def share(
        scale: jax.Array, keys: jax.Array, key_meta: Meta, queries: jax.Array, query_meta: Meta
    ) -> Sums:
        def block(sums: Sums | None, here: tuple[jax.Array, Meta]) -> Sums:
            new = plan.walks.forward_cross(
                spec, spec.relation, queries, here[0], scale, query_meta, here[1]
            )
            return new if sums is None else merge(spec, sums, new)

        here = (keys, key_meta)
        return over_other_devices(plan.places, block, block(None, here), here)

    return _spread_cross(plan.places, share, scale, (keys, key_meta), (queries, query_meta)), None


def _cross_forward(
    plan: _Plan, queries: Any, keys: Any, scale: Any, query_meta: Any, key_meta: Any
) -> tuple[Stats, Any]:
    # What is saved holds arrays only: () stands for yes.
    wants_keys = () if keys.perturbed else None
    arguments = custom_vjp_primal_tree_values((queries, keys, scale, query_meta, key_meta))
    sums, s = _cross_sums(plan, *arguments)
    return finish(plan.spec, sums), (*arguments, sums, s, wants_keys)


def _cross_backward(plan: _Plan, saved: Any, gradient: Stats) -> tuple[Any, ...]:
    queries, keys, scale, query_meta, key_meta, sums, s, wants_keys = saved
    spec, places = _differentiated(plan.spec, gradient), plan.places
    anchors = coefficients(spec, sums, gradient)

    def query_share(
        scale: jax.Array,
        keys: jax.Array,
        key_meta: Meta,
        queries: jax.Array,
        query_meta: Meta,
        anchors: Coefficients,
    ) -> jax.Array:
        def block(total: jax.Array | float, here: tuple[jax.Array, Meta]) -> jax.Array:
            return total + plan.walks.gradient_cross(
                spec, spec.relation, queries, here[0], scale, query_meta, here[1], anchors, None
            )

        here = (keys, key_meta)
        return over_other_devices(places, block, block(0.0, here), here)

    def key_share(
        scale: jax.Array,
        keys: jax.Array,
        key_meta: Meta,
        queries: jax.Array,
        query_meta: Meta,
        anchors: Coefficients,
    ) -> jax.Array:
        turned = Relation(_Turned(spec.relation), sees_similarity=True)

        def block(
            total: jax.Array | float, here: tuple[jax.Array, Meta, Coefficients]
        ) -> jax.Array:
            return total + plan.walks.gradient_cross(
                spec, turned, keys, here[0], scale, key_meta, here[1], None, here[2]
            )

        here = (queries, query_meta, anchors)
        return over_other_devices(places, block, block(0.0, here), here)

    key_total = None
    # The keys' part stands apart, so that it can be left out. On a ring this makes the queries
    # travel, too, but no gradient.
    if plan.form == "dense":
        weights = _matrix_weights(spec, s, query_meta, key_meta, anchors, None)
        query_total = jnp.matmul(weights, keys, precision=spec.precision)
        if wants_keys is not None:
            key_total = jnp.matmul(weights.T, queries, precision=spec.precision)
    else:
        arguments = scale, (keys, key_meta), (queries, query_meta, anchors)
        query_total = _spread_cross(places, query_share, *arguments)
        if wants_keys is not None:
            key_total = _spread_cross(places, key_share, *arguments, add_up=places.keys_everywhere)
    to_keys = None if key_total is None else scale * key_total
    return scale * query_total, to_keys, jnp.sum(queries * query_total), None, None


_cross_stats.defvjp(_cross_forward, _cross_backward, symbolic_zeros=True)


def _spread_cross(
    places: Places,
    share: Callable[..., T],
    scale: jax.Array,
    keys: tuple[Any, ...],
    queries: tuple[Any, ...],
    *,
    add_up: bool = False,
) -> T:
    """`spread` with the keys where they are."""
    if places.keys_everywhere:
        return spread(places, share, (scale, *keys), queries, add_up=add_up)
    return spread(places, share, (scale,), (*keys, *queries))


def _differentiated(spec: TileSpec, gradient: Stats) -> TileSpec:
    """The spec without the sums that the loss makes no differentiable use of."""
    want = tuple(k for k in spec.want if not isinstance(gradient[k], SymbolicZero))
    return dataclasses.replace(spec, want=want)


def _matrix(
    spec: TileSpec,
    queries: jax.Array,
    keys: jax.Array,
    scale: jax.Array,
    query_meta: Meta,
    key_meta: Meta,
) -> tuple[Sums, jax.Array]:
    """The sums of all rows from the whole matrix as one tile, and the matrix."""
    s = jnp.matmul(queries * scale, keys.T, precision=spec.precision)
    row_meta, column_meta = as_rows(query_meta), as_columns(key_meta)
    pairs = spec.relation.of_tile(row_meta, column_meta, s)
    sums = tile_sums(spec, s, pairs, 1, column_meta.get(POSITION))
    return {name: jnp.squeeze(value, 1) for name, value in sums.items()}, s


def _matrix_weights(
    spec: TileSpec,
    s: jax.Array,
    query_meta: Meta,
    key_meta: Meta,
    queries: Coefficients,
    keys: Coefficients | None,
) -> jax.Array:
    """`tile_weights` of the whole matrix."""
    row_meta, column_meta = as_rows(query_meta), as_columns(key_meta)
    return tile_weights(
        spec,
        s,
        spec.relation.of_tile(row_meta, column_meta, s),
        Side(as_rows(queries), column_meta.get(POSITION)),
        None if keys is None else Side(as_columns(keys), row_meta.get(POSITION)),
    )


@dataclasses.dataclass(frozen=True)
class _Turned:
    """A relation seen from the keys: its tiles have keys as rows and queries as columns."""

    inner: Relation

    def __call__(self, keys: Meta, queries: Meta, s: jax.Array) -> Pairs:
        return self.inner.of_tile(queries, keys, s)


def _abroad(relation: Relation, rows: jax.Array, meta: Meta) -> tuple[Relation | None, Meta]:
    """The relation to rows of other devices, and the metadata it needs.

    If no group of rows is cut by the border between devices, there is nothing to ask.
    """
    if relation.block and len(rows) % relation.block == 0:
        return None, {name: x for name, x in meta.items() if name == POSITION}
    return dataclasses.replace(relation, block=0), meta
