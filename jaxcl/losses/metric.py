"""Losses of metric learning that are made of pairs, and of whole rows of pairs.

`margin_contrastive`, `hadsell`, `lifted_structure`, `circle` and `fast_ap` look at distances block by block
(`anchors`); `multi_similarity`, `nca` and `n_pairs` need log-sum-exps of inner products alone and run through the engine
(`nce`), in any of its forms. Memory is linear in the batch for all. Conventions are those of pytorch-metric-learning
where a paper leaves them open. Labels: equal means same class; a row of negative label, whose class is not known, is
neither an anchor nor a positive nor a negative.

`mined_pairs`, `lifted`, `circles`, `average_precision`, `mined_similarity`, `neighbours` and `pairs_of_classes` are these
losses with a count of what they were made of, for `jaxcl.methods`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from jaxcl.losses import mining as mining_lib
from jaxcl.losses import nce
from jaxcl.losses.anchors import (
    Reference,
    Sides,
    check_choice,
    held,
    image_numbers,
    mean_of,
    over_anchors,
    prepared,
    reference_rows,
    rows_of,
    sides,
)
from jaxcl.losses.distances import Distance
from jaxcl.losses.limits import check_numbers
from jaxcl.losses.mining import EPSILON, MINING_MARGINS, PAIR_MININGS, PairMining
from jaxcl.losses.triplets import REDUCTIONS, Reduction, same_label, same_label_of_valid

PyTree = Any
Metrics = dict[str, jax.Array]


# ---------------------------------------------------------------------------------------------------------------------
# Pairs, each by itself
# ---------------------------------------------------------------------------------------------------------------------


class PairPrice(Protocol):
    """What a pair costs; a frozen dataclass."""

    def positive(self, d: jax.Array) -> jax.Array:
        """Of a positive pair at distance d."""

    def negative(self, d: jax.Array) -> jax.Array:
        """Of a negative pair at distance d."""


@dataclasses.dataclass(frozen=True)
class Margins:
    """``relu(d - pos_margin)`` and ``relu(neg_margin - d)``."""

    pos_margin: float = 0.0
    neg_margin: float = 1.0

    def positive(self, d: jax.Array) -> jax.Array:
        """See `PairPrice`."""
        return jax.nn.relu(d - self.pos_margin)

    def negative(self, d: jax.Array) -> jax.Array:
        """See `PairPrice`."""
        return jax.nn.relu(self.neg_margin - d)


@dataclasses.dataclass(frozen=True)
class Squares:
    """``d^2 / 2`` and ``relu(margin - d)^2 / 2``."""

    margin: float = 1.0

    def positive(self, d: jax.Array) -> jax.Array:
        """See `PairPrice`."""
        return jnp.square(d) / 2

    def negative(self, d: jax.Array) -> jax.Array:
        """See `PairPrice`."""
        return jnp.square(jax.nn.relu(self.margin - d)) / 2


def margin_contrastive(
    z: jax.Array,
    labels: jax.Array,
    pos_margin: float = 0.0,
    neg_margin: float = 1.0,
    *,
    mining: PairMining = "all",
    mining_margins: tuple[float, float] = MINING_MARGINS,
    epsilon: float = EPSILON,
    reduction: Reduction = "nonzero",
    distance: Distance | str = "l2",
    normalized: bool = True,
    images: jax.Array | None = None,
    reference: Reference | None = None,
    mesh: nce.AnyMesh | None = None,
) -> jax.Array:
    """Contrastive loss with two margins: ``relu(d_p - pos_margin)`` and ``relu(neg_margin - d_n)``.

    A positive nearer than its margin costs nothing, which keeps a class from being pressed into one point (over-fitting);
    nor does a negative beyond its own.

    Args:
        z: ``float[N, D]``.
        labels: ``int[N]``.
        pos_margin: distance up to which positives are near enough.
        neg_margin: distance from which on negatives are far enough.
        mining: which pairs: "all"; "hard", "semihard" or "easy" negatives by the two margins, with
            all positives; "pair_margin"; "multi_similarity"; "batch_hard" or "easy_positive". See
            `jaxcl.losses.mining.pairs`.
        mining_margins: of "pair_margin": the distance that its positives are beyond, and the one that
            its negatives are within.
        epsilon: of "multi_similarity".
        reduction: positives and negatives have a mean each, which are added: over the mined pairs,
            or over those of them that cost something ("nonzero", as in pytorch-metric-learning).
        distance: a name, or a `Distance`.
        normalized: whether rows are L2-normalised first, in at least float32.
        images: ``int[N]``, the image that each row is of, from 0 on: rows of one image are neither
            positive nor negative of each other. None: every row is an image of its own, so that two
            views of an image are positives. Keys of the reference are of other images.
        reference: further keys, positives and negatives that are no anchors.
        mesh: the devices over whose axis "data" the rows are sharded; None takes the mesh set by
            `jax.set_mesh`, if any.

    Returns:
        A scalar in at least float32; a side without pairs adds 0, with gradient 0.

    Raises:
        ValueError: an unknown choice, a number that cannot be (`jaxcl.losses.limits`), or arrays that
            do not fit.
    """
    name = "margin_contrastive"
    held_against = sides(name, z, labels, reference, distance, normalized, images)
    margins = (pos_margin, neg_margin)
    check_numbers(
        name,
        held_against.distance.name,
        pos_margin=pos_margin,
        neg_margin=neg_margin,
        epsilon=epsilon,
    )
    price, kinds = Margins(*margins), mining_margins if mining == "pair_margin" else margins
    settings: dict[str, Any] = {"epsilon": epsilon, "mesh": mesh}
    return mined_pairs(name, price, held_against, mining, reduction, kinds, **settings)[0]


def hadsell(
    z: jax.Array,
    labels: jax.Array,
    margin: float = 1.0,
    *,
    mining: PairMining = "all",
    mining_margins: tuple[float, float] = MINING_MARGINS,
    epsilon: float = EPSILON,
    distance: Distance | str = "l2",
    normalized: bool = True,
    images: jax.Array | None = None,
    reference: Reference | None = None,
    mesh: nce.AnyMesh | None = None,
) -> jax.Array:
    """The classic contrastive loss, ``y d^2 / 2 + (1 - y) relu(margin - d)^2 / 2`` (Hadsell et al., CVPR 2006).

    The mean over all mined pairs, positive and negative together; arguments as in `margin_contrastive`, where the kinds
    of negatives go by 0 and `margin`.
    """
    held_against = sides("hadsell", z, labels, reference, distance, normalized, images)
    check_numbers("hadsell", held_against.distance.name, margin=margin, epsilon=epsilon)
    price, kinds = Squares(margin), mining_margins if mining == "pair_margin" else (0.0, margin)
    settings: dict[str, Any] = {"epsilon": epsilon, "mesh": mesh}
    return mined_pairs("hadsell", price, held_against, mining, "together", kinds, **settings)[0]


def mined_pairs(
    function: str,
    price: PairPrice,
    held_against: Sides,
    mining: PairMining | str,
    reduction: Reduction | Literal["together"] | str,
    margins: tuple[float, float],
    *,
    epsilon: float = EPSILON,
    mesh: nce.AnyMesh | None = None,
) -> tuple[jax.Array, Metrics]:
    """The price of the mined pairs, and what was mined.

    Args:
        function: named in errors.
        price: of a pair.
        held_against: anchors and keys, from `sides`.
        mining: as in `margin_contrastive`.
        reduction: as in `margin_contrastive`, or "together": one mean over all mined pairs.
        margins: of positives and negatives, by which "hard", "semihard", "easy" and "pair_margin" go.
        epsilon: of "multi_similarity".
        mesh: as in `margin_contrastive`.

    Returns:
        The loss, and the scalars "mined_positives" and "mined_negatives", numbers of pairs, and
        "active_positives" and "active_negatives", the shares of them that cost something.
    """
    check_choice(function, "mining", mining, PAIR_MININGS)
    check_choice(function, "reduction", reduction, (*REDUCTIONS, "together"))
    distance = held_against.distance
    pos_margin, neg_margin = margins

    def block(anchors: PyTree, keys: PyTree) -> dict[str, jax.Array]:
        d, positive, negative = held(anchors, keys, distance)
        masks = mining_lib.pairs(
            mining,
            d,
            positive,
            negative,
            pos_margin=pos_margin,
            neg_margin=neg_margin,
            epsilon=epsilon,
        )
        out = {}
        for side, mask, cost in (
            ("positive", masks.positive, price.positive(d)),
            ("negative", masks.negative, price.negative(d)),
        ):
            cost = jnp.where(mask, cost, 0)
            out[f"{side}_cost"] = jnp.sum(cost, axis=1)
            out[f"{side}_active"] = jnp.sum(cost > 0, axis=1, dtype=d.dtype)
            out[f"{side}_mined"] = jnp.sum(mask, axis=1, dtype=d.dtype)
        return out

    anchors, keys = held_against.anchors, held_against.keys
    sums = over_anchors(block, anchors, keys, len(keys["z"]), mesh=mesh)
    if reduction == "together":
        cost = sums["positive_cost"] + sums["negative_cost"]
        loss = mean_of(cost, sums["positive_mined"] + sums["negative_mined"])
    else:
        by = "active" if reduction == "nonzero" else "mined"
        loss = mean_of(sums["positive_cost"], sums[f"positive_{by}"])
        loss = loss + mean_of(sums["negative_cost"], sums[f"negative_{by}"])
    metrics = {
        f"mined_{side}s": jnp.sum(sums[f"{side}_mined"]) for side in ("positive", "negative")
    }
    for side in ("positive", "negative"):
        metrics[f"active_{side}s"] = mean_of(sums[f"{side}_active"], sums[f"{side}_mined"])
    return loss, lax.stop_gradient(metrics)


# ---------------------------------------------------------------------------------------------------------------------
# Rows of pairs, by distances
# ---------------------------------------------------------------------------------------------------------------------


def lifted_structure(
    z: jax.Array,
    labels: jax.Array,
    pos_margin: float = 0.0,
    neg_margin: float = 1.0,
    *,
    distance: Distance | str = "l2",
    normalized: bool = True,
    images: jax.Array | None = None,
    reference: Reference | None = None,
    mesh: nce.AnyMesh | None = None,
) -> jax.Array:
    """Lifted structured loss (Oh Song et al., CVPR 2016, equation 4).

    For a positive pair (i, j): ``relu(log sum_n exp(m_n - d_in) + exp(m_n - d_jn) + d_ij - m_p)^2 / 2``, n over the
    negatives of i and of j; the mean over the positive pairs, in both orders, that have a negative. Without margins as in
    pytorch-metric-learning: it is 0 where the sum and d_ij together are below 0.

    Args:
        z: ``float[N, D]``.
        labels: ``int[N]``.
        pos_margin: m_p.
        neg_margin: m_n.
        distance: a name, or a `Distance`.
        normalized: whether rows are L2-normalised first, in at least float32.
        images: as in `margin_contrastive`.
        reference: further keys, as positives and negatives of the anchors; a positive of the reference
            brings no negatives of its own.
        mesh: as in `margin_contrastive`.

    Returns:
        A scalar in at least float32; 0, with gradient 0, without positive pairs that have a negative.

    Raises:
        ValueError: as `margin_contrastive`.
    """
    name = "lifted_structure"
    held_against = sides(name, z, labels, reference, distance, normalized, images)
    return lifted(held_against, pos_margin, neg_margin, mesh)[0]


def lifted(
    held_against: Sides,
    pos_margin: float,
    neg_margin: float,
    mesh: nce.AnyMesh | None = None,
) -> tuple[jax.Array, Metrics]:
    """`lifted_structure`, and "mined_anchors", the share of the anchors that are in a pair which counts."""
    anchors, keys, metric, _ = held_against

    def negatives(anchors: PyTree, keys: PyTree) -> tuple[jax.Array, jax.Array]:
        d, _, negative = held(anchors, keys, metric)
        some = jnp.any(negative, axis=1)
        seen = jnp.where(negative | ~some[:, None], neg_margin - d, -jnp.inf)
        return jax.nn.logsumexp(seen, axis=1), some

    columns = len(keys["z"])
    push, some = over_anchors(negatives, anchors, keys, columns, mesh=mesh)
    none = columns - len(push)
    of_keys = {"push": jnp.pad(push, (0, none)), "some": jnp.pad(some, (0, none))}

    def positives(own: PyTree, whole: PyTree) -> tuple[jax.Array, jax.Array]:
        d, positive, _ = held(own["anchors"], whole["keys"], metric)
        # Both have negatives, or one of them, or neither.
        mine, theirs = own["some"][:, None], whole["some"][None, :]
        here, there = own["push"][:, None], whole["push"][None, :]
        both = mine & theirs
        one = jnp.where(mine, here, there)
        push = jnp.where(
            both, jnp.logaddexp(jnp.where(both, here, 0), jnp.where(both, there, 0)), one
        )
        counted = positive & (mine | theirs)
        cost = jnp.square(jax.nn.relu(push + d - pos_margin)) / 2
        return jnp.sum(jnp.where(counted, cost, 0), axis=1), jnp.sum(counted, axis=1, dtype=d.dtype)

    own = {"anchors": anchors, "push": push, "some": some}
    cost, count = over_anchors(positives, own, {"keys": keys, **of_keys}, columns, mesh=mesh)
    return mean_of(cost, count), _share(count > 0)


def circle(
    z: jax.Array,
    labels: jax.Array,
    margin: float = 0.4,
    scale: float = 80.0,
    *,
    images: jax.Array | None = None,
    reference: Reference | None = None,
    mesh: nce.AnyMesh | None = None,
) -> jax.Array:
    """Circle loss with labels of classes (Sun et al., CVPR 2020, equations 6 and 7).

    ``softplus(log sum_n exp(g a_n (s_n - m)) + log sum_p exp(-g a_p (s_p - 1 + m)))`` with the cosines s, the weights
    ``a_p = relu(1 + m - s_p)`` and ``a_n = relu(s_n + m)``, which get no gradient, and the scale g; the mean over the
    anchors that have a positive and a negative and cost something.

    Args:
        z: ``float[N, D]``; normalised here, in at least float32.
        labels: ``int[N]``.
        margin: m: 0.4 for retrieval of fine-grained classes, 0.25 for faces.
        scale: g: 80 and 256.
        images: as in `margin_contrastive`.
        reference: as in `margin_contrastive`.
        mesh: as in `margin_contrastive`.

    Returns:
        A scalar in at least float32.

    Raises:
        ValueError: as `margin_contrastive`.
    """
    check_numbers("circle", scale=scale)
    held_against = sides("circle", z, labels, reference, "dot", True, images)
    return circles(held_against, margin, scale, mesh)[0]


def circles(
    held_against: Sides, margin: float, scale: float, mesh: nce.AnyMesh | None = None
) -> tuple[jax.Array, Metrics]:
    """`circle`, and "mined_anchors", the share of the anchors that cost something."""
    anchors, keys, metric, _ = held_against

    def block(anchors: PyTree, keys: PyTree) -> jax.Array:
        d, positive, negative = held(anchors, keys, metric)
        s = -d
        fixed = lax.stop_gradient(s)
        pull = -scale * jax.nn.relu(1 + margin - fixed) * (s - (1 - margin))
        push = scale * jax.nn.relu(fixed + margin) * (s - margin)
        some = (jnp.any(positive, axis=1) & jnp.any(negative, axis=1))[:, None]
        total = _lse(pull, positive, some) + _lse(push, negative, some)
        return jnp.where(some[:, 0], jax.nn.softplus(total), 0)

    cost = over_anchors(block, anchors, keys, len(keys["z"]), mesh=mesh)
    return mean_of(cost, cost > 0), _share(cost > 0)


def fast_ap(
    z: jax.Array,
    labels: jax.Array,
    bins: int = 10,
    *,
    images: jax.Array | None = None,
    reference: Reference | None = None,
    mesh: nce.AnyMesh | None = None,
) -> jax.Array:
    """FastAP: one less the average precision of an anchor's ranking, from histograms (Cakir et al., CVPR 2019).

    Squared distances of normalised rows, 0 to 4, are shared out between the two nearest of ``bins + 1`` edges; with h+ and h
    the histograms of the positives and of all keys, and H+ and H their running sums, the precision is ``sum h+ H+ / H``
    over the number of positives.

    Args:
        z: ``float[N, D]``; normalised here, in at least float32.
        labels: ``int[N]``.
        bins: parts of the range of distances.
        images: as in `margin_contrastive`.
        reference: as in `margin_contrastive`.
        mesh: as in `margin_contrastive`.

    Returns:
        A scalar in at least float32, the mean over the anchors with a positive; 0 without any.

    Raises:
        ValueError: as `margin_contrastive`.
    """
    check_numbers("fast_ap", bins=bins)
    held_against = sides("fast_ap", z, labels, reference, "squared_l2", True, images)
    return average_precision(held_against, bins, mesh)[0]


def average_precision(
    held_against: Sides, bins: int, mesh: nce.AnyMesh | None = None
) -> tuple[jax.Array, Metrics]:
    """`fast_ap`, of squared distances, and "mined_anchors", the share of the anchors that have a positive."""
    anchors, keys, metric, _ = held_against
    width = 4 / bins

    def block(anchors: PyTree, keys: PyTree) -> tuple[jax.Array, jax.Array]:
        d, positive, negative = held(anchors, keys, metric)

        def share(edge: jax.Array) -> tuple[jax.Array, jax.Array]:
            pulse = jax.nn.relu(1 - jnp.abs(d - edge) / width)
            return (
                jnp.sum(jnp.where(positive, pulse, 0), axis=1),
                jnp.sum(jnp.where(positive | negative, pulse, 0), axis=1),
            )

        edges = jnp.arange(bins + 1, dtype=d.dtype) * width
        near, every = lax.map(jax.checkpoint(share), edges)
        near_so_far, so_far = jnp.cumsum(near, axis=0), jnp.cumsum(every, axis=0)
        filled = (near > 0) & (so_far > 0)
        terms = jnp.where(filled, near * near_so_far / jnp.where(filled, so_far, 1), 0)
        count = jnp.sum(positive, axis=1, dtype=d.dtype)
        some = count > 0
        cost = 1 - jnp.sum(terms, axis=0) / jnp.where(some, count, 1)
        return jnp.where(some, cost, 0), some.astype(d.dtype)

    cost, some = over_anchors(block, anchors, keys, len(keys["z"]), mesh=mesh)
    return mean_of(cost, some), _share(some > 0)


def _share(counted: jax.Array) -> Metrics:
    """How many of the anchors counted: bool[N] as the metric "mined_anchors"."""
    return {"mined_anchors": lax.stop_gradient(jnp.mean(counted, dtype=jnp.float32))}


def _lse(x: jax.Array, mask: jax.Array, some: jax.Array) -> jax.Array:
    """The log-sum-exps of rows under a mask, of all of a row that is not counted (some[b, 1] is False)."""
    return jax.nn.logsumexp(jnp.where(mask | ~some, x, -jnp.inf), axis=1)


# ---------------------------------------------------------------------------------------------------------------------
# Rows of pairs, by log-sum-exps of inner products
# ---------------------------------------------------------------------------------------------------------------------


def multi_similarity(
    z: jax.Array,
    labels: jax.Array,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    mining: Literal["all", "multi_similarity"] = "all",
    *,
    epsilon: float = 0.1,
    images: jax.Array | None = None,
    reference: Reference | None = None,
    precision: Any = "highest",
    impl: nce.Impl = "auto",
    mesh: nce.AnyMesh | None = None,
) -> jax.Array:
    """Multi-similarity loss (Wang et al., CVPR 2019, equation 15).

    The mean over the anchors with a label of ``log(1 + sum_p exp(-alpha (s_p - base))) / alpha + log(1 + sum_n exp(beta (s_n
    - base))) / beta``, with cosines s.

    Args:
        z: ``float[N, D]``; normalised here, in at least float32.
        labels: ``int[N]``.
        alpha: sharpness of the positives.
        beta: sharpness of the negatives.
        base: lambda of the paper.
        mining: "multi_similarity" takes positives that are less similar than the most similar negative
            plus `epsilon`, and negatives more similar than the least similar positive less `epsilon`
            (the paper's pair mining); "all" takes all.
        epsilon: of the mining.
        images: as in `margin_contrastive`.
        reference: as in `margin_contrastive`.
        precision: of the similarity product, as in `jax.numpy.matmul`.
        impl: form of the engine (`jaxcl.losses.nce`).
        mesh: as in `margin_contrastive`.

    Returns:
        A scalar in at least float32; pairs that are not there add 0.

    Raises:
        ValueError: as `margin_contrastive`.
    """
    check_numbers("multi_similarity", alpha=alpha, beta=beta, epsilon=epsilon)
    against = Rows.of("multi_similarity", z, labels, reference, images)
    settings: dict[str, Any] = {"precision": precision, "impl": impl, "mesh": mesh}
    return mined_similarity(against, alpha, beta, base, mining, epsilon, **settings)[0]


def mined_similarity(
    against: Rows,
    alpha: float,
    beta: float,
    base: float,
    mining: str,
    epsilon: float,
    *,
    precision: Any = "highest",
    impl: nce.Impl = "auto",
    mesh: nce.AnyMesh | None = None,
) -> tuple[jax.Array, Metrics]:
    """`multi_similarity`, and "mined_anchors", the share of the anchors that have a positive and a negative left."""
    check_choice("multi_similarity", "mining", mining, ("all", "multi_similarity"))
    form: dict[str, Any] = {"precision": precision, "impl": impl, "mesh": mesh}
    thresholds: Metrics = {}
    if mining == "multi_similarity":
        found = against.stats(("max", "positive_min"), 1.0, **form)
        thresholds = lax.stop_gradient(
            {"nearest": found["max"] + epsilon, "farthest": found["positive_min"] - epsilon}
        )
    pull = against.stats(("positive_lse", "positives"), -alpha, thresholds, **form)
    push = against.stats(("lse",), beta, thresholds, **form)
    cost = jax.nn.softplus(pull["positive_lse"] + alpha * base) / alpha
    cost = cost + jax.nn.softplus(push["lse"] - beta * base) / beta
    both = (pull["positives"] > 0) & (push["lse"] > -jnp.inf)
    known = against.meta["label"] >= 0
    return mean_of(jnp.where(known, cost, 0), known), _share(both)


def nca(
    z: jax.Array,
    labels: jax.Array,
    scale: float = 1.0,
    *,
    images: jax.Array | None = None,
    reference: Reference | None = None,
    precision: Any = "highest",
    impl: nce.Impl = "auto",
    mesh: nce.AnyMesh | None = None,
) -> jax.Array:
    """Neighbourhood components analysis (Goldberger et al., NeurIPS 2004), as the log-likelihood.

    ``-log sum_p softmax(-scale d^2)``: the probability that an anchor picks a neighbour of its class, by squared distances of
    normalised rows, itself left out; the mean over the anchors that have a positive.

    Args:
        z: ``float[N, D]``; normalised here, in at least float32.
        labels: ``int[N]``.
        scale: multiplies the squared distances.
        images: as in `margin_contrastive`.
        reference: as in `margin_contrastive`.
        precision: as in `multi_similarity`.
        impl: as in `multi_similarity`.
        mesh: as in `margin_contrastive`.

    Returns:
        A scalar in at least float32; 0 without positives.

    Raises:
        ValueError: as `margin_contrastive`.
    """
    check_numbers("nca", scale=scale)
    against = Rows.of("nca", z, labels, reference, images)
    return neighbours(against, scale, precision=precision, impl=impl, mesh=mesh)[0]


def neighbours(against: Rows, scale: float, **form: Any) -> tuple[jax.Array, Metrics]:
    """`nca`, and "mined_anchors", the share of the anchors that have a positive."""
    # d^2 = 2 - 2 s: what is the same for all keys cancels in the softmax.
    stats = against.stats(("lse", "positive_lse", "positives"), 2 * scale, **form)
    some = stats["positives"] > 0
    near = jnp.where(some, stats["positive_lse"], 0)
    # The engine counts the negatives; -log(p / (p + n)) = softplus(n - p), and 0 without negatives.
    cost = jax.nn.softplus(jnp.where(some, stats["lse"], -jnp.inf) - near)
    return mean_of(jnp.where(some, cost, 0), some), _share(some)


def n_pairs(
    z: jax.Array,
    labels: jax.Array,
    l2: float = 0.0,
    *,
    normalized: bool = False,
    images: jax.Array | None = None,
    precision: Any = "highest",
    impl: nce.Impl = "auto",
    mesh: nce.AnyMesh | None = None,
) -> jax.Array:
    """Multi-class N-pair loss (Sohn, NeurIPS 2016, equation 7), by inner products.

    Of each class the first row in the batch is the anchor and the second the positive, others are left out: ``-log
    softmax`` of the anchor's own positive among those of all classes; the mean over the classes that have two rows.

    Args:
        z: ``float[N, D]``.
        labels: ``int[N]``; rows of negative label are left out.
        l2: adds l2 times the mean squared norm of the rows in pairs, over 2, in the place of a
            normalisation (section 3.2.2).
        normalized: whether rows are L2-normalised; in the paper they are not.
        images: as in `margin_contrastive`; of an image all rows but the first are left out.
        precision: as in `multi_similarity`.
        impl: as in `multi_similarity`.
        mesh: as in `margin_contrastive`.

    Returns:
        A scalar in at least float32; 0 if no class has two rows.

    Raises:
        ValueError: arrays that do not fit.
    """
    check_numbers("n_pairs", l2=l2)
    form: dict[str, Any] = {"precision": precision, "impl": impl, "mesh": mesh}
    return pairs_of_classes(z, labels, l2, normalized=normalized, images=images, **form)[0]


def pairs_of_classes(
    z: jax.Array,
    labels: jax.Array,
    l2: float,
    *,
    normalized: bool = False,
    images: jax.Array | None = None,
    precision: Any = "highest",
    impl: nce.Impl = "auto",
    mesh: nce.AnyMesh | None = None,
) -> tuple[jax.Array, Metrics]:
    """`n_pairs`, and "mined_anchors", the share of the rows that are anchors: of classes of m rows 1 / m."""
    z, labels = rows_of("n_pairs", z, labels)
    z, labels = prepared(z, normalized), labels.astype(jnp.int32)
    again = _place_in_class(image_numbers("n_pairs", len(z), images)) > 0
    labels = jnp.where(again, -1, labels)
    place = _place_in_class(labels)
    first, second = ((place == number) & (labels >= 0) for number in (0, 1))
    stats = nce.row_stats(
        z,
        z,
        nce.Relation(second_of_class),
        {"label": labels},
        {"label": labels, "second": second},
        want=("lse", "positive_sum", "positives"),
        precision=precision,
        impl=impl,
        mesh=mesh,
    )
    anchor = first & (stats["positives"] > 0)
    # In a batch without pairs no key is counted.
    cost = jnp.where(anchor, stats["lse"], 0) - jnp.where(anchor, stats["positive_sum"], 0)
    loss = mean_of(cost, anchor)
    if l2:
        squares = jnp.where(anchor | second, jnp.sum(jnp.square(z), axis=1), 0)
        loss = loss + l2 / 2 * mean_of(squares, anchor | second)
    return loss, _share(anchor)


def second_of_class(queries: nce.Meta, keys: nce.Meta) -> nce.Pairs:
    """Counts the second rows of all classes; that of the anchor's class is positive."""
    same = queries["label"] == keys["label"]
    return nce.Pairs(counted=keys["second"], positive=keys["second"] & same)


def mined_similarities(queries: nce.Meta, keys: nce.Meta, s: jax.Array) -> nce.Pairs:
    """`same_label_of_valid`, of positives farther than the nearest negative and negatives nearer than the farthest positive."""
    pairs = same_label_of_valid(queries, keys)
    s = s * queries["unscale"]
    return nce.Pairs(
        counted=pairs.counted & (s > queries["farthest"]),
        positive=pairs.positive & (s < queries["nearest"]),
    )


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows for the engine, held against each other and a reference."""

    rows: jax.Array
    meta: nce.Meta
    further: dict[str, jax.Array] | None

    @classmethod
    def of(
        cls,
        function: str,
        z: jax.Array,
        labels: jax.Array,
        reference: Reference | None,
        images: jax.Array | None = None,
    ) -> Rows:
        """Normalised rows; arguments as of `jaxcl.losses.anchors.sides`.

        Raises:
            ValueError: arrays that do not fit.
        """
        z, labels = rows_of(function, z, labels)
        image = image_numbers(function, len(z), images)
        meta = {"label": labels.astype(jnp.int32), "image": image}
        rows = prepared(z, True)
        further = None if reference is None else reference_rows(function, rows, reference, True)
        return cls(rows, meta, further)

    def stats(
        self,
        want: tuple[nce.Stat, ...],
        scale: float,
        thresholds: nce.Meta | None = None,
        **form: Any,
    ) -> nce.Stats:
        """Row statistics in which negatives are counted; thresholds, if any, are of `mined_similarities`."""
        settings: dict[str, Any] = {"scale": scale, "bound": abs(scale), "want": want, **form}
        query_meta, relation = self.meta, nce.Relation(same_label_of_valid)
        if thresholds:
            unscale = jnp.full(len(self.rows), 1 / scale, self.rows.dtype)
            query_meta = {**query_meta, **thresholds, "unscale": unscale}
            relation = nce.Relation(mined_similarities, sees_similarity=True)
        if thresholds:
            # Thresholds are an anchor's own: the relation is not symmetric.
            every = {**self.meta, "valid": jnp.ones(len(self.rows), bool)}
            found = nce.row_stats(self.rows, self.rows, relation, query_meta, every, **settings)
        else:
            found = nce.row_stats(self.rows, None, nce.Relation(same_label), self.meta, **settings)
        if self.further is None:
            return found
        further = dict(self.further)
        keys = further.pop("z")
        more = nce.row_stats(
            self.rows, keys, relation, query_meta, further, keys_everywhere=True, **settings
        )
        return {stat: _JOINED[stat](found[stat], more[stat]) for stat in want}


def _add_logs(a: jax.Array, b: jax.Array) -> jax.Array:
    """log(exp(a) + exp(b)), with gradient 0 where both are -inf."""
    none = (a == -jnp.inf) & (b == -jnp.inf)
    return jnp.where(none, -jnp.inf, jnp.logaddexp(jnp.where(none, 0, a), jnp.where(none, 0, b)))


_JOINED: dict[nce.Stat, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "lse": _add_logs,
    "positive_lse": _add_logs,
    "positives": jnp.add,
    "max": jnp.maximum,
    "positive_min": jnp.minimum,
}


def _place_in_class(labels: jax.Array) -> jax.Array:
    """How many rows of its label stand before a row: labels i32[N] -> i32[N]."""
    order = jnp.argsort(labels, stable=True)
    ordered = labels[order]
    number = jnp.arange(len(labels), dtype=jnp.int32)
    starts = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    start = lax.cummax(jnp.where(starts, number, 0))
    return jnp.zeros_like(labels).at[order].set(number - start, unique_indices=True)
