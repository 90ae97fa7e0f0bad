"""HiMulCon, HiConE and HiMulConE: SupCon at every level of a label tree, in one loss (Zhang et al., CVPR 2022).

A label is a path, coarse to fine. At each level the images whose paths agree down to it are drawn together, as `sup_con` does
with classes: the loss of a level is the mean over the anchors of the mean loss of their pairs,

    pair(i, p) = log sum_a exp(s_ia) - s_ip        level_l = mean_i mean_{p in P_l(i)} pair(i, p)

HiMulCon sums the levels with weights that grow with depth. HiConE sums them under a constraint: what two images pay for a coarse
label that they share is at least what images paid for a finer one, the floor. HiMulConE does both.

The paper prints the constraint as ``max(pair_l, max pair_{l-1})``. As levels count up from the coarse to the fine, and are gone
through from the fine to the coarse, that would floor a level by one that is not known yet: the authors corrected the index to
``l + 1``, and here as in their code **the floor of a level comes from the finer ones**.

The authors' code differs from their equations: it floors the means of the levels and not the pairs; it lets each finer path be
represented by one image at the next coarser level (de-duplication), which then has fewer anchors, positives and negatives; it
divides by the number of label columns, one of which is an image id; and it multiplies by temperature / 0.07. Both forms are
here, as presets of `hierarchical_con`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax

from jaxcl.losses import nce
from jaxcl.losses.anchors import check_choice
from jaxcl.losses.contrastive import _check_views, inverse_temperature, normalize

Name = Literal["himulcon", "hicone", "himulcone"]
Form = Literal["official", "paper"]
Constraint = Literal["none", "layer_mean", "pair_global", "pair_anchor"]
Penalty = Literal["exp", "pow2", "constant"]
Divisor = Literal["levels", "levels+1"]

BASE_TEMPERATURE = 0.07


class HierarchicalTerms(NamedTuple):
    """The loss and what it is made of; levels coarse to fine.

    Attributes:
        loss: scalar, ``scale * sum(weights * levels) / divisor``.
        levels: ``[L]``, the mean loss of each level after the constraint, without weight and scale.
        unconstrained: ``[L]``, the same before the constraint.
        floored: ``[L]``, the share of a level's terms that the constraint replaced: of its pairs, or
            for "layer_mean" of the one term that its mean is. 0 at the finest level.
    """

    loss: jax.Array
    levels: jax.Array
    unconstrained: jax.Array
    floored: jax.Array


def hierarchical_con(
    z: jax.Array,
    labels: jax.Array,
    temperature: float | jax.Array = 0.1,
    constraint: Constraint = "none",
    penalty: Penalty | Sequence[float] = "exp",
    dedup: bool = True,
    divisor: Divisor = "levels",
    scale: float | jax.Array = 1.0,
    *,
    detach_floor: bool = False,
    precision: Any = "highest",
    impl: nce.Impl = "auto",
    mesh: nce.AnyMesh | None = None,
    kernel: nce.Kernel = "auto",
) -> jax.Array:
    """Contrastive loss over all levels of a label tree (Zhang et al., 2022).

    The constraint, from the finest level (which has none) to the coarsest:

    * ``"none"``: HiMulCon;
    * ``"layer_mean"``, the authors' code: the mean of a level is at least that of every finer one;
    * ``"pair_global"``, the equation: each pair's loss is at least the largest of all pairs of the finer
      levels. Where that floors all, a level passes its gradient on to a single pair;
    * ``"pair_anchor"``: each pair's loss is at least the largest of its anchor's pairs of the finer levels.

    Memory is linear in the batch and shapes are static, whatever the labels. The constraints on pairs
    take a second walk over the similarities.

    Args:
        z: ``float[B, V, D]``, batch-major; normalised here, in at least float32.
        labels: ``int[B, L]``, paths coarse to fine, without an image id. Two images agree at a level
            when all their labels down to it are equal, so that a label may stand under several
            parents. From a negative label on a path is unknown: there such an image agrees with
            nothing but its own views.
        temperature: divides the cosines.
        constraint: "none", "layer_mean", "pair_global" or "pair_anchor".
        penalty: the weight of the level that is the n-th from the finest (n = 1): "exp" is
            exp(1 / n), "pow2" is 2 ** (1 / n), "constant" is 1; or the L weights, coarse to fine.
        dedup: whether each path of a level stands at the next coarser one as one image, the first in
            the order of the labels; images that are not distinguished by their labels are never
            positives twice. An image without a label at the finer level stands for itself.
        divisor: the sum over the levels is divided by their number ("levels"), or as in the authors'
            code by one more ("levels+1").
        scale: multiplies the loss; temperature / 0.07 in the authors' code.
        detach_floor: whether no gradient flows through the floors.
        precision: of the similarity product, as in `jax.numpy.matmul`.
        impl: "dense", "tiled" or "ring", the same numbers in different memory and time
            (`jaxcl.losses.nce`); "auto" chooses.
        mesh: the devices over whose axis "data" the batch is sharded; None takes the mesh set by
            `jax.set_mesh`, if any.
        kernel: what walks over the tiles of "tiled" and "ring": "xla", or "pallas" for TPU, with which
            "auto" takes one of the two; "auto" is "xla" unless `jaxcl.losses.nce.using` says otherwise.

    Returns:
        A scalar in at least float32. At each level it is the mean over all anchors that stand there;
        one without positives (V = 1) adds 0 and stays in the mean. On one level it is
        `sup_con` times the weight, over the divisor.

    Raises:
        ValueError: an unknown choice, or arrays that do not fit.
    """
    return hierarchical_terms(
        z,
        labels,
        temperature,
        constraint,
        penalty,
        dedup,
        divisor,
        scale,
        detach_floor=detach_floor,
        precision=precision,
        impl=impl,
        mesh=mesh,
        kernel=kernel,
    ).loss


def himulcon(
    z: jax.Array,
    labels: jax.Array,
    temperature: float | jax.Array = 0.1,
    form: Form = "official",
    **options: Any,
) -> jax.Array:
    """HiMulCon: all levels, the finer ones with more weight, and no constraint.

    Args:
        z: ``float[B, V, D]``.
        labels: ``int[B, L]``, coarse to fine.
        temperature: divides the cosines.
        form: "official" has the numbers of the authors' code, "paper" those of the equations; see `preset`.
        options: further keywords of `hierarchical_con`, among them those that `form` sets.
    """
    return hierarchical_con(
        z, labels, temperature, **(preset("himulcon", form, temperature) | options)
    )


def hicone(
    z: jax.Array,
    labels: jax.Array,
    temperature: float | jax.Array = 0.1,
    form: Form = "official",
    **options: Any,
) -> jax.Array:
    """HiConE: all levels with the same weight, under the constraint; arguments as for `himulcon`."""
    return hierarchical_con(
        z, labels, temperature, **(preset("hicone", form, temperature) | options)
    )


def himulcone(
    z: jax.Array,
    labels: jax.Array,
    temperature: float | jax.Array = 0.1,
    form: Form = "official",
    **options: Any,
) -> jax.Array:
    """HiMulConE: the weights of HiMulCon and the constraint of HiConE; arguments as for `himulcon`."""
    return hierarchical_con(
        z, labels, temperature, **(preset("himulcone", form, temperature) | options)
    )


def preset(name: Name, form: Form, temperature: float | jax.Array) -> dict[str, Any]:
    """The settings of `hierarchical_con` that make one of the three losses.

    Args:
        name: "himulcon", "hicone" or "himulcone".
        form: "official" is the authors' code: level means under the constraint, de-duplication,
            divisor L + 1, times temperature / 0.07. "paper" is the equations: the constraint on pairs
            (``"pair_global"``), all images at all levels, divisor L.
        temperature: of the loss, for its scale.

    Raises:
        ValueError: an unknown name or form.
    """
    check_choice("hierarchical_con", "loss", name, get_args(Name))
    check_choice(name, "form", form, get_args(Form))
    official = form == "official"
    constraint: Constraint = "layer_mean" if official else "pair_global"
    return {
        "constraint": "none" if name == "himulcon" else constraint,
        "penalty": "constant" if name == "hicone" else "exp",
        "dedup": official,
        "divisor": "levels+1" if official else "levels",
        "scale": temperature / BASE_TEMPERATURE if official else 1.0,
    }


def level_weights(levels: int, penalty: Penalty | Sequence[float]) -> tuple[float, ...]:
    """The weight of each level, coarse to fine: exp(1 / (L - l)) or the like, l from 0, or as given.

    Raises:
        ValueError: an unknown penalty, or weights that are not L numbers of 0 or more, one above 0.
    """
    if not isinstance(penalty, str):
        weights = tuple(map(float, penalty))
        if len(weights) != levels:
            raise ValueError(
                f"hierarchical_con: penalty={weights}: expected a weight for each of {levels} levels, coarse to fine"
            )
        if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
            raise ValueError(
                f"hierarchical_con: penalty={weights}: expected finite weights of 0 or more, one above 0"
            )
        return weights
    check_choice("hierarchical_con", "penalty", penalty, get_args(Penalty))
    base = {"exp": math.e, "pow2": 2.0, "constant": 1.0}[penalty]
    return tuple(base ** (1 / (levels - level)) for level in range(levels))


def hierarchical_terms(
    z: jax.Array,
    labels: jax.Array,
    temperature: float | jax.Array = 0.1,
    constraint: Constraint = "none",
    penalty: Penalty | Sequence[float] = "exp",
    dedup: bool = True,
    divisor: Divisor = "levels",
    scale: float | jax.Array = 1.0,
    *,
    detach_floor: bool = False,
    precision: Any = "highest",
    impl: nce.Impl = "auto",
    mesh: nce.AnyMesh | None = None,
    kernel: nce.Kernel = "auto",
) -> HierarchicalTerms:
    """`hierarchical_con` with what it is made of, for a log; arguments as there."""
    batch, views, features = _check_views("hierarchical_con", z)
    if labels.ndim != 2 or len(labels) != batch or not labels.shape[1]:
        raise ValueError(
            f"hierarchical_con: labels must be int[{batch}, L], the path of each image of "
            f"z{list(z.shape)}, coarse to fine; got {labels.dtype}{list(labels.shape)}."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"hierarchical_con: labels must be integers, got {labels.dtype}.")
    check_choice("hierarchical_con", "constraint", constraint, get_args(Constraint))
    check_choice("hierarchical_con", "divisor", divisor, get_args(Divisor))
    levels = labels.shape[1]
    weights = level_weights(levels, penalty)
    sharpness = inverse_temperature(temperature, z.dtype)

    group = representatives(labels)
    stands = jnp.ones((batch, levels), bool)
    if dedup:
        own = jnp.arange(batch, dtype=group.dtype)[:, None]
        stands = stands.at[:, :-1].set(group[:, 1:] == own)

    def of_rows(x: jax.Array) -> jax.Array:
        """[B, L] -> [B * V, L]; the batch axis stays outermost, and with it its sharding."""
        return jnp.broadcast_to(x[:, None], (batch, views, levels)).reshape(-1, levels)

    rows = normalize(z).reshape(-1, features)
    alive = of_rows(stands)
    meta = {
        "index": jnp.arange(batch * views, dtype=jnp.int32),
        "group": of_rows(group),
        "alive": alive,
    }
    form: dict[str, Any] = {
        "scale": sharpness,
        "bound": sharpness if isinstance(sharpness, float) else None,
        "precision": precision,
        "impl": impl,
        "mesh": mesh,
        "kernel": kernel,
    }
    on_pairs = constraint.startswith("pair") and levels > 1
    want: tuple[nce.Stat, ...] = ("lse", "positive_sum", "positives")
    stats = nce.row_stats(
        rows,
        None,
        nce.Relation(agreeing_representatives if dedup else agreeing),
        meta,
        want=(*want, "positive_min") if on_pairs else want,
        **form,
    )
    some = stats["positives"] > 0
    count = jnp.where(some, stats["positives"], 1)
    # Rows without positives may hold -inf: choose before subtracting.
    lse = jnp.where(some, stats["lse"] if dedup else stats["lse"][:, None], 0)

    def level_means(paid: jax.Array) -> jax.Array:
        """The means [L] of what the anchors [N, L] pay, over those that stand at a level."""
        total = jnp.sum(jnp.where(some, paid, 0), axis=0)
        return total / jnp.sum(alive, axis=0, dtype=total.dtype)

    unconstrained = level_means(lse - stats["positive_sum"] / count)
    means, floored = unconstrained, jnp.zeros_like(unconstrained)
    if constraint == "layer_mean":
        floor = floors_from_finer(unconstrained, detach_floor)
        means = jnp.maximum(unconstrained, floor)
        floored = (unconstrained < floor).astype(floored.dtype)
    elif on_pairs:
        worst = jnp.where(some, lse - jnp.where(some, stats["positive_min"], 0), -jnp.inf)
        if constraint == "pair_global":
            worst = jnp.broadcast_to(jnp.max(worst, axis=0), worst.shape)
        floor = floors_from_finer(worst, detach_floor)
        above, free = _above(rows, meta, lse, stats, floor, form)
        # An anchor that has no floor has no pairs under it.
        floor = jnp.where(floor == -jnp.inf, 0, floor)
        means = level_means((free * lse - above + (count - free) * floor) / count)
        pairs = jnp.sum(stats["positives"], axis=0)
        floored = (pairs - jnp.sum(free, axis=0)) / jnp.maximum(pairs, 1)
    total = jnp.sum(jnp.asarray(weights, means.dtype) * means)
    loss = scale * total / (levels + (divisor == "levels+1"))
    return HierarchicalTerms(loss, means, unconstrained, floored)


def _above(
    rows: jax.Array,
    meta: nce.Meta,
    lse: jax.Array,
    stats: nce.Stats,
    floor: jax.Array,
    form: dict[str, Any],
) -> tuple[jax.Array, jax.Array]:
    """Of each anchor's pairs whose loss is above its floor ``[N, L]``: their summed similarities, and their number.

    A second walk over the similarities, as the floors are known after the first only. At the finest
    level, which has no floor, they are what the first found.
    """
    # A pair within rounding of its floor is under it, so that its gradient, for which the
    # similarities are made anew, does not hang on how they are rounded.
    rounding = 16 * jnp.finfo(rows.dtype).eps * form["scale"]
    want: tuple[nce.Stat, ...] = ("positive_sum", "positives")
    coarser = nce.row_stats(
        rows,
        rows,
        nce.Relation(above_floor, sees_similarity=True),
        {**meta, "least": lax.stop_gradient(lse - floor - rounding)},
        meta,
        want=want,
        **form,
    )
    above, free = (jnp.concatenate([coarser[stat], stats[stat][:, -1:]], axis=1) for stat in want)
    return above, free


def representatives(labels: jax.Array) -> jax.Array:
    """Who stands for an image at each level: of all that agree with it there, the first in the order of the labels.

    Args:
        labels: ``int[B, L]``, paths coarse to fine; unknown from a negative label on.

    Returns:
        ``i32[B, L]``, numbers of images. Two images agree at a level where they have the same
        representative. The order is that of the whole paths, unknown labels first, and of equal
        paths that of the batch. An image whose path is unknown at a level stands for itself.
    """
    count, levels = labels.shape
    labels = labels.astype(jnp.int32)
    known = lax.cummin(labels, axis=1) >= 0
    number = jnp.arange(count, dtype=jnp.int32)
    keys = jnp.where(known, labels, -1)
    *columns, order = lax.sort(
        (*(keys[:, level] for level in range(levels)), number), num_keys=levels + 1
    )
    starts = number == 0
    first = []
    for column in columns:
        # A path ends where its last label changes, or its parent does.
        starts |= jnp.append(True, column[1:] != column[:-1])
        first.append(order[lax.cummax(jnp.where(starts, number, 0))])
    found = jnp.zeros_like(labels).at[order].set(jnp.stack(first, axis=1))
    return jnp.where(known, found, number[:, None])


def floors_from_finer(worst: jax.Array, detach: bool) -> jax.Array:
    """The largest value of all finer levels: ``[..., L]``, -inf at the finest level."""
    worst = lax.stop_gradient(worst) if detach else worst
    floors = [jnp.full_like(worst[..., -1], -jnp.inf)]
    for level in range(worst.shape[-1] - 1, 0, -1):
        floors.append(jnp.maximum(floors[-1], worst[..., level]))
    return jnp.stack(floors[::-1], axis=-1)


def agreeing(queries: nce.Meta, keys: nce.Meta) -> nce.Pairs:
    """Counts every row but the anchor itself; positive at a level are the rows that agree there."""
    other = queries["index"] != keys["index"]
    same = zip(queries["group"], keys["group"], strict=True)
    return nce.Pairs(other, tuple(other & (a == b) for a, b in same))


def agreeing_representatives(queries: nce.Meta, keys: nce.Meta) -> nce.Pairs:
    """`agreeing` among the rows that stand at a level."""
    other, positive = agreeing(queries, keys)
    both = tuple(other & a & b for a, b in zip(queries["alive"], keys["alive"], strict=True))
    return nce.Pairs(both, tuple(a & b for a, b in zip(both, positive, strict=True)))


def above_floor(queries: nce.Meta, keys: nce.Meta, s: jax.Array) -> nce.Pairs:
    """The pairs of each level but the finest whose loss is above their floor; not symmetric.

    Pairs that also agree one level finer are not: the floor is the largest of these, or above. Left
    to the comparison, the one that is the floor would be above it or not as it is rounded.
    """
    same = [a == b for a, b in zip(queries["group"], keys["group"], strict=True)]
    both = [a & b for a, b in zip(queries["alive"], keys["alive"], strict=True)]
    positive = tuple(
        both[level] & same[level] & ~same[level + 1] & (s < queries["least"][level])
        for level in range(len(same) - 1)
    )
    return nce.Pairs(positive, positive)
