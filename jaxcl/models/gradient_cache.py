"""A backbone over more rows than memory holds activations for: in micro-batches, with the exact gradient.

The forward pass goes through one micro-batch after another and keeps their features h only. When the gradient with respect to
all h has come back from the loss, which saw all of them, the backward pass computes one micro-batch after another again, pulls
its share of that gradient through it and adds up the parameters' gradients (Gao et al., "Scaling Deep Contrastive Learning
Batch Size under Memory Limited Setup", 2021). This happens below the loss, so it is the same for every method.

What it costs depends on BatchNorm. Where its groups lie within micro-batches, the forward pass is made twice and nothing else:
4/3 of the time. Statistics over the whole batch are another matter, as those of a layer depend on those of all layers before
it. Let the statistics S of all layers be an input of the network. Then what the network finds in its layers, T(S), is exact in
the first layer whatever S is, and after n passes S <- T(S) in the first n layers; S = T(S) after as many passes as layers lie
behind one another. The gradient with respect to S is found the same way from the last layer on: g <- dL/dS + (dT/dS)' g. That
is about one forward pass and one backward pass (without the kernels' gradients) of each micro-batch for each BatchNorm. To keep
this number small, the backbone is cut into segments that are worked off one by one: the whole batch's activations are kept at
the cuts, all behind the first half of the network, where activations are small.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxcl.models.norm import moving_average

PyTree = Any

# (params, statistics of the whole batch, rows[n,...]) -> (outputs[n,...], {"mean", "var"} of each BatchNorm's input here)
Segment = Callable[[PyTree, PyTree, jax.Array], tuple[jax.Array, PyTree]]


def count_pieces(batch_size: int, micro_batch: int, groups: int, devices: int = 1) -> int:
    """How many micro-batches a batch is cut into.

    Args:
      batch_size: images in the global batch.
      micro_batch: images in a micro-batch; 0 is the whole batch in one.
      groups: of the backbone's BatchNorm.
      devices: number of devices over which the batch is sharded; each cuts its own rows.

    Raises:
      ValueError: it cannot be cut in this way; says what to choose.
    """
    if micro_batch < 0 or micro_batch > batch_size:
        raise ValueError(
            f"micro_batch={micro_batch}: expected 0 (no micro-batches) to batch_size={batch_size} images"
        )
    if not micro_batch:
        return 1
    fitting = [m for m in range(devices, batch_size + 1, devices) if batch_size % m == 0]
    if micro_batch not in fitting:
        below = [m for m in fitting if m < micro_batch][-1:]
        above = [m for m in fitting if m > micro_batch][:1]
        over = f" over {devices} devices" if devices > 1 else ""
        raise ValueError(
            f"micro_batch={micro_batch}: batch_size={batch_size} cannot be cut into micro-batches of as many images{over};"
            f" choose {' or '.join(str(m) for m in below + above) or 0}"
        )
    pieces = batch_size // micro_batch
    if pieces > 1 and groups > 1 and groups % (pieces * devices):
        within = [m for m in fitting if groups % (batch_size // m * devices) == 0]
        raise ValueError(
            f"micro_batch={micro_batch} cuts batch_size={batch_size} into {pieces} micro-batches, and model.bn_groups={groups}"
            f" groups do not fit into them{f' on {devices} devices' * (devices > 1)}: choose"
            f" {f'micro_batch={within[0]}, ' if within else ''}bn_groups a multiple of {pieces * devices}, or bn_groups=1, whose"
            " statistics over the whole batch are exact too but take several times as long"
        )
    return pieces


def forward(
    backbone: Any,
    params: PyTree,
    batch_stats: PyTree,
    images: jax.Array,
    train: bool,
    pieces: int,
) -> tuple[jax.Array, PyTree]:
    """The backbone in micro-batches; the numbers are those of one pass over all rows.

    Args:
      backbone: the linen module; with `segments` and `norms_in_a_row` if it has BatchNorm.
      params: its parameters.
      batch_stats: its running statistics.
      images: float[N,h,w,C].
      train: by the batch's statistics, which update the running ones.
      pieces: number of micro-batches.

    Returns:
      h[N,F] and batch_stats.

    Raises:
      ValueError: N rows or their groups do not fit into that many micro-batches.
    """
    rows, block = images.shape[0], 1
    if rows % pieces:
        raise ValueError(f"{rows} rows do not divide into {pieces} micro-batches of equal size")
    if train and batch_stats:
        groups = backbone.groups
        if groups == 1:
            return _with_global_statistics(backbone, params, batch_stats, images, pieces)
        if rows % groups or groups % pieces:
            raise ValueError(
                f"BatchNorm: {rows} rows in groups={groups} groups do not fit into {pieces} micro-batches: choose groups as a"
                f" multiple of {pieces} that divides {rows}, or 1"
            )
        block = rows // groups
        backbone = backbone.clone(groups=groups // pieces)

    def piece(x: jax.Array) -> tuple[jax.Array, PyTree]:
        variables = {"params": params, "batch_stats": batch_stats}
        if not train:
            return backbone.apply(variables, x, False), {}
        h, new = backbone.apply(variables, x, True, mutable=["batch_stats"])
        return h, new.get("batch_stats", {})

    # Of a loop over what is computed again, reverse mode keeps the inputs, and adds up the parameters' gradients on the way.
    body = jax.checkpoint(piece, prevent_cse=False)
    h, new = jax.lax.map(body, split(images, pieces, block))
    # The running statistics are linear in those of the groups.
    return join(h, block), (jax.tree.map(lambda s: s.mean(0), new) if train else batch_stats)


def _with_global_statistics(
    backbone: Any, params: PyTree, batch_stats: PyTree, images: jax.Array, pieces: int
) -> tuple[jax.Array, PyTree]:
    x = split(images, pieces)
    found: dict[str, PyTree] = {}
    for names in backbone.segments:
        x, moments = in_micro_batches(
            partial(backbone_segment, backbone, names),
            backbone.norms_in_a_row(names),
            {name: params[name] for name in names},
            {name: batch_stats[name] for name in names},
            x,
        )
        found |= moments
    average = partial(moving_average, backbone.momentum)
    return join(x), jax.tree.map(average, batch_stats, found)


def backbone_segment(
    backbone: Any, names: tuple[str, ...], params: PyTree, statistics: PyTree, x: jax.Array
) -> tuple[jax.Array, PyTree]:
    """Evaluation mode by the batch's statistics is training mode, with the statistics as an input."""
    variables = {"params": params, "batch_stats": statistics}
    y, new = backbone.apply(variables, x, False, names, mutable=["moments"])
    return y, new["moments"]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def in_micro_batches(
    segment: Segment, passes: int, params: PyTree, start: PyTree, x: jax.Array
) -> tuple[jax.Array, PyTree]:
    """A segment on all micro-batches by the statistics of all of them together.

    The gradient through the statistics is exact, but for that with respect to those that are returned, which is left out, as
    nothing is trained by running statistics.

    Args:
      segment: the segment on one micro-batch.
      passes: as many as BatchNorms lie behind one another in it.
      params: its parameters.
      start: any statistics, as a template.
      x: [K,n,...], K micro-batches.

    Returns:
      outputs [K,n,...], and the statistics.
    """
    return _forward(segment, passes, params, start, x)[0]


