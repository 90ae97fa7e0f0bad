"""Losses of triplets: an anchor a, a positive p and a negative n.

Triplets are never listed, and no array ``[N, N, N]`` exists. For a block of anchors, the first positive of each is held
against all its negatives, then the second of each, and so on: a loop over arrays ``[b, K]``, which serves any price and
any mining. Its memory is linear in the batch, its time N * K times the most positives that an anchor has, of which
m-per-class sampling makes few. (Sorted distances and their running sums would do it in N * K * log K for the plain hinge,
but not for softplus, swap or drawn negatives, and a sort costs more than the loop does for up to some hundred positives.)
Mining that takes one triplet of an anchor needs no such loop: it finds two keys for each, and the distances of these.
"""

from __future__ import annotations

import dataclasses
import functools
import math
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
    mean_of,
    over_anchors,
    sides,
)
from jaxcl.losses.contrastive import inverse_temperature
from jaxcl.losses.distances import Distance
from jaxcl.losses.limits import check_numbers
from jaxcl.losses.mining import ONE_TRIPLET, TRIPLET_MININGS, Chosen, TripletMining
from jaxcl.losses.spread import whole

PyTree = Any
Reduction = Literal["nonzero", "mean"]
REDUCTIONS = ("nonzero", "mean")


class Price(Protocol):
    """What a triplet costs; a frozen dataclass.

    Attributes:
        terms: how many terms a triplet has, each of which may be 0.
    """

    @property
    def terms(self) -> int:
        """Terms of a triplet."""

    def __call__(
        self, d_ap: jax.Array, d_an: jax.Array, beta: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Costs of triplets, and how many of their terms are above 0; the arguments broadcast."""


@dataclasses.dataclass(frozen=True)
class Hinge:
    """``relu(d_ap - d_an + margin)``, or softplus in the place of relu."""

    margin: float = 0.2
    smooth: bool = False
    terms: int = 1

    def __call__(
        self, d_ap: jax.Array, d_an: jax.Array, beta: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """See `Price`."""
        gap = d_ap - d_an + self.margin
        cost = jax.nn.softplus(gap) if self.smooth else jax.nn.relu(gap)
        return cost, cost > 0


@dataclasses.dataclass(frozen=True)
class Boundary:
    """``relu(d_ap - beta + margin) + relu(beta - d_an + margin)``: a border between near and far."""

    margin: float = 0.2
    terms: int = 2

    def __call__(
        self, d_ap: jax.Array, d_an: jax.Array, beta: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """See `Price`."""
        assert beta is not None
        near = jax.nn.relu(d_ap - beta + self.margin)
        far = jax.nn.relu(beta - d_an + self.margin)
        return near + far, (near > 0).astype(near.dtype) + (far > 0)


@dataclasses.dataclass(frozen=True)
class Logistic:
    """``-log sigmoid(s_ap / tau) - log sigmoid(-s_an / tau)``, the similarities being minus the distances."""

    sharpness: float = 10.0
    terms: int = 1

    def __call__(
        self, d_ap: jax.Array, d_an: jax.Array, beta: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """See `Price`."""
        cost = jax.nn.softplus(self.sharpness * d_ap) + jax.nn.softplus(-self.sharpness * d_an)
        return cost, cost > 0


def triplet(
    z: jax.Array,
    labels: jax.Array,
    margin: float = 0.2,
    mining: TripletMining = "all",
    reduction: Reduction = "nonzero",
    *,
    swap: bool = False,
    smooth: bool = False,
    distance: Distance | str = "l2",
    normalized: bool = True,
    images: jax.Array | None = None,
    reference: Reference | None = None,
    key: jax.Array | None = None,
    mesh: nce.AnyMesh | None = None,
) -> jax.Array:
    """Triplet loss: ``relu(d_ap - d_an + margin)`` (Weinberger and Saul, 2009; Schroff et al., CVPR 2015).

    Args:
        z: ``float[N, D]``.
        labels: ``int[N]``; equal means same class. A row of negative label, whose class is not known,
            is neither an anchor nor a positive nor a negative.
        margin: m.
        mining: which triplets: "all"; of the kinds by ``t = d_an - d_ap`` "hard" (t <= 0),
            "semihard" (0 < t <= m), "easy" (t > m, which costs nothing but with `smooth`), or
            "violating" (the first two); for each anchor and positive one negative:
            "closest_semihard", "facenet" or, with `key`, "distance_weighted"; for each anchor one
            triplet: "batch_hard" or "easy_positive". See `jaxcl.losses.mining`.
        reduction: the mean over the mined triplets, or over those of them that cost something
            ("nonzero", as in pytorch-metric-learning).
        swap: takes the negative's distance to the positive where that is smaller (Balntas et al.,
            BMVC 2016). The mining still goes by the anchor's.
        smooth: softplus in the place of relu.
        distance: a name, or a `Distance`; of "cosine" and "dot" the difference is that of the
            similarities, as in SimCLR's margin triplet loss (section 5.1).
        normalized: whether rows are L2-normalised first, in at least float32; "distance_weighted" needs it.
        images: ``int[N]``, the image that each row is of, from 0 on: rows of one image are neither
            positive nor negative of each other. None: every row is an image of its own, so that two
            views of an image are positives. Keys of the reference are of other images.
        reference: further keys, positives and negatives that are no anchors.
        key: for "distance_weighted", a typed PRNG key.
        mesh: the devices over whose axis "data" the rows are sharded; None takes the mesh set by
            `jax.set_mesh`, if any.

    Returns:
        A scalar in at least float32; 0, with gradient 0, if there is no triplet. It equals the
        margin for embeddings that are all equal.

    Raises:
        ValueError: an unknown choice, a number that cannot be (`jaxcl.losses.limits`), arrays that do
            not fit, or no key where one is needed.
    """
    check_numbers("triplet", margin=margin)
    held_against = sides("triplet", z, labels, reference, distance, normalized, images)
    settings: dict[str, Any] = {"swap": swap, "key": key, "mesh": mesh}
    price = Hinge(margin, smooth)
    return mined_triplets("triplet", price, held_against, mining, reduction, margin, **settings)[0]


def margin_loss(
    z: jax.Array,
    labels: jax.Array,
    margin: float = 0.2,
    beta: float | jax.Array = 1.2,
    mining: TripletMining = "all",
    reduction: Reduction = "nonzero",
    *,
    nu: float = 0.0,
    distance: Distance | str = "l2",
    normalized: bool = True,
    images: jax.Array | None = None,
    reference: Reference | None = None,
    key: jax.Array | None = None,
    mesh: nce.AnyMesh | None = None,
) -> jax.Array:
    """Margin loss: ``relu(d_ap - beta + margin) + relu(beta - d_an + margin)`` (Wu et al., ICCV 2017, equation 7).

    Args:
        z: ``float[N, D]``.
        labels: ``int[N]``, as in `triplet`.
        margin: alpha of the paper.
        beta: the border between positives and negatives, a scalar or ``[N]``, one for each anchor;
            it may be learned.
        mining: as in `triplet`, where the kinds go by `margin`; the paper's is "distance_weighted".
        reduction: over the mined triplets ("mean"), or over the terms, of two for each triplet, that
            are above 0 ("nonzero", the paper's and pytorch-metric-learning's).
        nu: adds nu times the mean of beta, which holds a learned one back.
        distance: as in `triplet`.
        normalized: as in `triplet`.
        images: as in `triplet`.
        reference: as in `triplet`.
        key: as in `triplet`.
        mesh: as in `triplet`.

    Returns:
        A scalar in at least float32.

    Raises:
        ValueError: as `triplet`.
    """
    check_numbers("margin_loss", margin=margin, nu=nu)
    held_against = sides("margin_loss", z, labels, reference, distance, normalized, images)
    settings: dict[str, Any] = {"beta": beta, "nu": nu, "key": key, "mesh": mesh}
    price = Boundary(margin)
    return mined_triplets(
        "margin_loss", price, held_against, mining, reduction, margin, **settings
    )[0]


def nt_logistic(
    z: jax.Array,
    labels: jax.Array,
    temperature: float = 0.1,
    mining: Literal["all", "semihard"] = "all",
    *,
    images: jax.Array | None = None,
    reference: Reference | None = None,
    mesh: nce.AnyMesh | None = None,
) -> jax.Array:
    """Logistic loss of cosines, ``-log sigmoid(s_ap / tau) - log sigmoid(-s_an / tau)`` (SimCLR, Table 2).

    Args:
        z: ``float[N, D]``; normalised here, in at least float32.
        labels: ``int[N]``, as in `triplet`. For two views of images the numbers of the images.
        temperature: tau; a number.
        mining: "all", the mean over all triplets, or "semihard", where a positive is held against
            the nearest negative that is farther than it, if there is one (SimCLR, section 5.1).
        images: as in `triplet`.
        reference: as in `triplet`.
        mesh: as in `triplet`.

    Returns:
        A scalar in at least float32; 0, with gradient 0, if there is no triplet.

    Raises:
        ValueError: as `triplet`.
    """
    check_choice("nt_logistic", "mining", mining, ("all", "semihard"))
    held_against = sides("nt_logistic", z, labels, reference, "dot", True, images)
    price = logistic(temperature, z.dtype)
    mined = "closest_semihard" if mining == "semihard" else "all"
    return mined_triplets("nt_logistic", price, held_against, mined, "mean", math.inf, mesh=mesh)[0]


def nt_xent_pairs(
    z: jax.Array,
    labels: jax.Array,
    temperature: float = 0.1,
    mining: Literal["all", "semihard"] = "all",
    *,
    images: jax.Array | None = None,
    reference: Reference | None = None,
    mesh: nce.AnyMesh | None = None,
) -> jax.Array:
    """NT-Xent of each pair of an anchor and a positive against the anchor's negatives.

    ``-log(exp(s_ap / tau) / (exp(s_ap / tau) + sum_n exp(s_an / tau)))``, the mean over the pairs; other positives stay
    out of the denominator, as in pytorch-metric-learning. For two views and the numbers of the images as labels it is
    `nt_xent`.

    Args:
        z: ``float[N, D]``; normalised here, in at least float32.
        labels: ``int[N]``, as in `triplet`.
        temperature: tau; a number. The default is that of `nt_xent`; pytorch-metric-learning's is 0.07.
        mining: "all", or "semihard", which leaves out negatives that are as near as the positive, or
            nearer.
        images: as in `triplet`.
        reference: as in `triplet`.
        mesh: as in `triplet`.

    Returns:
        A scalar in at least float32, over the pairs that have a negative to be held against; 0, with
        gradient 0, if there is none.

    Raises:
        ValueError: as `triplet`.
    """
    held_against = sides("nt_xent_pairs", z, labels, reference, "dot", True, images)
    scale = float(inverse_temperature(temperature, z.dtype))
    return softmax_pairs("nt_xent_pairs", held_against, scale, mining, mesh)[0]


def triplet_counts(
    z: jax.Array,
    labels: jax.Array,
    margin: float = 0.2,
    *,
    distance: Distance | str = "l2",
    normalized: bool = True,
    images: jax.Array | None = None,
    reference: Reference | None = None,
    mesh: nce.AnyMesh | None = None,
) -> dict[str, jax.Array]:
    """How many triplets there are: "triplets", and of these "hard", "semihard" and "easy"; whole numbers.

    Arguments as in `triplet`. No gradient flows. They are exact for up to 65,537 anchors and 131,071 keys; uint32, and
    ``2**32 - 1`` where there are as many or more, or uint64 with `jax_enable_x64`.
    """
    check_numbers("triplet", margin=margin)
    held_against = sides(
        "triplet_counts", lax.stop_gradient(z), labels, reference, distance, normalized, images
    )
    sums = _over_positives(held_against, _Kinds(margin), {}, {}, mesh)
    return {name: exact_sum(value) for name, value in sums.items()}


def exact_sum(counts: jax.Array) -> jax.Array:
    """The sum of counts uint32[N], N up to 65,537: uint32, ``2**32 - 1`` for as much or more; uint64 with `jax_enable_x64`."""
    if jax.dtypes.canonicalize_dtype(jnp.uint64) == jnp.uint64:
        return jnp.sum(counts, dtype=jnp.uint64)
    # The sums of both halves of the bits fit, whatever the counts.
    half = jnp.uint32(16)
    low = jnp.sum(counts & jnp.uint32(0xFFFF), dtype=jnp.uint32)
    high = jnp.sum(counts >> half, dtype=jnp.uint32) + (low >> half)
    total = (high << half) | (low & jnp.uint32(0xFFFF))
    return jnp.where(high > jnp.uint32(0xFFFF), jnp.uint32(0xFFFFFFFF), total)


def logistic(temperature: float, dtype: jax.typing.DTypeLike) -> Logistic:
    """The price of `nt_logistic` for embeddings that are given in a dtype.

    Raises:
        ValueError: a temperature that cannot divide a cosine.
    """
    return Logistic(float(inverse_temperature(temperature, dtype)))


def mined_triplets(
    function: str,
    price: Price,
    held_against: Sides,
    mining: TripletMining | str,
    reduction: Reduction | str,
    margin: float,
    *,
    beta: float | jax.Array | None = None,
    nu: float = 0.0,
    swap: bool = False,
    key: jax.Array | None = None,
    mesh: nce.AnyMesh | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The price of the mined triplets, and what was mined.

    Args:
        function: named in errors.
        price: of a triplet.
        held_against: anchors and keys, from `sides`.
        mining: as in `triplet`.
        reduction: "nonzero" or "mean".
        margin: of the kinds of triplets.
        beta: of `Boundary`.
        nu: as in `margin_loss`.
        swap: as in `triplet`.
        key: as in `triplet`.
        mesh: as in `triplet`.

    Returns:
        The loss, and the scalars "mined_triplets", their number, and "active_triplets", the share of
        their terms that is above 0.
    """
    check_choice(function, "mining", mining, TRIPLET_MININGS)
    check_choice(function, "reduction", reduction, REDUCTIONS)
    if mining == "distance_weighted":
        if key is None:
            raise ValueError(
                f'{function}: mining="distance_weighted" draws negatives: give a key=.'
            )
        if not held_against.normalized:
            raise ValueError(
                f'{function}: mining="distance_weighted" goes by the distances of points on a sphere: expected normalized=True.'
            )
        if held_against.distance != Distance("l2"):
            raise ValueError(
                f'{function}: mining="distance_weighted" goes by the distances of points on a sphere: expected'
                f' distance="l2", got {held_against.distance.name!r}.'
            )
    count, dtype = len(held_against.anchors["z"]), held_against.dtype
    border = None if beta is None else jnp.asarray(beta, dtype)
    if border is not None:
        if border.shape not in ((), (count,)):
            raise ValueError(
                f"{function}: beta must be a number or float[{count}], one for each row of z; got"
                f" {border.dtype}{list(border.shape)}."
            )
        border = jnp.broadcast_to(border, (count,))
    if mining in ONE_TRIPLET:
        sums = _one_triplet(held_against, price, mining, border, swap, mesh)
    else:
        impl = None if key is None else str(jax.random.key_impl(key))
        term = _Triplets(price, mining, margin, swap, held_against.distance, impl)
        trained = {} if border is None else {"beta": border}
        given = {} if key is None else {"key": jax.random.key_data(key)}
        sums = _over_positives(held_against, term, trained, given, mesh)
    loss = mean_of(sums["cost"], sums["active" if reduction == "nonzero" else "mined"])
    if border is not None and nu:
        loss = loss + nu * jnp.mean(border)
    mined, active = jnp.sum(sums["mined"]), jnp.sum(sums["active"])
    metrics = {
        "mined_triplets": mined,
        "active_triplets": active / jnp.maximum(price.terms * mined, 1),
    }
    return loss, lax.stop_gradient(metrics)


