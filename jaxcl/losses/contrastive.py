"""NT-Xent, SupCon and InfoNCE: an anchor's positives in a softmax over what it is held against.

The first two hold every view of the batch against every other, InfoNCE queries against keys.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcl.losses import nce
from jaxcl.losses.spread import whole

Reduction = Literal["mean", "mean_valid"]

_EPS = 1e-12


def normalize(z: jax.Array) -> jax.Array:
    """L2-normalises the last axis in at least float32: ``z / max(|z|, 1e-12)``.

    A row of norm up to 1e-12 has no direction. It stays (as good as) zero, and gets no gradient:
    the derivative of the formula, 1e12 times what arrives, would drown every other row's.
    """
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    square = jnp.sum(z * z, axis=-1, keepdims=True)
    dead = square <= _EPS**2
    unit = z / jnp.sqrt(jnp.where(dead, 1, square))
    return jnp.where(dead, lax.stop_gradient(z) / _EPS, unit)


def nt_xent(
    z: jax.Array,
    temperature: float | jax.Array = 0.1,
    *,
    precision: Any = "highest",
    impl: nce.Impl = "auto",
    mesh: nce.AnyMesh | None = None,
    kernel: nce.Kernel = "auto",
) -> jax.Array:
    """Normalised temperature-scaled cross-entropy (Chen et al., 2020, equation 1).

    Every view is an anchor; its positives are the other views of its image, its denominator is all
    rows but itself. The result is the mean over the ``B * V`` anchors, and over the positives of
    each when V > 2 (all of them stay in the denominator, as in SupCon). The authors' code returns
    twice this value for two views.

    Args:
        z: ``float[B, V, D]``, batch-major; normalised here, in at least float32.
        temperature: divides the cosines.
        precision: of the similarity product, as in `jax.numpy.matmul`.
        impl: "dense", "tiled" or "ring", the same numbers in different memory and time
            (`jaxcl.losses.nce`); "auto" chooses.
        mesh: the devices over whose axis "data" the batch is sharded; None takes the mesh set by
            `jax.set_mesh`, if any. Large sharded batches need it: without, tiles, which "auto" takes where
            one device would, make every device do all the work.
        kernel: what walks over the tiles of "tiled" and "ring": "xla", or "pallas" for TPU, with which
            "auto" takes one of the two; "auto" is "xla" unless `jaxcl.losses.nce.using` says otherwise.

    Returns:
        A scalar in at least float32. An anchor without positives (V = 1) adds 0.
    """
    batch, views, features = _check_views("nt_xent", z)
    scale = inverse_temperature(temperature, z.dtype)
    unit = normalize(z)
    if views == 1:
        return jnp.zeros((), unit.dtype)
    stats = nce.row_stats(
        # [B, V] -> [B * V] keeps the batch axis outermost, and with it its sharding over devices.
        unit.reshape(-1, features),
        None,
        nce.Relation(every_other_row, block=views),
        {"index": jnp.arange(batch * views, dtype=jnp.int32)},
        scale=scale,
        bound=scale if isinstance(scale, float) else None,
        want=("lse",),
        precision=precision,
        impl=impl,
        mesh=mesh,
        kernel=kernel,
    )
    # The positives are known without a search: the other views, V - 1 for each anchor.
    others = unit[:, ::-1] if views == 2 else jnp.sum(unit, axis=1, keepdims=True) - unit
    pull = scale * jnp.sum(unit * others, axis=2) / (views - 1)
    return jnp.mean(stats["lse"].reshape(batch, views) - pull)


def sup_con(
    z: jax.Array,
    labels: jax.Array,
    temperature: float | jax.Array = 0.1,
    variant: Literal["out", "in"] = "out",
    scale: float = 1.0,
    *,
    reduction: Reduction = "mean",
    precision: Any = "highest",
    impl: nce.Impl = "auto",
    mesh: nce.AnyMesh | None = None,
    kernel: nce.Kernel = "auto",
) -> jax.Array:
    """Supervised contrastive loss (Khosla et al., 2020, equations 2 and 3).

    The positives of an anchor are all other rows with its label, among them its own other views.
    ``"out"`` averages the log-probabilities of the positives, ``"in"`` takes the logarithm of their
    average probability. With labels all different both are `nt_xent` for two views.

    Args:
        z: ``float[B, V, D]``, batch-major; normalised here, in at least float32.
        labels: ``int[B]``; equal means same class. A negative label is unknown: such an image
            agrees with nothing but its own views.
        temperature: divides the cosines.
        variant: "out" or "in".
        scale: multiplies the loss. The authors' PyTorch code uses temperature / 0.07, Google's the
            temperature.
        reduction: "mean" over all ``B * V`` anchors, in which one without positives adds 0 (the
            authors' code), or "mean_valid", over the anchors that have positives. The same where
            every image has two views.
        precision: of the similarity product, as in `jax.numpy.matmul`.
        impl: "dense", "tiled" or "ring", the same numbers in different memory and time
            (`jaxcl.losses.nce`); "auto" chooses.
        mesh: the devices over whose axis "data" the batch is sharded; None takes the mesh set by
            `jax.set_mesh`, if any. Large sharded batches need it: without, tiles, which "auto" takes where
            one device would, make every device do all the work.
        kernel: what walks over the tiles of "tiled" and "ring": "xla", or "pallas" for TPU, with which
            "auto" takes one of the two; "auto" is "xla" unless `jaxcl.losses.nce.using` says otherwise.

    Returns:
        A scalar in at least float32; 0 if no anchor has positives.

    Raises:
        ValueError: an unknown choice, or arrays that do not fit.
    """
    batch, views, features = _check_views("sup_con", z)
    _check_reduction("sup_con", reduction)
    if variant not in ("out", "in"):
        raise ValueError(f'sup_con: variant must be "out" or "in", got {variant!r}.')
    if labels.shape != (batch,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"sup_con: labels must be int[{batch}], one for each image of z{list(z.shape)}; "
            f"got {labels.dtype}{list(labels.shape)}."
        )
    scale_of_cosines = inverse_temperature(temperature, z.dtype)
    # An unknown label becomes one that no other image has.
    labels = labels.astype(jnp.int32)
    own = -1 - jnp.arange(batch, dtype=jnp.int32)
    group = jnp.broadcast_to(jnp.where(labels < 0, own, labels)[:, None], (batch, views))
    pull_stat: nce.Stat = "positive_sum" if variant == "out" else "positive_lse"
    stats = nce.row_stats(
        normalize(z).reshape(-1, features),
        None,
        nce.Relation(same_group),
        {"index": jnp.arange(batch * views, dtype=jnp.int32), "group": group.reshape(-1)},
        scale=scale_of_cosines,
        bound=scale_of_cosines if isinstance(scale_of_cosines, float) else None,
        want=("lse", pull_stat, "positives"),
        precision=precision,
        impl=impl,
        mesh=mesh,
        kernel=kernel,
    )
    return scale * reduced(*push_and_pull(stats, variant), reduction)


def info_nce(
    q: jax.Array,
    k: jax.Array,
    queue: jax.Array | None = None,
    temperature: float | jax.Array = 0.07,
    queue_valid: jax.Array | None = None,
    *,
    precision: Any = "highest",
    impl: nce.Impl = "auto",
    mesh: nce.AnyMesh | None = None,
    kernel: nce.Kernel = "auto",
) -> jax.Array:
    """InfoNCE of queries, each with one positive key (van den Oord et al., 2018; MoCo, equation 1).

    The negatives of a query are the rows of the queue, or without one the keys of all other
    queries, as in MoCo v3 and the end-to-end mechanism. The gradient flows into queries and keys,
    never into the queue; `jax.lax.stop_gradient` around the keys also saves its computation.

    Args:
        q: ``float[N, D]`` queries, normalised here, in at least float32.
        k: ``float[N, D]`` their positive keys, normalised here.
        queue: ``float[K, D]`` negatives, normalised here; with a mesh, the same on every device.
        temperature: divides the cosines. MoCo v3 multiplies the result by twice this.
        queue_valid: ``bool[K]``, the rows of the queue that are filled; None: all.
        precision: of the similarity product, as in `jax.numpy.matmul`.
        impl: "dense" or "tiled", without a queue "ring" too (`jaxcl.losses.nce`); "auto" chooses.
        mesh: the devices over whose axis "data" the queries and keys are sharded; None takes the
            mesh set by `jax.set_mesh`, if any.
        kernel: what walks over the tiles of "tiled" and "ring": "xla", or "pallas" for TPU, with which
            "auto" takes one of the two; "auto" is "xla" unless `jaxcl.losses.nce.using` says otherwise.

    Returns:
        A scalar in at least float32, the mean over the queries. A query without negatives adds 0.
    """
    if q.ndim != 2 or q.shape != k.shape or 0 in q.shape:
        raise ValueError(
            f"info_nce: q and k must both be [queries, features], none of them 0; "
            f"got {list(q.shape)} and {list(k.shape)}."
        )
    if queue is None and queue_valid is not None:
        raise ValueError("info_nce: queue_valid is given, but no queue.")
    if queue is not None and (queue.ndim != 2 or queue.shape[1] != q.shape[1]):
        raise ValueError(
            f"info_nce: the queue must be [keys, {q.shape[1]}], as wide as q; got {list(queue.shape)}."
        )
    if (
        queue is not None
        and queue_valid is not None
        and (queue_valid.shape != queue.shape[:1] or queue_valid.dtype != bool)
    ):
        raise ValueError(
            f"info_nce: queue_valid must be bool[{len(queue)}]; "
            f"got {queue_valid.dtype}{list(queue_valid.shape)}."
        )
    scale = inverse_temperature(temperature, q.dtype)
    q, k = normalize(q), normalize(k)
    if queue is None:
        index = {"index": jnp.arange(len(q), dtype=jnp.int32)}
        keys, relation, query_meta, key_meta = k, nce.Relation(every_other_row), index, index
    else:
        valid = jnp.ones(len(queue), bool) if queue_valid is None else queue_valid
        keys, relation = normalize(lax.stop_gradient(queue)), nce.Relation(every_valid_key)
        query_meta, key_meta = {}, {"valid": valid}
    stats = nce.row_stats(
        q,
        keys,
        relation,
        query_meta,
        key_meta,
        scale=scale,
        bound=scale if isinstance(scale, float) else None,
        want=("lse",),
        precision=precision,
        impl=impl,
        mesh=mesh,
        keys_everywhere=queue is not None,
        kernel=kernel,
    )
    # log(exp(positive) + sum of negatives) - positive, without cancellation.
    return jnp.mean(jax.nn.softplus(stats["lse"] - scale * jnp.sum(q * k, axis=1)))


def nt_xent_metrics(
    z: jax.Array,
    temperature: float | jax.Array = 0.1,
    *,
    precision: Any = "highest",
    anchors: int = 1024,
) -> dict[str, jax.Array]:
    """What the authors of SimCLR log beside NT-Xent: how well view 0 finds its partner in view 1.

    Each anchor of view 0 looks among view 1 of all ``B`` images; its own image's is the right one.
    No gradient flows.

    Args:
        z: ``float[B, V, D]`` with V >= 2; only views 0 and 1 are used.
        temperature: divides the cosines.
        precision: of the similarity product, as in `jax.numpy.matmul`.
        anchors: from twice as many images on, only every n-th is an anchor, so that at least this
            many are; the candidates remain all images. It keeps memory and time linear in B.

    Returns:
        Scalars: ``contrastive_top1`` and ``contrastive_top5``, shares of anchors whose partner is
        the nearest or among the five nearest (between equals the lower index is nearer), and
        ``contrastive_entropy``, the mean entropy of the softmax over the candidates, in nats.
    """
    batch, views, _ = _check_views("nt_xent_metrics", z)
    if views < 2:
        raise ValueError(f"nt_xent_metrics: two views are needed, got z{list(z.shape)}.")
    scale = lax.stop_gradient(inverse_temperature(temperature, z.dtype))
    every = max(1, batch // anchors)
    unit = whole(normalize(lax.stop_gradient(z)))
    logits = scale * jnp.matmul(unit[::every, 0], unit[:, 1].T, precision=precision)
    own = jnp.arange(0, batch, every)[:, None]
    candidate = jnp.arange(batch)[None, :]
    right = jnp.sum(jnp.where(candidate == own, logits, 0), axis=1, keepdims=True)
    nearer = (logits > right) | ((logits == right) & (candidate < own))
    rank = jnp.sum(nearer, axis=1)
    log_p = jax.nn.log_softmax(logits, axis=1)
    return {
        "contrastive_top1": jnp.mean(rank < 1, dtype=logits.dtype),
        "contrastive_top5": jnp.mean(rank < 5, dtype=logits.dtype),
        "contrastive_entropy": -jnp.mean(jnp.sum(jnp.exp(log_p) * log_p, axis=1)),
    }


def every_other_row(queries: nce.Meta, keys: nce.Meta) -> nce.Pairs:
    """Counts every row but the anchor itself; names no positives."""
    other = queries["index"] != keys["index"]
    return nce.Pairs(counted=other, positive=jnp.zeros_like(other))


def every_valid_key(queries: nce.Meta, keys: nce.Meta) -> nce.Pairs:
    """Counts the keys that are valid; names no positives."""
    del queries
    return nce.Pairs(counted=keys["valid"], positive=jnp.zeros_like(keys["valid"]))


def same_group(queries: nce.Meta, keys: nce.Meta) -> nce.Pairs:
    """Counts every row but the anchor itself; rows of the anchor's group are positive."""
    other = queries["index"] != keys["index"]
    return nce.Pairs(counted=other, positive=other & (queries["group"] == keys["group"]))


def push_and_pull(stats: nce.Stats, variant: str) -> tuple[jax.Array, jax.Array]:
    """The loss of each anchor from its row statistics, and whether it has one.

    It has none, and the loss is 0, without positives, or where nothing is in its denominator.

    Args:
        stats: "lse", "positives", and "positive_sum" ("out") or "positive_lse" ("in").
        variant: "out" or "in".
    """
    some = (stats["positives"] > 0) & (stats["lse"] != -math.inf)
    count = jnp.where(some, stats["positives"], 1)
    if variant == "out":
        pull = stats["positive_sum"] / count
    else:
        pull = stats["positive_lse"] - jnp.log(count)
    # Rows without positives may hold -inf on both sides: choose before subtracting.
    return jnp.where(some, stats["lse"], 0) - jnp.where(some, pull, 0), some


def reduced(loss: jax.Array, some: jax.Array, reduction: Reduction) -> jax.Array:
    """The mean of the losses[N] of all anchors, or of those that have one (``"mean_valid"``)."""
    if reduction == "mean":
        return jnp.mean(loss)
    return jnp.sum(loss) / jnp.maximum(jnp.sum(some), 1).astype(loss.dtype)


def _check_reduction(name: str, reduction: str) -> None:
    if reduction not in get_args(Reduction):
        raise ValueError(f'{name}: reduction must be "mean" or "mean_valid", got {reduction!r}.')


def inverse_temperature(
    temperature: float | jax.Array, dtype: jax.typing.DTypeLike
) -> float | jax.Array:
    """1 / temperature in at least float32, refusing a number that cannot divide a cosine.

    Args:
        temperature: a number, or an array, whose values are looked at unless it is traced.
        dtype: of the embeddings as they are given. What rounding to it does to a number of 1 is the
            lowest temperature: 0.0039 in bfloat16, 4.9e-4 in float16, 6e-8 in float32.

    Raises:
        ValueError: not above that.
    """
    if not isinstance(temperature, jax.core.Tracer):
        rounding = float(jnp.finfo(dtype).eps) / 2
        values = np.asarray(temperature, np.float64)
        if not np.all((values > 0) & np.isfinite(values)):
            raise ValueError(f"temperature must be a positive number, got {temperature}.")
        if not np.all(values > rounding):
            raise ValueError(
                f"temperature {temperature} is not above {rounding:.1e}, what rounding to {jnp.dtype(dtype)} "
                "does to an embedding of length 1: logits would be noise, or their gradient overflow; use a "
                "higher temperature, or embeddings in a wider type."
            )
    if isinstance(temperature, (int, float, np.number)):
        return 1 / float(temperature)
    return 1 / temperature.astype(jnp.promote_types(temperature.dtype, jnp.float32))


def _check_views(name: str, z: jax.Array) -> tuple[int, int, int]:
    """The shape of z[B, V, D], or a ValueError that names what is wrong with it."""
    if z.ndim != 3 or 0 in z.shape:
        raise ValueError(
            f"{name}: z must be [batch, views, features], none of them 0; got {list(z.shape)}."
        )
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise ValueError(f"{name}: z must be of a floating type, got {z.dtype}.")
    batch, views, features = z.shape
    return batch, views, features
