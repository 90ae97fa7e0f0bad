"""Shuffling BN (He et al., 2020, section 3.3): keys meet other rows in BatchNorm than their queries do.

With BatchNorm over groups of rows, a query and its key that share their group share its statistics, by which the one can be told
from the other: the loss falls and nothing is learned. So the rows are permuted before the key encoder, and its output is put
back in order. The permutation is drawn from the step's key and is a function of the batch size alone.

A plain `x[permutation]` of rows that are sharded over devices makes XLA gather all of them on every device. Here the rows are
seen as b blocks (b * b divides their number), and the permutation is made of three that keep to their place or move evenly:

    rows within each block  ->  the j-th part of block i becomes the i-th part of block j  ->  rows within each block

On a number of devices that divides b (256 rows: 16) that is an all-to-all between two permutations on the spot: a device sends
each of its rows once (32 images of 224 pixels in float32: 19 MB a step), and the embeddings back. On other numbers of devices it
is the same permutation, and XLA gathers. Every row is equally likely to end anywhere, and every block sends equally many rows to
every block.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

AXIS = "data"


class Shuffle(NamedTuple):
    """A permutation of N rows.

    Attributes:
      before: i32[b,N/b], the order within each block that is taken first.
      after: i32[b,N/b], the order within each block that is taken last.
    """

    before: jax.Array
    after: jax.Array

    @classmethod
    def draw(cls, key: jax.Array, rows: int) -> "Shuffle":
        """A random permutation of `rows` rows."""
        count = blocks(rows)
        order = jnp.arange(rows // count, dtype=jnp.int32)
        order = jnp.broadcast_to(order, (2, count, rows // count))
        before, after = jax.random.permutation(key, order, axis=2, independent=True)
        return cls(before, after)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x[N,...], permuted."""
        return _move(x, self.before, self.after)

    def undo(self, x: jax.Array) -> jax.Array:
        """x[N,...] in the order that it had before."""
        return _move(x, jnp.argsort(self.after, axis=1), jnp.argsort(self.before, axis=1))


def blocks(rows: int) -> int:
    """The largest b with b * b a divisor of `rows`; 1 means a plain permutation."""
    return max(b for b in range(1, int(rows**0.5) + 1) if rows % (b * b) == 0)


def _move(x: jax.Array, first: jax.Array, last: jax.Array) -> jax.Array:
    """x[N,...] by `first` within blocks, the exchange of parts, and `last` within blocks."""
    mesh = jax.sharding.get_abstract_mesh()
    if not _divides(mesh, len(first)):
        return _route(x, first, last, devices=1)
    rows = PartitionSpec(AXIS)

    def share(x: jax.Array, first: jax.Array, last: jax.Array) -> jax.Array:
        return _route(x, first, last, mesh.shape[AXIS])

    return jax.shard_map(share, mesh=mesh, in_specs=(rows, rows, rows), out_specs=rows)(
        x, first, last
    )


def _divides(mesh: AbstractMesh, count: int) -> bool:
    """Whether the mesh in sight has several devices, which divide this number of blocks."""
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if kinds.get(AXIS, AxisType.Manual) == AxisType.Manual:
        return False
    return mesh.shape[AXIS] > 1 and count % mesh.shape[AXIS] == 0


def _route(x: jax.Array, first: jax.Array, last: jax.Array, devices: int) -> jax.Array:
    """`_move` of this device's rows; first and last are those of its blocks."""
    own, n = first.shape
    x = _within(x.reshape(own, n, *x.shape[1:]), first)
    # [own blocks, parts, rows of a part, ...]: part j is for block j.
    x = x.reshape(own, own * devices, -1, *x.shape[2:])
    if devices > 1:
        x = lax.all_to_all(x, AXIS, split_axis=1, concat_axis=0, tiled=True)
    x = x.swapaxes(0, 1)
    x = _within(x.reshape(own, n, *x.shape[3:]), last)
    return x.reshape(own * n, *x.shape[2:])


def _within(x: jax.Array, order: jax.Array) -> jax.Array:
    """x[b,n,...] with the rows of each block in the order[b,n]."""
    return jax.vmap(lambda block, index: block[index])(x, order)