def softmax_pairs(
    function: str,
    held_against: Sides,
    scale: float,
    mining: Literal["all", "semihard"] | str,
    mesh: nce.AnyMesh | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`nt_xent_pairs` of anchors and keys, their cosines times `scale`, and "mined_pairs", the pairs that have a negative."""
    check_choice(function, "mining", mining, ("all", "semihard"))
    term = _Softmax(scale, mining)
    sums = _over_positives(held_against, term, {}, {}, mesh)
    return mean_of(sums["cost"], sums["mined"]), {"mined_pairs": jnp.sum(sums["mined"])}


# ---------------------------------------------------------------------------------------------------------------------
# One triplet of each anchor
# ---------------------------------------------------------------------------------------------------------------------


def _one_triplet(
    held_against: Sides,
    price: Price,
    mining: str,
    border: jax.Array | None,
    swap: bool,
    mesh: nce.AnyMesh | None,
) -> dict[str, jax.Array]:
    """The costs ``[N]`` of the one triplet that each anchor has."""
    anchors, keys, distance, _ = held_against
    p, n, found = choose(held_against, mining, mesh)
    positive, negative = (whole(keys["z"])[whole(at)] for at in (p, n))
    d_an = distance.of_rows(anchors["z"], negative)
    if swap:
        d_an = jnp.minimum(d_an, distance.of_rows(positive, negative))
    cost, active = price(distance.of_rows(anchors["z"], positive), d_an, border)
    return {
        "cost": jnp.where(found, cost, 0),
        "active": jnp.where(found, active, 0).astype(cost.dtype),
        "mined": found.astype(cost.dtype),
    }


def choose(held_against: Sides, mining: str, mesh: nce.AnyMesh | None = None) -> Chosen:
    """The triplet of each anchor under "batch_hard" or "easy_positive", ``[N]``; no gradient flows.

    Where the distance falls as the inner product rises, batch-hard is two extremes of the rows of a similarity matrix,
    and so comes from the engine, on any number of devices; it keeps two numbers for each anchor.
    """
    anchors, keys = lax.stop_gradient((held_against.anchors, held_against.keys))
    distance = held_against.distance
    if mining == "batch_hard" and held_against.by_products:
        further = len(keys["z"]) > len(anchors["z"])
        names = ("label", "image")
        meta = {name: anchors[name] for name in names}
        stats = nce.row_stats(
            anchors["z"],
            keys["z"] if further else None,
            nce.Relation(same_label_of_valid if further else same_label),
            meta,
            {name: keys[name] for name in (*names, "valid")} if further else None,
            want=("argmax", "positive_argmin"),
            mesh=mesh,
            keys_everywhere=further,
        )
        p, n = stats["positive_argmin"], stats["argmax"]
        return Chosen(jnp.maximum(p, 0), jnp.maximum(n, 0), (p >= 0) & (n >= 0))

    mine = mining_lib.hardest if mining == "batch_hard" else mining_lib.easy_positive

    def block(anchors: PyTree, keys: PyTree) -> Chosen:
        return mine(*held(anchors, keys, distance))

    return over_anchors(block, anchors, keys, len(keys["z"]), mesh=mesh)


def same_label(queries: nce.Meta, keys: nce.Meta) -> nce.Pairs:
    """Counts the rows of other labels; rows of the anchor's label are positive, unless they are of its image.

    A row of unknown label is neither, and has neither.
    """
    other = (queries["image"] != keys["image"]) & (queries["label"] >= 0) & (keys["label"] >= 0)
    same = queries["label"] == keys["label"]
    return nce.Pairs(counted=other & ~same, positive=other & same)


def same_label_of_valid(queries: nce.Meta, keys: nce.Meta) -> nce.Pairs:
    """`same_label` among the keys that are valid."""
    pairs = same_label(queries, keys)
    return nce.Pairs(pairs.counted & keys["valid"], pairs.positive & keys["valid"])


# ---------------------------------------------------------------------------------------------------------------------
# Every positive of each anchor
# ---------------------------------------------------------------------------------------------------------------------


class _Term(Protocol):
    """What one positive of each anchor adds; a frozen dataclass."""

    def __call__(
        self, trained: PyTree, given: PyTree, p: jax.Array, on: jax.Array
    ) -> dict[str, jax.Array]:
        """Numbers ``[b]`` of the anchors, of each of which p ``i32[b]`` is a positive where on ``bool[b]``."""


@dataclasses.dataclass(frozen=True)
class _Triplets:
    """The triplets of a positive and the negatives mined for it."""

    price: Price
    mining: str
    margin: float
    swap: bool
    distance: Distance
    key_impl: str | None

    def __call__(
        self, trained: PyTree, given: PyTree, p: jax.Array, on: jax.Array
    ) -> dict[str, jax.Array]:
        """See `_Term`."""
        d, negative = trained["d"], given["negative"] & on[:, None]
        d_ap = _at(d, p)
        if self.mining == "distance_weighted":
            keys = jax.vmap(jax.random.fold_in)(self.row_keys(given), p)
            weights = mining_lib.distance_weights(d, negative, given["keys"].shape[1])
            chosen = mining_lib.draw(keys, weights)
        else:
            chosen = mining_lib.negatives_of(self.mining, d_ap, d, negative, self.margin)
        d_an = d
        if self.swap:
            z = trained["keys"]
            d_an = jnp.minimum(d, self.distance.of_pairs(z[p], z))
        beta = trained["beta"][:, None] if "beta" in trained else None
        cost, active = self.price(d_ap, d_an, beta)
        return {
            "cost": jnp.sum(jnp.where(chosen, cost, 0), axis=1),
            "active": jnp.sum(jnp.where(chosen, active, 0), axis=1, dtype=d.dtype),
            "mined": jnp.sum(chosen, axis=1, dtype=d.dtype),
        }

    def row_keys(self, given: PyTree) -> jax.Array:
        """A PRNG key of each anchor, typed ``[b]``, from its number: blocks and devices do not matter."""
        key = jax.random.wrap_key_data(given["key"], impl=self.key_impl)
        return jax.vmap(jax.random.fold_in, (None, 0))(key, given["index"])


@dataclasses.dataclass(frozen=True)
class _Softmax:
    """A positive in a softmax with negatives; distances are minus cosines."""

    sharpness: float
    mining: str

    def __call__(
        self, trained: PyTree, given: PyTree, p: jax.Array, on: jax.Array
    ) -> dict[str, jax.Array]:
        """See `_Term`."""
        d, negative = trained["d"], given["negative"] & on[:, None]
        d_ap = _at(d, p)
        if self.mining == "semihard":
            negative &= lax.stop_gradient(d > d_ap)
        some = jnp.any(negative, axis=1)
        # Of an anchor without negatives all are summed, so that no infinity is differentiated.
        seen = jnp.where(negative | ~some[:, None], -self.sharpness * d, -jnp.inf)
        cost = jax.nn.softplus(jax.nn.logsumexp(seen, axis=1) + self.sharpness * d_ap[:, 0])
        return {"cost": jnp.where(some, cost, 0), "mined": some.astype(d.dtype)}


@dataclasses.dataclass(frozen=True)
class _Kinds:
    """How many triplets of each kind."""

    margin: float

    def __call__(
        self, trained: PyTree, given: PyTree, p: jax.Array, on: jax.Array
    ) -> dict[str, jax.Array]:
        """See `_Term`."""
        d, negative = trained["d"], given["negative"] & on[:, None]
        t = d - _at(d, p)
        masks = {k: mining_lib.triplet_kind(t, k, self.margin) for k in mining_lib.KINDS}
        masks["triplets"] = jnp.ones_like(negative)
        # Floats would stop counting at 2^24.
        return {k: jnp.sum(negative & m, axis=1, dtype=jnp.uint32) for k, m in masks.items()}


def _over_positives(
    held_against: Sides,
    term: _Term,
    trained: dict[str, jax.Array],
    given: dict[str, jax.Array],
    mesh: nce.AnyMesh | None,
) -> dict[str, jax.Array]:
    """What a term says of all positives of each anchor, ``[N]``."""
    anchors, keys, distance, _ = held_against
    swap = isinstance(term, _Triplets) and term.swap
    draws = isinstance(term, _Triplets) and term.mining == "distance_weighted"

    def block(own: PyTree, whole: PyTree) -> dict[str, jax.Array]:
        d, positive, negative = held(own["anchors"], whole["keys"], distance)
        told: PyTree = {"negative": negative}
        if draws:
            told |= {
                "key": whole["key"],
                "index": own["anchors"]["index"],
                "keys": whole["keys"]["z"],
            }
        learned = {"d": d, **own["trained"]}
        if swap:
            learned["keys"] = whole["keys"]["z"]
        return _sum_over_positives(term, learned, positive, told)

    own = {"anchors": anchors, "trained": trained}
    return over_anchors(block, own, {"keys": keys, **given}, len(keys["z"]), mesh=mesh)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_over_positives(
    term: _Term, trained: PyTree, positive: jax.Array, given: PyTree
) -> dict[str, jax.Array]:
    """The sum over the positives of each anchor of what a term says: numbers ``[b]``.

    The loop is as long as the most positives of an anchor, which is known at run time only; such a loop cannot be
    reversed, so the gradient is a loop of its own.

    Args:
        term: what one positive of each anchor adds.
        trained: what gets a gradient.
        positive: ``bool[b, K]``.
        given: what does not.
    """
    like = jax.eval_shape(term, trained, given, *_shapes_of_positive(positive))
    start = jax.tree.map(lambda x: _zeros(x, positive), like)

    def add(sums: PyTree, p: jax.Array, on: jax.Array) -> PyTree:
        return jax.tree.map(jnp.add, sums, term(trained, given, p, on))

    return _each_positive(positive, start, add)


def _sum_forward(
    term: _Term, trained: PyTree, positive: jax.Array, given: PyTree
) -> tuple[PyTree, Any]:
    return _sum_over_positives(term, trained, positive, given), (trained, positive, given)


def _sum_backward(term: _Term, saved: Any, gradient: PyTree) -> tuple[Any, None, None]:
    trained, positive, given = saved

    def add(total: PyTree, p: jax.Array, on: jax.Array) -> PyTree:
        _, back = jax.vjp(lambda x: term(x, given, p, on), trained)
        return jax.tree.map(jnp.add, total, back(gradient)[0])

    return _each_positive(positive, jax.tree.map(jnp.zeros_like, trained), add), None, None


_sum_over_positives.defvjp(_sum_forward, _sum_backward)


def _each_positive(
    positive: jax.Array, start: PyTree, add: Callable[[PyTree, jax.Array, jax.Array], PyTree]
) -> PyTree:
    """Folds ``add(state, p, on)`` over the first positives of all anchors, the second ones, and so on."""
    width = positive.shape[1]
    number = jnp.arange(width, dtype=jnp.int32)[None, :]

    def step(_: jax.Array, carry: tuple[jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
        last, state = carry
        later = positive & (number > last[:, None])
        on = jnp.any(later, axis=1)
        p = jnp.argmax(later, axis=1).astype(jnp.int32)
        return jnp.where(on, p, width), add(state, p, on)

    counts = jnp.sum(positive, axis=1, dtype=jnp.int32)
    before = jnp.full_like(counts, -1)
    return lax.fori_loop(0, jnp.max(counts), step, (before, start))[1]


def _shapes_of_positive(positive: jax.Array) -> tuple[jax.ShapeDtypeStruct, ...]:
    rows = positive.shape[:1]
    return jax.ShapeDtypeStruct(rows, jnp.int32), jax.ShapeDtypeStruct(rows, bool)


def _zeros(like: jax.ShapeDtypeStruct, positive: jax.Array) -> jax.Array:
    """Zeros ``[b]`` that vary over devices as the anchors do."""
    return jnp.zeros_like(positive[:, 0], dtype=like.dtype)


def _at(d: jax.Array, p: jax.Array) -> jax.Array:
    """The distance of key p of each anchor, ``[b, 1]``."""
    here = jnp.arange(d.shape[1], dtype=jnp.int32)[None, :] == p[:, None]
    return jnp.sum(jnp.where(here, d, 0), axis=1, keepdims=True)