def _forward(segment: Segment, passes: int, params: PyTree, start: PyTree, x: jax.Array) -> Any:
    def sweep(_: Any, statistics: PyTree) -> PyTree:
        return combined(jax.lax.map(lambda piece: segment(params, statistics, piece)[1], x))

    statistics = jax.lax.fori_loop(0, passes, sweep, start)
    y, parts = jax.lax.map(lambda piece: segment(params, statistics, piece), x)
    return (y, statistics), (params, statistics, parts, x)


def _backward(segment: Segment, passes: int, kept: Any, gradients: Any) -> tuple[PyTree, None, Any]:
    params, statistics, parts, x = kept
    dy = gradients[0]
    to_parts = jax.vjp(combined, parts)[1]

    def total(pull: Callable[..., tuple[PyTree, Any]], dstatistics: PyTree, like: PyTree) -> Any:
        """Sum over the micro-batches of the first result of `pull`, and all of the second."""

        def add(so_far: PyTree, piece: Any) -> Any:
            one, other = pull(*piece)
            return jax.tree.map(jnp.add, so_far, one), other

        zeros = jax.tree.map(jnp.zeros_like, like)
        return jax.lax.scan(add, zeros, (x, dy, *to_parts(dstatistics)))

    def to_statistics(x: jax.Array, dy: jax.Array, dparts: PyTree) -> Any:
        pull = jax.vjp(lambda s: segment(params, s, x), statistics)[1]
        return pull((dy, dparts))[0], None

    def to_inputs(x: jax.Array, dy: jax.Array, dparts: PyTree) -> Any:
        pull = jax.vjp(lambda p, x: segment(p, statistics, x), params, x)[1]
        return pull((dy, dparts))

    dstatistics = jax.lax.fori_loop(
        0,
        passes,
        lambda _, d: total(to_statistics, d, statistics)[0],
        jax.tree.map(jnp.zeros_like, statistics),
    )
    dparams, dx = total(to_inputs, dstatistics, params)
    return dparams, None, dx


in_micro_batches.defvjp(_forward, _backward)


def combined(parts: PyTree) -> PyTree:
    """Mean and biased variance of everything, from those of parts of equal size: [K,C] -> [C].

    The variance is that within the parts plus that of their means (Chan et al., 1979), which loses no digits.
    """

    def one(norm: PyTree) -> PyTree:
        mean = norm["mean"].mean(0)
        return {"mean": mean, "var": (norm["var"] + jnp.square(norm["mean"] - mean)).mean(0)}

    return jax.tree.map(one, parts, is_leaf=lambda tree: "mean" in tree)


def split(x: jax.Array, pieces: int, block: int = 1) -> jax.Array:
    """x[N,...] -> [pieces, N / pieces, ...]; blocks of rows are dealt out in turn.

    Neighbours go to different pieces, so each piece has rows of each device, and none has to travel.
    """
    x = x.reshape(-1, pieces, block, *x.shape[1:])
    return jnp.moveaxis(x, 1, 0).reshape(pieces, -1, *x.shape[3:])


def join(x: jax.Array, block: int = 1) -> jax.Array:
    """Undoes `split`: x[pieces, n, ...] -> [N,...]."""
    pieces = x.shape[0]
    x = x.reshape(pieces, -1, block, *x.shape[2:])
    return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[3:])
