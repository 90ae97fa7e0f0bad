"""Tiles over devices: each has a block of the rows, and meets the blocks of the others.

By a ring, where blocks are passed from device to device and never gathered, or by gathering all
blocks on every device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AnyMesh = Mesh | AbstractMesh
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the rows are; static.

    Attributes:
        mesh: None if they are all on one device, or if it is left to XLA where they are.
        axis: the axis of the mesh over which they are sharded.
        ring: whether blocks are passed on, and not gathered.
        keys_everywhere: whether every device has all keys, so that there is nothing to send.
    """

    mesh: AnyMesh | None
    axis: str
    ring: bool
    keys_everywhere: bool = False


def on_auto_axis(
    run: Callable[..., T], mesh: AnyMesh | None, axis: str, parted: bool, *arguments: Any
) -> T:
    """``run(mesh, *arguments)``, where the axis of the mesh is Auto.

    On an Explicit axis, which is what `jax.make_mesh` makes unless told otherwise, every array has its
    sharding for a type, and a product of rows and columns that are both sharded has none. So JAX is told
    to see to it itself in here.

    Args:
        run: gives leaves ``[N, ...]``.
        mesh: as of `Places`.
        axis: as of `Places`.
        parted: whether the results can be sharded over the axis by their rows.
        *arguments: all arrays that it needs.
    """
    if (
        mesh is None
        or dict(zip(mesh.axis_names, mesh.axis_types, strict=True))[axis] != AxisType.Explicit
    ):
        return run(mesh, *arguments)
    abstract = mesh.abstract_mesh if isinstance(mesh, Mesh) else mesh
    auto = abstract.update_axis_types({axis: AxisType.Auto})
    around = [jax.typeof(x).sharding.mesh for x in jax.tree.leaves(arguments)]
    if isinstance(mesh, Mesh) and all(
        axis not in m.axis_names for m in (*around, jax.sharding.get_abstract_mesh())
    ):
        # No array has such a type.
        return run(Mesh(mesh.devices, mesh.axis_names, auto.axis_types), *arguments)
    out = PartitionSpec(axis) if parted else PartitionSpec()
    with jax.sharding.use_abstract_mesh(abstract):
        return jax.sharding.auto_axes(
            lambda *arguments: run(auto, *arguments), axes=axis, out_sharding=out
        )(*arguments)


def whole(tree: T) -> T:
    """Arrays as they are, but those that an Explicit axis types as sharded whole on every device."""

    def one(x: jax.Array) -> jax.Array:
        mesh = jax.typeof(x).sharding.mesh
        typed = AxisType.Explicit in mesh.axis_types
        return jax.reshard(x, NamedSharding(mesh, PartitionSpec())) if typed else x

    return jax.tree.map(one, tree)


def spread(
    places: Places,
    share: Callable[..., T],
    whole: tuple[Any, ...],
    parted: tuple[Any, ...],
    *,
    add_up: bool = False,
) -> T:
    """``share(*whole, *parted)``, done by each device for its own part of `parted`.

    The results are put one behind the other, as `parted` is, or added up over the devices.
    """
    if places.mesh is None:
        return share(*whole, *parted)

    def run(whole: tuple[Any, ...], parted: tuple[Any, ...]) -> T:
        whole = lax.pcast(whole, places.axis, to="varying")
        result = share(*whole, *parted)
        return lax.psum(result, places.axis) if add_up else result

    own, all_of_it = PartitionSpec(places.axis), PartitionSpec()
    return jax.shard_map(
        run,
        mesh=places.mesh,
        in_specs=(all_of_it, own),
        out_specs=all_of_it if add_up else own,
    )(whole, parted)


def over_other_devices(places: Places, block: Callable[[T, Any], T], own: T, mine: Any) -> T:
    """Folds ``block(total, theirs)`` over what `mine` is on every other device, from `own` on."""
    if places.mesh is None or places.keys_everywhere:
        return own
    devices = places.mesh.shape[places.axis]
    if places.ring:
        # The next block is sent for before this one is worked on, so that the two can overlap.
        def hop(_: int, state: tuple[T, Any]) -> tuple[T, Any]:
            total, theirs = state
            following = _pass_on(theirs, places.axis, devices)
            return block(total, theirs), following

        return lax.fori_loop(1, devices, hop, (own, _pass_on(mine, places.axis, devices)))[0]

    everyone = jax.tree.map(lambda x: lax.all_gather(x, places.axis), mine)
    me = lax.axis_index(places.axis)

    def visit(distance: jax.Array, total: T) -> T:
        there = (me + distance) % devices
        theirs = jax.tree.map(
            lambda x: lax.dynamic_index_in_dim(x, there, keepdims=False), everyone
        )
        return block(total, theirs)

    return lax.fori_loop(1, devices, visit, own)


def _pass_on(tree: T, axis: str, devices: int) -> T:
    """Every device's arrays ``[N, ...]`` to the device before it, those of one dtype together."""
    leaves, structure = jax.tree.flatten(tree)
    before = [(d, (d - 1) % devices) for d in range(devices)]
    arrived: dict[int, jax.Array] = {}
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        group = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        flat = [leaves[i].reshape(len(leaves[i]), -1) for i in group]
        packed = lax.ppermute(jnp.concatenate(flat, axis=1), axis, before)
        ends = [sum(x.shape[1] for x in flat[:n]) for n in range(1, len(flat))]
        for i, part in zip(group, jnp.split(packed, ends, axis=1), strict=True):
            arrived[i] = part.reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, [arrived[i] for i in range(len(leaves))])
