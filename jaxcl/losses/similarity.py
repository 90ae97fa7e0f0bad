"""Similarity learning: losses on the scores of pairs, from one target similarity.

A target is a real number for a pair, larger for the more similar, NaN where it is not known: the depth of the common ancestor
in a label tree (`target_similarity`), or numbers that people gave. Whatever is not known adds 0 and is not counted. Three
questions can be asked of the scores:

* regression: is the score the target? (`regression`)
* classification: does the score, as logits, tell the grade of the target? (`binary`, `ordinal`, `multi_class`, `multi_label`)
* ranking: are the scores of a row in the order of its targets? (`ordered_triples`, `list_net`, `smooth_ndcg`)

The functions give a price for each pair, or for each row, in at least float32; which mean is taken of them is the caller's.
What compares all pairs of a batch need not make them at once: `jaxcl.losses.anchors.over_anchors` takes some rows at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from jaxcl.losses.anchors import check_choice

Regression = Literal["mse", "huber"]
Order = Literal["hinge", "softplus"]


def target_similarity(
    labels: jax.Array, others: jax.Array, by_depth: Sequence[float] = ()
) -> jax.Array:
    """How similar the images of two sets are by their labels: the depth of their lowest common ancestor.

    Args:
        labels: ``int[N, L]``, coarse to fine, in which labels that are equal at a level are equal at all
            coarser ones (`jaxcl.data.by_path`); negative for missing.
        others: ``int[M, L]``.
        by_depth: the similarity of pairs that agree at 0, 1, ..., L levels, nowhere falling; () for the share of levels.

    Returns:
        ``float32[N, M]``; NaN where an image has no label at the coarsest level. Below a missing label
        nothing is known to agree.

    Raises:
        ValueError: there are no levels, or `by_depth` does not fit them, falls somewhere or is one number only.
    """
    steps = depth_similarities(labels.shape[-1], by_depth)
    return jnp.where(
        (labels[:, None, 0] < 0) | (others[None, :, 0] < 0),
        jnp.nan,
        jnp.asarray(steps, jnp.float32)[common_depth(labels, others)],
    )


def common_depth(labels: jax.Array, others: jax.Array) -> jax.Array:
    """Levels at which labels ``int[N, L]`` and ``int[M, L]`` agree: ``i32[N, M]``; see `target_similarity`."""
    depth = jnp.zeros((len(labels), len(others)), jnp.int32)
    for level in range(labels.shape[1]):
        mine, theirs = labels[:, None, level], others[None, :, level]
        depth += ((mine == theirs) & (mine >= 0)).astype(jnp.int32)
    return depth


def depth_similarities(levels: int, by_depth: Sequence[float] = ()) -> tuple[float, ...]:
    """The similarity of pairs that agree at 0, 1, ..., L levels; see `target_similarity`, also for the errors."""
    if not levels:
        raise ValueError("target_similarity: the images have no labels to be similar by")
    if not by_depth:
        return tuple(depth / levels for depth in range(levels + 1))
    if len(by_depth) != levels + 1:
        raise ValueError(
            f"by_depth={tuple(by_depth)}: the labels have {levels} level(s); expected {levels + 1} similarities, of pairs"
            f" that agree at 0 to {levels} levels"
        )
    if any(b < a for a, b in itertools.pairwise(by_depth)) or by_depth[0] == by_depth[-1]:
        raise ValueError(
            f"by_depth={tuple(by_depth)}: expected numbers that nowhere fall, and rise somewhere: who agrees deeper is not"
            " less similar"
        )
    return tuple(by_depth)


def grade(target: jax.Array, edges: Sequence[float]) -> jax.Array:
    """How many of the ascending edges a target reaches: ``i32[...]``, -1 where it is not known.

    Raises:
        ValueError: edges that do not ascend.
    """
    check_edges(edges)
    reached = jnp.sum(target[..., None] >= jnp.asarray(edges, target.dtype), axis=-1)
    return jnp.where(jnp.isnan(target), -1, reached).astype(jnp.int32)


def check_edges(edges: Sequence[float]) -> None:
    """Refuses edges between grades that are none, or do not ascend.

    Raises:
        ValueError: says so.
    """
    if not edges or any(b <= a for a, b in itertools.pairwise(edges)):
        raise ValueError(f"edges={tuple(edges)}: expected one or more numbers that ascend")


def edges_between(similarities: Sequence[float]) -> tuple[float, ...]:
    """The edges for `grade` that lie half-way between the different values of `similarities`."""
    values = sorted(set(similarities))
    return tuple((a + b) / 2 for a, b in itertools.pairwise(values))


# Regression


def regression(
    scores: jax.Array, target: jax.Array, kind: Regression = "mse", delta: float = 0.1
) -> jax.Array:
    """The price of each pair whose score should be its target.

    Args:
        scores: ``float[...]``.
        target: ``float[...]``, NaN where it is not known.
        kind: "mse", ``(s - t)^2``; or "huber", ``(s - t)^2 / 2`` up to a difference of delta, and
            ``delta (|s - t| - delta / 2)`` beyond, for targets with outliers.
        delta: of "huber".

    Raises:
        ValueError: an unknown kind, or a delta that is not above 0.
    """
    check_choice("regression", "kind", kind, get_args(Regression))
    if not delta > 0:
        raise ValueError(f"delta={delta}: expected a number above 0")
    known = ~jnp.isnan(target)
    gap = jnp.where(known, _float(scores) - jnp.where(known, target, 0), 0)
    if kind == "mse":
        return jnp.square(gap)
    near = jnp.clip(jnp.abs(gap), 0, delta)
    return near * (jnp.abs(gap) - near / 2)


# Classification


def binary(logits: jax.Array, similar: jax.Array) -> jax.Array:
    """Binary cross-entropy of each pair's logit ``[...]``.

    Args:
        logits: ``float[...]``: log of the odds that the pair is similar.
        similar: ``float[...]`` in [0, 1], the probability that it is; NaN where it is not known.
    """
    known = ~jnp.isnan(similar)
    logits = jnp.where(known, _float(logits), 0)
    price = jax.nn.softplus(logits) - logits * jnp.where(known, similar, 0)
    return jnp.where(known, price, 0)


def ordinal(logits: jax.Array, grades: jax.Array) -> jax.Array:
    """Cumulative-link cross-entropy of each pair's grade.

    K - 1 questions, whether the grade is above 0, above 1, ..., each with its logit, as in proportional odds (McCullagh,
    1980) when the logits are one score minus ascending thresholds. A wrong grade costs the more the farther it is off.

    Args:
        logits: ``float[..., K - 1]``: of "the grade is above k".
        grades: ``int[...]``, 0 to K - 1; -1 where it is not known.

    Returns:
        ``float[...]``, the sum over the questions.
    """
    above = grades[..., None] > jnp.arange(logits.shape[-1])
    similar = jnp.where(grades[..., None] < 0, jnp.nan, above.astype(jnp.float32))
    return jnp.sum(binary(logits, similar), axis=-1)


def multi_class(logits: jax.Array, grades: jax.Array) -> jax.Array:
    """Cross-entropy ``[...]`` of logits ``float[..., K]`` and grades ``int[...]``, -1 where not known; grades have no order here."""
    log_p = jax.nn.log_softmax(_float(logits), axis=-1)
    own = jnp.take_along_axis(log_p, jnp.maximum(grades, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(grades < 0, 0, -own)


def multi_label(logits: jax.Array, similar: jax.Array) -> jax.Array:
    """Binary cross-entropy of several labels of each pair: are they similar in this respect, and in that?

    Args:
        logits: ``float[..., K]``, one for each respect.
        similar: ``float[..., K]`` in [0, 1]; NaN where a pair is not known in a respect.

    Returns:
        ``float[...]``, the mean over the respects that are known; 0 where none is.
    """
    count = jnp.sum(~jnp.isnan(similar), axis=-1)
    return jnp.sum(binary(logits, similar), axis=-1) / jnp.maximum(count, 1)


# Ranking


def ranked(target: jax.Array) -> jax.Array:
    """Which rows of targets ``float[..., M]`` have an order to be learned, two different known targets: ``bool[...]``."""
    known = ~jnp.isnan(target)
    highest = jnp.max(jnp.where(known, target, -jnp.inf), axis=-1)
    lowest = jnp.min(jnp.where(known, target, jnp.inf), axis=-1)
    return highest > lowest


def ordered_triples(
    scores: jax.Array, target: jax.Array, kind: Order = "softplus", margin: float = 0.2
) -> jax.Array:
    """The price of a row's order, by its triples: the row's own image, and two others of which one is more similar.

    The mean, over all pairs (j, k) of a row with ``t[j] > t[k]``, of

    * "hinge": ``max(0, margin - (s[j] - s[k]))``, the triplet loss on scores;
    * "softplus": ``log(1 + exp(-(s[j] - s[k])))``, minus the log-probability that j stands before k
      (BPR: Rendle et al., UAI 2009; RankNet: Burges et al., ICML 2005).

    It takes time and memory ``M^2`` a row.

    Args:
        scores: ``float[..., M]``.
        target: ``float[..., M]``, NaN where it is not known.
        kind: "hinge" or "softplus".
        margin: of the hinge.

    Returns:
        ``float[...]``; 0 for a row without order.

    Raises:
        ValueError: an unknown kind.
    """
    check_choice("ordered_triples", "kind", kind, get_args(Order))
    scores = _float(scores)
    above = target[..., :, None] > target[..., None, :]  # false with NaN
    lead = jnp.where(above, scores[..., :, None] - scores[..., None, :], 0)
    price = jax.nn.relu(margin - lead) if kind == "hinge" else jax.nn.softplus(-lead)
    count = jnp.sum(above, axis=(-2, -1))
    return jnp.sum(jnp.where(above, price, 0), axis=(-2, -1)) / jnp.maximum(count, 1)


def list_net(scores: jax.Array, target: jax.Array, sharpness: float = 5.0) -> jax.Array:
    """The price of a row as a list: the divergence of two distributions over its items (ListNet: Cao et al., ICML 2007).

    ``KL(softmax(sharpness * t) || softmax(s))``, over the known items: the cross-entropy of the paper without its
    least possible value, so that a perfect list costs 0. Linear in the row.

    Args:
        scores: ``float[..., M]``.
        target: ``float[..., M]``, NaN where it is not known.
        sharpness: of the targets; the higher, the more the most similar count alone.

    Returns:
        ``float[...]``; 0 for a row without order.
    """
    some = ranked(target)
    known = ~jnp.isnan(target) & some[..., None]
    scores = _float(scores)
    wanted = _log_softmax_where(known, sharpness * jnp.where(known, target, 0).astype(scores.dtype))
    found = _log_softmax_where(known, scores)
    return jnp.sum(jnp.where(known, jnp.exp(wanted) * (wanted - found), 0), axis=-1)


def smooth_ndcg(scores: jax.Array, target: jax.Array) -> jax.Array:
    """1 - NDCG of a row with ranks that have a gradient (ApproxNDCG: Qin, Liu and Li, Information Retrieval 2010).

    The rank of item j is ``1 + sum over k of sigmoid(s[k] - s[j])``; its gain is its target above the row's lowest, discounted
    by ``log2(1 + rank)``. Multiply the scores to sharpen the ranks. It takes time and memory ``M^2`` a row.

    Args:
        scores: ``float[..., M]``.
        target: ``float[..., M]``, NaN where it is not known.

    Returns:
        ``float[...]`` in [0, 1]; 0 for a row without order.
    """
    some = ranked(target)
    known = ~jnp.isnan(target) & some[..., None]
    scores = _float(scores)
    lowest = jnp.min(jnp.where(known, target, jnp.inf), axis=-1, keepdims=True)
    gain = jnp.where(known, target - lowest, 0).astype(scores.dtype)
    size = scores.shape[-1]
    others = known[..., None, :] & ~jnp.eye(size, dtype=bool)
    before = jax.nn.sigmoid(scores[..., None, :] - scores[..., :, None])
    rank = 1 + jnp.sum(jnp.where(others, before, 0), axis=-1)
    found = jnp.sum(gain / jnp.log2(1 + rank), axis=-1)
    discount = 1 / jnp.log2(2 + jnp.arange(size, dtype=scores.dtype))
    best = jnp.sum(jnp.flip(jnp.sort(gain, axis=-1), axis=-1) * discount, axis=-1)
    return jnp.where(some, 1 - found / jnp.where(some, best, 1), 0)


def _log_softmax_where(known: jax.Array, x: jax.Array) -> jax.Array:
    """The log-softmax over the known items; 0 elsewhere, and finite everywhere."""
    top = lax.stop_gradient(jnp.max(jnp.where(known, x, -jnp.inf), axis=-1, keepdims=True))
    x = jnp.where(known, x - jnp.where(jnp.isfinite(top), top, 0), 0)
    total = jnp.sum(jnp.where(known, jnp.exp(x), 0), axis=-1, keepdims=True)
    return jnp.where(known, x - jnp.log(jnp.where(total > 0, total, 1)), 0)


def _float(x: jax.Array) -> jax.Array:
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
