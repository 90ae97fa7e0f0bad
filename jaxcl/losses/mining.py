"""Mining: which pairs and triplets a loss is made of, as masks.

Everything here looks at the distances ``d[b, K]`` of some anchors to all keys, and at which keys are positive and
negative for them, ``bool[b, K]``; keys are global, and so is what is mined. Nothing here has a gradient. The kinds of
negatives of a positive, with ``t = d_an - d_ap`` and a margin m:

    hard        t <= 0          nearer than the positive
    semi-hard   0 < t <= m      farther than it, but not by the margin
    easy        t > m           farther by more than the margin

They divide all triplets. The same three kinds in absolute margins, for losses of pairs, are in `negative_kind`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax

Kind = Literal["hard", "semihard", "easy"]
KINDS: tuple[str, ...] = get_args(Kind)

PairMining = Literal[
    "all",
    "hard",
    "semihard",
    "easy",
    "pair_margin",
    "multi_similarity",
    "batch_hard",
    "easy_positive",
]
PAIR_MININGS: tuple[str, ...] = get_args(PairMining)

TripletMining = Literal[
    "all",
    "hard",
    "semihard",
    "easy",
    "violating",
    "closest_semihard",
    "facenet",
    "distance_weighted",
    "batch_hard",
    "easy_positive",
]
TRIPLET_MININGS: tuple[str, ...] = get_args(TripletMining)
MINING_MARGINS = (0.2, 0.8)
"""Of the mining "pair_margin": distances that its positives are beyond and its negatives within (pytorch-metric-learning's)."""
EPSILON = 0.1
"""Of the mining "multi_similarity"."""
ONE_TRIPLET = ("batch_hard", "easy_positive")
"""Mining that takes one triplet of each anchor; the others look at each of its positives."""


class Chosen(NamedTuple):
    """One triplet of each anchor.

    Attributes:
        positive: ``i32[b]``, number of the key.
        negative: ``i32[b]``.
        found: ``bool[b]``, whether there is one.
    """

    positive: jax.Array
    negative: jax.Array
    found: jax.Array


class PairMasks(NamedTuple):
    """The pairs that were mined, ``bool[b, K]`` each."""

    positive: jax.Array
    negative: jax.Array


def triplet_kind(t: jax.Array, kind: Kind | str, margin: float) -> jax.Array:
    """Whether triplets with ``t = d_an - d_ap`` are of a kind: "hard", "semihard" or "easy"."""
    t = lax.stop_gradient(t)
    if kind == "hard":
        return t <= 0
    if kind == "semihard":
        return (t > 0) & (t <= margin)
    return t > margin


def negative_kind(
    d: jax.Array, kind: Kind | str, pos_margin: float, neg_margin: float
) -> jax.Array:
    """Whether negatives at distance d are of a kind, by the margins of positives and negatives.

    hard: ``d < pos_margin``, where the positives are to be; semi-hard: ``pos_margin <= d <
    neg_margin``; easy: ``d >= neg_margin``, already far enough.
    """
    d = lax.stop_gradient(d)
    if kind == "hard":
        return d < pos_margin
    if kind == "semihard":
        return (d >= pos_margin) & (d < neg_margin)
    return d >= neg_margin


def negatives_of(
    mining: TripletMining | str,
    d_ap: jax.Array,
    d: jax.Array,
    negative: jax.Array,
    margin: float,
) -> jax.Array:
    """The negatives that are held against one positive of each anchor, ``bool[b, K]``.

    Args:
        mining: "all"; "hard", "semihard" or "easy", all of that kind; "violating", hard and
            semi-hard; "closest_semihard", the nearest of the semi-hard ones (SimCLR, section 5.1);
            "facenet", the nearest that is farther than the positive, and where there is none the
            farthest of all (Schroff et al., CVPR 2015, as TensorFlow Addons has it).
        d_ap: ``[b, 1]``, the distance of the positive.
        d: ``[b, K]``.
        negative: ``bool[b, K]``.
        margin: of the kinds.
    """
    d_ap, d = lax.stop_gradient((d_ap, d))
    t = d - d_ap
    if mining in KINDS:
        return negative & triplet_kind(t, mining, margin)
    if mining == "violating":
        return negative & (t <= margin)
    if mining == "closest_semihard":
        return nearest(d, negative & triplet_kind(t, "semihard", margin))
    if mining == "facenet":
        farther = negative & (t > 0)
        some = jnp.any(farther, axis=1, keepdims=True)
        return jnp.where(some, nearest(d, farther), farthest(d, negative))
    return negative


def hardest(d: jax.Array, positive: jax.Array, negative: jax.Array) -> Chosen:
    """Batch-hard: the farthest positive and the nearest negative (Hermans et al., 2017)."""
    p, any_positive = _first(_closest(-d, positive))
    n, any_negative = _first(_closest(d, negative))
    return Chosen(p, n, any_positive & any_negative)


def easy_positive(d: jax.Array, positive: jax.Array, negative: jax.Array) -> Chosen:
    """The nearest positive, and the nearest negative that is farther (Xuan et al., WACV 2020).

    An anchor none of whose negatives is farther than its nearest positive has no triplet.
    """
    d = lax.stop_gradient(d)
    p, any_positive = _first(_closest(d, positive))
    d_ap = jnp.take_along_axis(d, p[:, None], axis=1)
    n, any_negative = _first(_closest(d, negative & (d > d_ap)))
    return Chosen(p, n, any_positive & any_negative)


def nearest(d: jax.Array, mask: jax.Array) -> jax.Array:
    """The nearest key under a mask, the first of equal ones, as ``bool[b, K]``; none where the mask names none."""
    return _only_first(_closest(d, mask))


def farthest(d: jax.Array, mask: jax.Array) -> jax.Array:
    """The farthest key under a mask, the first of equal ones, as ``bool[b, K]``."""
    return _only_first(_closest(-d, mask))


def pairs(
    mining: PairMining | str,
    d: jax.Array,
    positive: jax.Array,
    negative: jax.Array,
    *,
    pos_margin: float = MINING_MARGINS[0],
    neg_margin: float = MINING_MARGINS[1],
    epsilon: float = EPSILON,
) -> PairMasks:
    """The pairs that a loss of pairs is made of.

    Args:
        mining: "all"; "hard", "semihard" or "easy": all positives, and the negatives of that
            `negative_kind`; "pair_margin": positives with ``d > pos_margin`` and negatives with
            ``d < neg_margin``; "multi_similarity": positives farther than the nearest negative
            less `epsilon`, and negatives nearer than the farthest positive plus `epsilon` (Wang et
            al., CVPR 2019); "batch_hard" and "easy_positive": one of each, see `hardest` and
            `easy_positive`.
        d: ``[b, K]``.
        positive: ``bool[b, K]``.
        negative: ``bool[b, K]``.
        pos_margin: of positives.
        neg_margin: of negatives.
        epsilon: of "multi_similarity".
    """
    d = lax.stop_gradient(d)
    if mining in KINDS:
        return PairMasks(positive, negative & negative_kind(d, mining, pos_margin, neg_margin))
    if mining == "pair_margin":
        return PairMasks(positive & (d > pos_margin), negative & (d < neg_margin))
    if mining == "multi_similarity":
        farthest_positive = jnp.max(jnp.where(positive, d, -jnp.inf), axis=1, keepdims=True)
        nearest_negative = jnp.min(jnp.where(negative, d, jnp.inf), axis=1, keepdims=True)
        return PairMasks(
            positive & (d + epsilon > nearest_negative),
            negative & (d - epsilon < farthest_positive),
        )
    if mining in ONE_TRIPLET:
        one = (hardest if mining == "batch_hard" else easy_positive)(d, positive, negative)
        key = jnp.arange(d.shape[1], dtype=jnp.int32)[None, :]
        return PairMasks(
            one.found[:, None] & (key == one.positive[:, None]),
            one.found[:, None] & (key == one.negative[:, None]),
        )
    return PairMasks(positive, negative)


def distance_weights(
    d: jax.Array,
    negative: jax.Array,
    features: int,
    cutoff: float = 0.5,
    nonzero_cutoff: float = 1.4,
) -> jax.Array:
    """The logarithm of the weights with which negatives are drawn (Wu et al., ICCV 2017, section 4).

    Inverse to the density of distances of random points on a sphere, ``q(d) ~ d^(n-2) (1 - d^2/4)^((n-3)/2)``, so that
    negatives of all distances are drawn alike.

    Args:
        d: ``[b, K]``, Euclidean distances of normalised embeddings.
        negative: ``bool[b, K]``.
        features: n, the width of the embeddings.
        cutoff: smaller distances weigh as this one.
        nonzero_cutoff: negatives from here on have weight 0: no gradient is to be had of them.

    Returns:
        ``[b, K]``, -inf for what is not drawn.
    """
    d = lax.stop_gradient(d)
    drawn = negative & (d < nonzero_cutoff)
    clipped = jnp.clip(d, cutoff, 1.999)
    density = (features - 2) * jnp.log(clipped) + (features - 3) / 2 * jnp.log1p(
        -jnp.square(clipped) / 4
    )
    return jnp.where(drawn, -density, -jnp.inf)


def draw(keys: jax.Array, log_weights: jax.Array) -> jax.Array:
    """One key of each anchor, drawn by its weight, as ``bool[b, K]``; none where all weights are 0.

    Args:
        keys: typed PRNG keys ``[b]``.
        log_weights: ``[b, K]``.
    """
    width, dtype = log_weights.shape[1], log_weights.dtype
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (width,), dtype))(keys)
    return _only_first(_closest(-(log_weights + noise), log_weights > -jnp.inf))


def _closest(d: jax.Array, mask: jax.Array) -> jax.Array:
    """The keys under a mask that no other of them is nearer than, ``bool[b, K]``."""
    d = lax.stop_gradient(d)
    return mask & (d == jnp.min(jnp.where(mask, d, jnp.inf), axis=1, keepdims=True))


def _first(mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The number of the first key under a mask, i32[b], and whether there is one."""
    return jnp.argmax(mask, axis=1).astype(jnp.int32), jnp.any(mask, axis=1)


def _only_first(mask: jax.Array) -> jax.Array:
    number, some = _first(mask)
    key = jnp.arange(mask.shape[1], dtype=jnp.int32)[None, :]
    return some[:, None] & (key == number[:, None])
