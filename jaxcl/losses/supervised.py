"""What supervision needs beyond `sup_con`: its other denominators and anchors, sets of labels, a queue, and cross-entropy.

The contrastive losses here are `sup_con` with another answer to one of its questions: which rows are anchors, what stands in
their denominators, how much a pair of rows agrees, and where the other rows come from.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from jaxcl.losses import nce
from jaxcl.losses.anchors import check_choice
from jaxcl.losses.contrastive import (
    Reduction,
    _check_views,
    inverse_temperature,
    normalize,
    push_and_pull,
    reduced,
    same_group,
    sup_con,
)
from jaxcl.losses.spread import whole

Variant = Literal["out", "in"]
Denominator = Literal["all", "one_positive", "only_negatives"]
Contrast = Literal["all", "one"]


def sup_con_modes(
    z: jax.Array,
    labels: jax.Array,
    temperature: float | jax.Array = 0.1,
    variant: Variant = "out",
    scale: float | jax.Array = 1.0,
    *,
    denominator: Denominator = "all",
    contrast: Contrast = "all",
    positives_cap: int | None = None,
    reduction: Reduction = "mean",
    precision: Any = "highest",
    impl: nce.Impl = "auto",
    mesh: nce.AnyMesh | None = None,
    kernel: nce.Kernel = "auto",
) -> jax.Array:
    """`sup_con` with the choices that the authors' code has (Khosla et al., 2020, Google's `supcon`).

    With s the cosines over the temperature, P the positives and Q the negatives (rows of another
    label) of an anchor, the probability of its positive p is exp(s_p) over

    * ``"all"``: the sum of exp(s) over P and Q, the paper's;
    * ``"one_positive"``: exp(s_p) and the sum over Q; the other positives do not compete with p;
    * ``"only_negatives"``: the sum over Q alone, so that it is no probability and the loss may be
      below 0.

    ``"out"`` is the mean over P of -log, ``"in"`` -log of the mean over P, and never above it.

    Args:
        z: ``float[B, V, D]``, batch-major; normalised here, in at least float32.
        labels: ``int[B]``; a negative label is unknown and agrees with nothing but the image's own
            views.
        temperature: divides the cosines.
        variant: "out" or "in".
        scale: multiplies the loss: temperature / 0.07 in the authors' PyTorch code, temperature in
            Google's.
        denominator: "all", "one_positive" or "only_negatives".
        contrast: which rows are anchors: "all", or the first view of each image ("one"). The others
            are positives and negatives in either case.
        positives_cap: how many rows, other than its own views, are an anchor's positives at most: a
            multiple of V, as an image comes with all its views. What is over the cap is neither
            positive nor negative. An image takes the next ones of its class in the batch, and the
            last of them the first; Google's code takes the first ones for all. None for no cap.
        reduction: "mean" over the anchors, to which one without positives adds 0, and so does one
            without negatives where nothing else is in the denominator; "mean_valid" leaves them out.
        precision: of the similarity product, as in `jax.numpy.matmul`.
        impl: as in `sup_con`. "one_positive" makes the matrix of similarities in any case, with the
            memory that it takes: what it sums over the positives depends on the sum over Q.
        mesh: as in `sup_con`.
        kernel: as in `sup_con`.

    Returns:
        A scalar in at least float32.

    Raises:
        ValueError: an unknown choice, a cap that is no multiple of V, or arrays that do not fit.
    """
    check_choice("sup_con_modes", "variant", variant, get_args(Variant))
    check_choice("sup_con_modes", "denominator", denominator, get_args(Denominator))
    check_choice("sup_con_modes", "contrast", contrast, get_args(Contrast))
    check_choice("sup_con_modes", "reduction", reduction, get_args(Reduction))
    if (denominator, contrast, positives_cap) == ("all", "all", None):
        form: dict[str, Any] = {"impl": impl, "mesh": mesh, "kernel": kernel}
        return scale * sup_con(
            z, labels, temperature, variant, reduction=reduction, precision=precision, **form
        )
    batch, views, features = _check_views("sup_con_modes", z)
    _check_labels("sup_con_modes", labels, batch)
    unit = normalize(z)
    rows = unit.reshape(-1, features)
    index = jnp.arange(batch * views, dtype=jnp.int32).reshape(batch, views)
    of_image = {"group": _groups(labels)}
    if positives_cap is not None:
        if positives_cap < 0 or positives_cap % views:
            raise ValueError(
                f"sup_con_modes: positives_cap={positives_cap} with {views} views: expected a multiple of "
                "them, 0 or more, or None."
            )
        of_image |= _turns(of_image["group"], positives_cap // views)
    by_view = {n: jnp.broadcast_to(x[:, None], (batch, views)) for n, x in of_image.items()}
    meta = {"index": index.reshape(-1)} | {n: x.reshape(-1) for n, x in by_view.items()}
    if contrast == "one":
        anchors, anchor_meta = unit[:, 0], {"index": index[:, 0], **of_image}
        keys: jax.Array | None = rows
        key_meta: nce.Meta | None = meta
    elif positives_cap is not None:
        # Whose positive an image is says nothing of its own positives: the relation has two sides.
        anchors, anchor_meta, keys, key_meta = rows, meta, rows, meta
    else:
        anchors, anchor_meta, keys, key_meta = rows, meta, None, None
    relation = {
        ("all", False): same_group,
        ("all", True): next_of_group,
        ("others", False): same_group_among_others,
        ("others", True): next_of_group_among_others,
    }["all" if denominator == "all" else "others", positives_cap is not None]
    sharpness = inverse_temperature(temperature, z.dtype)
    pull: nce.Stat = "positive_sum" if variant == "out" else "positive_lse"
    stats = nce.row_stats(
        anchors,
        keys,
        nce.Relation(relation),
        anchor_meta,
        key_meta,
        scale=sharpness,
        bound=sharpness if isinstance(sharpness, float) else None,
        want=("lse", "positives") if denominator == "one_positive" else ("lse", pull, "positives"),
        precision=precision,
        impl=impl,
        mesh=mesh,
        kernel=kernel,
    )
    if denominator == "one_positive":
        s = sharpness * jnp.matmul(anchors, whole(rows).T, precision=precision)
        pairs = relation(_as_rows(anchor_meta), _as_columns(whole(meta)))
        loss, some = _one_positive(s, pairs.positive, stats["lse"], stats["positives"], variant)
    else:
        loss, some = push_and_pull(stats, variant)
    return scale * reduced(loss, some, reduction)


def sup_con_memory(
    q: jax.Array,
    k: jax.Array,
    queue: jax.Array,
    labels: jax.Array,
    queue_labels: jax.Array,
    temperature: float | jax.Array = 0.1,
    variant: Variant = "out",
    scale: float | jax.Array = 1.0,
    *,
    queue_valid: jax.Array | None = None,
    in_batch: bool = True,
    precision: Any = "highest",
    impl: nce.Impl = "auto",
    mesh: nce.AnyMesh | None = None,
    kernel: nce.Kernel = "auto",
) -> jax.Array:
    """SupCon of queries against the keys of a momentum encoder and a queue of older ones.

    An anchor's positives are its own key and every key of its label, in the batch and in the queue;
    its denominator is all of them. With labels all unknown and ``in_batch=False`` it is MoCo's
    InfoNCE (He et al., 2020).

    Args:
        q: ``float[N, D]``; normalised here, in at least float32.
        k: ``float[N, D]``, the key of each query; normalised here, without gradient.
        queue: ``float[K, D]``, older keys; normalised here, without gradient.
        labels: ``int[N]`` of the queries and of their keys; a negative one is unknown.
        queue_labels: ``int[K]``.
        temperature: divides the cosines.
        variant: "out" or "in", as in `sup_con`.
        scale: multiplies the loss.
        queue_valid: ``bool[K]``, the slots that hold a key; None for all.
        in_batch: whether the keys of the other images of the batch take part too.
        precision: of the similarity product, as in `jax.numpy.matmul`.
        impl: as in `sup_con`.
        mesh: as in `sup_con`.
        kernel: as in `sup_con`.

    Returns:
        A scalar in at least float32, the mean over the queries.

    Raises:
        ValueError: an unknown variant, or arrays that do not fit.
    """
    check_choice("sup_con_memory", "variant", variant, get_args(Variant))
    count, slots = len(q), len(queue)
    if q.ndim != 2 or q.shape != k.shape or queue.ndim != 2 or q.shape[1] != queue.shape[1]:
        raise ValueError(
            "sup_con_memory: expected q and k of one shape [N, D] and queue[K, D]; got "
            f"{list(q.shape)}, {list(k.shape)} and {list(queue.shape)}."
        )
    _check_labels("sup_con_memory", labels, count)
    _check_labels("sup_con_memory", queue_labels, slots, "queue_labels")
    sharpness = inverse_temperature(temperature, q.dtype)
    q, k, queue = normalize(q), normalize(lax.stop_gradient(k)), lax.stop_gradient(queue)
    group = {"index": jnp.arange(count, dtype=jnp.int32), "group": _groups(labels)}
    valid = jnp.ones(slots, bool) if queue_valid is None else queue_valid
    pull: nce.Stat = "positive_sum" if variant == "out" else "positive_lse"
    form: dict[str, Any] = {
        "scale": sharpness,
        "bound": sharpness if isinstance(sharpness, float) else None,
        "want": ("lse", pull, "positives"),
        "precision": precision,
        "impl": impl,
        "mesh": mesh,
        "kernel": kernel,
    }
    # The own key is known without a search.
    own = sharpness * jnp.sum(q * k, axis=1)
    parts: list[nce.Stats] = [{"lse": own, pull: own, "positives": jnp.ones_like(own)}]
    if in_batch:
        parts.append(nce.row_stats(q, k, nce.Relation(same_group), group, group, **form))
    parts.append(
        nce.row_stats(
            q,
            normalize(queue),
            nce.Relation(same_group_of_valid),
            {"group": group["group"]},
            {"group": queue_labels.astype(jnp.int32), "valid": valid},
            keys_everywhere=True,
            **form,
        )
    )
    return scale * reduced(*push_and_pull(_joined(parts), variant), "mean")


def sup_con_overlap(
    z: jax.Array,
    labels: jax.Array,
    temperature: float | jax.Array = 0.1,
    variant: Variant = "out",
    scale: float | jax.Array = 1.0,
    *,
    reduction: Reduction = "mean",
    precision: Any = "highest",
    impl: nce.Impl = "auto",
    mesh: nce.AnyMesh | None = None,
    kernel: nce.Kernel = "auto",
) -> jax.Array:
    """SupCon of images that have several labels: a positive counts as much as its labels overlap.

    The weight of a pair of images is the Jaccard index of their sets of labels, |A and B| / |A or
    B|, and 1 between the views of one image. ``"out"`` is the weighted mean over the positives of
    -log of their probability, ``"in"`` -log of its weighted mean. With one label an image this is
    `sup_con`.

    Args:
        z: ``float[B, V, D]``, batch-major; normalised here, in at least float32.
        labels: ``int[B, L]``, up to L labels of each image, -1 for none. Two images share a label
            where a column is the same; a multi-hot matrix m is ``jnp.where(m, 0, -1)``.
        temperature: divides the cosines.
        variant: "out" or "in".
        scale: multiplies the loss.
        reduction: "mean" over all ``B * V`` anchors, to which one that overlaps with nothing adds 0;
            "mean_valid" leaves it out.
        precision: of the similarity product, as in `jax.numpy.matmul`.
        impl: as in `sup_con`.
        mesh: as in `sup_con`.
        kernel: as in `sup_con`.

    Returns:
        A scalar in at least float32.

    Raises:
        ValueError: an unknown choice, or arrays that do not fit.
    """
    check_choice("sup_con_overlap", "variant", variant, get_args(Variant))
    check_choice("sup_con_overlap", "reduction", reduction, get_args(Reduction))
    batch, views, features = _check_views("sup_con_overlap", z)
    if labels.ndim != 2 or len(labels) != batch or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"sup_con_overlap: labels must be int[{batch}, L], the labels of each image; got "
            f"{labels.dtype}{list(labels.shape)}."
        )
    rows = batch * views
    labels = jnp.repeat(labels.astype(jnp.int32), views, axis=0, total_repeat_length=rows)
    number = jnp.arange(rows, dtype=jnp.int32)
    sharpness = inverse_temperature(temperature, z.dtype)
    pull: nce.Stat = "positive_sum" if variant == "out" else "positive_lse"
    stats = nce.row_stats(
        normalize(z).reshape(-1, features),
        None,
        nce.Relation(overlapping),
        {
            "index": number,
            "image": number // views,
            "label": labels,
            "size": jnp.sum(labels >= 0, axis=1, dtype=jnp.int32),
        },
        scale=sharpness,
        bound=sharpness if isinstance(sharpness, float) else None,
        want=("lse", pull, "positives"),
        precision=precision,
        impl=impl,
        mesh=mesh,
        kernel=kernel,
    )
    return scale * reduced(*push_and_pull(stats, variant), reduction)


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy, the mean over the rows that have a label; 0 if none has.

    Args:
        logits: ``float[N, C]``.
        labels: ``int[N]`` in [0, C); a negative one is missing.
        smoothing: share of the target that is spread evenly over all classes (Szegedy et al., 2016).

    Returns:
        A scalar in at least float32.
    """
    _check_logits("cross_entropy", logits, labels)
    log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    right = jnp.take_along_axis(log_p, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
    loss = -(1 - smoothing) * right - smoothing * jnp.mean(log_p, axis=1)
    return _mean_where(labels >= 0, loss)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of the rows with a label whose largest logit is that label's; 0 if none has one.

    Arguments as for `cross_entropy`. No gradient flows.
    """
    _check_logits("accuracy", logits, labels)
    hit = jnp.argmax(logits, axis=1) == labels
    return _mean_where(labels >= 0, hit.astype(jnp.promote_types(logits.dtype, jnp.float32)))


def same_group_among_others(queries: nce.Meta, keys: nce.Meta) -> nce.Pairs:
    """Counts the rows of other groups only; rows of the anchor's group, but itself, are positive."""
    same = queries["group"] == keys["group"]
    return nce.Pairs(counted=~same, positive=same & (queries["index"] != keys["index"]))


def next_of_group(queries: nce.Meta, keys: nce.Meta) -> nce.Pairs:
    """Counts the anchor's positives and all rows of other groups; see `_turns`."""
    positive = _taken(queries, keys)
    return nce.Pairs(counted=positive | (queries["group"] != keys["group"]), positive=positive)


def next_of_group_among_others(queries: nce.Meta, keys: nce.Meta) -> nce.Pairs:
    """Counts the rows of other groups only; positive as in `next_of_group`."""
    return nce.Pairs(counted=queries["group"] != keys["group"], positive=_taken(queries, keys))


def _taken(queries: nce.Meta, keys: nce.Meta) -> jax.Array:
    """Rows of the anchor's group, but itself, whose image it takes: its own, or one of the next ones."""
    same = (queries["group"] == keys["group"]) & (queries["index"] != keys["index"])
    away = (keys["turn"] - queries["turn"]) % jnp.maximum(queries["size"], 1)  # 0 fills tiles up
    return same & (away <= queries["take"])


def same_group_of_valid(queries: nce.Meta, keys: nce.Meta) -> nce.Pairs:
    """Counts the keys that are valid; those of the anchor's group, if it is known, are positive."""
    same = (queries["group"] == keys["group"]) & (queries["group"] >= 0)
    return nce.Pairs(counted=keys["valid"], positive=keys["valid"] & same)


def overlapping(queries: nce.Meta, keys: nce.Meta) -> nce.Pairs:
    """Counts every row but the anchor itself; positive by the Jaccard index of the images' labels."""
    other = queries["index"] != keys["index"]
    columns = zip(queries["label"], keys["label"], strict=True)
    both = sum(((a == b) & (a >= 0)).astype(float) for a, b in columns)
    either = queries["size"] + keys["size"] - both
    weight = jnp.where(queries["image"] == keys["image"], 1, both / jnp.maximum(either, 1))
    return nce.Pairs(counted=other, positive=jnp.where(other, weight, 0))


def _joined(parts: list[nce.Stats]) -> nce.Stats:
    """Row statistics over the pairs of all parts, which are disjoint."""
    joined: nce.Stats = {}
    for name in parts[0]:
        values = jnp.stack([part[name] for part in parts])
        joined[name] = (jax.nn.logsumexp if name.endswith("lse") else jnp.sum)(values, axis=0)
    return joined


def _one_positive(
    s: jax.Array, positive: jax.Array, negatives: jax.Array, count: jax.Array, variant: str
) -> tuple[jax.Array, jax.Array]:
    """The loss of each anchor whose positives, s[N, M], each meet the negatives, their lse[N], alone; and whether it has one."""
    # -log(exp(s) / (exp(s) + exp(n))) = softplus(n - s); without negatives it is 0.
    alone = negatives == -math.inf
    price = jax.nn.softplus(jnp.where(alone, 0, negatives)[:, None] - s)
    some = (count > 0) & ~alone
    count = jnp.where(some, count, 1)
    if variant == "out":
        loss = jnp.sum(jnp.where(positive, price, 0), axis=1) / count
    else:
        seen = jnp.where(positive | ~some[:, None], -price, -math.inf)
        loss = jnp.log(count) - jax.nn.logsumexp(seen, axis=1)
    return jnp.where(some, loss, 0), some


def _groups(labels: jax.Array) -> jax.Array:
    """Labels i32[B] in which an unknown one has become one that no other image has."""
    labels = labels.astype(jnp.int32)
    return jnp.where(labels < 0, -1 - jnp.arange(len(labels), dtype=jnp.int32), labels)


def _turns(groups: jax.Array, take: int) -> dict[str, jax.Array]:
    """The place of each image among those of its group i32[B], how many they are, and how many each of them takes."""
    ordered = jnp.sort(groups)
    first = jnp.searchsorted(ordered, groups, side="left").astype(jnp.int32)
    end = jnp.searchsorted(ordered, groups, side="right").astype(jnp.int32)
    place = jnp.argsort(jnp.argsort(groups, stable=True)).astype(jnp.int32)
    return {"turn": place - first, "size": end - first, "take": jnp.full_like(first, take)}


def _as_rows(meta: nce.Meta) -> nce.Meta:
    return {name: value[:, None] for name, value in meta.items()}


def _as_columns(meta: nce.Meta) -> nce.Meta:
    return {name: value[None, :] for name, value in meta.items()}


def _mean_where(mask: jax.Array, values: jax.Array) -> jax.Array:
    """The mean of the values[N] under a mask, 0 of none."""
    total = jnp.sum(jnp.where(mask, values, 0))
    return total / jnp.maximum(jnp.sum(mask), 1).astype(values.dtype)


def _check_labels(function: str, labels: jax.Array, count: int, name: str = "labels") -> None:
    if labels.shape != (count,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"{function}: {name} must be int[{count}]; got {labels.dtype}{list(labels.shape)}."
        )


def _check_logits(function: str, logits: jax.Array, labels: jax.Array) -> None:
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(
            f"{function}: logits must be [rows, classes], neither of them 0; got {list(logits.shape)}."
        )
    _check_labels(function, labels, len(logits))
