"""What the devices of a step send each other, by formula: for devices whose compiler is not here.

The loss is traced at the size of the whole batch, in sight of as many devices as there will be. Seen in that are the passes
through the network and whose parameters they use (BatchNorm's sums), the matrices of similarities (embeddings, which every device
needs of all unless they go round a ring), the all-to-alls of shuffled keys, and what goes into memories that every device has.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jaxcl import mesh as mesh_lib
from jaxcl.experiment import Experiment
from jaxcl.losses import nce
from jaxcl.models import Model
from jaxcl.plan import trace
from jaxcl.plan.chips import Topology
from jaxcl.plan.cost import Collective
from jaxcl.state import host_crop

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Pass:
    """A pass through the network by the statistics of the batch.

    Attributes:
      rows: images of all devices.
      heads: bytes of the means and variances of the heads' BatchNorms.
      backbone: the same of each part of the backbone that has some.
      trained: whether a gradient comes back.
    """

    rows: int
    heads: int
    backbone: Mapping[str, int]
    trained: bool


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What a step sends, and what a device holds of others for it.

    Attributes:
      collectives: how often each is done.
      gathered: bytes of embeddings of all devices that each has.
      matrices: bytes that a device keeps of matrices of similarities for their gradients, two copies of each that is not made
        anew; the columns of all devices.
    """

    collectives: collections.Counter[Collective]
    gathered: int
    matrices: int


def traffic(
    share: Experiment,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    topology: Topology,
    groups: int,
    pieces: int = 1,
) -> Traffic:
    """The traffic of a step on several devices.

    Args:
      share: the experiment as one device has it: its part of the batch, of BatchNorm's groups those that lie in it.
      batch: shapes of that part.
      topology: all devices.
      groups: of BatchNorm, of the whole batch.
      pieces: micro-batches. XLA sums the backbone's gradient over the devices after each.
    """
    count = topology.devices
    whole = {
        k: jax.ShapeDtypeStruct((count * s.shape[0], *s.shape[1:]), s.dtype)
        for k, s in batch.items()
    }
    state = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), share.state)
    device = AbstractDevice(topology.chip.name, None, topology.chip.platform)
    mesh = AbstractMesh((count,), (mesh_lib.AXIS,), (AxisType.Auto,), abstract_device=device)

    passes: list[Pass] = []
    part = jax.eval_shape(lambda *given: _loss(share, [], *given)[1], state.params, state, batch)
    with jax.sharding.use_abstract_mesh(mesh), nce.watched() as matrices:
        gradient = jax.grad(lambda *given: _loss(share, passes, *given), has_aux=True)
        traced, (_, (carry, embeddings)) = jax.make_jaxpr(gradient, return_shape=True)(
            state.params, state, whole
        )

    # What a method keeps is on every device, and so has to be what it keeps of each row: what grows with the batch.
    carried = sum(
        _bytes(leaf)
        for leaf, own in zip(jax.tree.leaves(carry), jax.tree.leaves(part[0]), strict=True)
        if leaf.shape != own.shape
    )
    keys = {id(m.keys): m for m in matrices if not m.keys_everywhere}.values()
    gathered = sum(_bytes(m.keys) for m in keys if m.form != "ring")
    if not matrices and embeddings is not None:
        gathered = _bytes(embeddings)
    # It is of the same embeddings.
    gathered = max(gathered, carried)

    found: collections.Counter[Collective] = collections.Counter()

    def add(kind: str, size: int, source: str, times: int = 1, devices: int = count) -> None:
        if size and times and devices > 1:
            found[Collective(kind, (), size, devices, source)] += times

    each = _bytes(state.params["backbone"]) if pieces > 1 else 0
    add("all-reduce", _bytes(state.params) - each, "gradients")
    add(
        "all-reduce",
        each,
        "gradients of micro-batches",
        pieces * sum(one.trained for one in passes),
    )
    for one in passes:
        _batch_norm(add, one, share.model, groups, pieces, count)
    for size, times in trace.exchanged(traced.jaxpr).items():
        add("all-to-all", size, "shuffling BN", times)
    add("all-gather", gathered, "embeddings")
    # Round the ring in the forward pass, and again in the backward pass.
    ring = sum(_bytes(m.keys) for m in keys if m.form == "ring") // count
    add("collective-permute", ring, "embeddings", 2 * (count - 1))
    return Traffic(found, gathered if count > 1 else 0, dense_bytes(matrices) // count)


def dense_bytes(matrices: list[nce.Matrix]) -> int:
    """Bytes of the matrices that are kept whole, twice."""
    return sum(2 * m.itemsize * m.rows * m.columns for m in matrices if m.form == "dense")


def _loss(
    share: Experiment, passes: list[Pass], params: PyTree, state: Any, batch: Mapping[str, Any]
) -> tuple[jax.Array, tuple[PyTree, jax.Array | None]]:
    """(the method's loss, (its carry, its embeddings)); notes the passes through the network."""

    def apply(
        given: PyTree,
        batch_stats: PyTree,
        images: jax.Array,
        train: bool,
        key: jax.Array | None = None,
        heads: Any = None,
    ) -> Any:
        if train:
            statistics = _statistics(share.model, batch_stats, heads)
            passes.append(Pass(len(images), *statistics, given is params))
        return share.model.apply(given, batch_stats, images, train, key, heads)

    key = jax.random.key(0)
    keys = jax.random.split(key, batch["image"].shape[0])
    views = share.method.views(keys, batch["image"], host_crop(batch))
    out = share.method.loss(apply, params, state.batch_stats, state.extra, batch, views, key)
    return out.loss, (out.carry, out.embeddings)


def _statistics(model: Model, batch_stats: PyTree, heads: Any) -> tuple[int, dict[str, int]]:
    """Those of a `Pass`, through these heads; None: all."""
    names = [name for name, _ in model.heads if heads is None or name in heads]
    of_heads = sum(_bytes(batch_stats.get(f"head_{name}", {})) for name in names)
    return of_heads, {name: _bytes(part) for name, part in batch_stats.get("backbone", {}).items()}


def _batch_norm(add: Any, one: Pass, model: Model, groups: int, pieces: int, count: int) -> None:
    """Adds the sums of BatchNorm: over the devices among which a group is divided, and of all groups for the running statistics.

    Statistics of the whole batch in micro-batches are found anew for every BatchNorm that lies before them in their segment, and
    once more, of each micro-batch (`models.gradient_cache`).
    """
    ways = ("forward", "backward") if one.trained else ("forward",)
    backbone = sum(one.backbone.values())
    if groups % count and count % groups:
        # The rows' means are brought together, [N, C] of each layer.
        for way in ways:
            add("all-gather", one.rows * (one.heads + backbone), f"BatchNorm, {way}")
        return
    among = max(1, count // groups)
    for way in ways:
        if pieces == 1 or groups > 1:
            add("all-reduce", one.heads + backbone, f"BatchNorm, {way}", devices=among)
            continue
        add("all-reduce", one.heads, f"BatchNorm, {way}")
        for names in model.backbone.segments if backbone else ():
            size, sweeps = (
                sum(one.backbone[name] for name in names),
                model.backbone.norms_in_a_row(names) + 1,
            )
            add("all-reduce", size, f"BatchNorm, {way}, of micro-batches", pieces * sweeps)
    if groups > 1:
        if pieces == 1:
            add("all-reduce", one.heads + backbone, "BatchNorm, running statistics")
        else:
            add("all-reduce", one.heads, "BatchNorm, running statistics")
            add("all-reduce", backbone, "BatchNorm, running statistics of micro-batches", pieces)


def _bytes(tree: PyTree) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
