"""Losses with a trained vector for each class, its proxy or the weights of its classifier: ``[C, D]``.

A row is held against the proxies, through the engine, and never against other rows, so that the time is linear in the
batch. Every device has all proxies; they get a gradient. They start as `random_proxies` makes them, need a learning rate of
their own, with Adam about 1e-2 whatever the network's, and no weight decay. Labels are numbers of proxies; a row of negative
label is left out. A label beyond the proxies is refused where the labels are known, and where they are traced, as under
`jax.jit`, it makes the loss NaN, and its gradient.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.losses import nce
from jaxcl.losses.anchors import check_choice, mean_of, prepared, rows_of
from jaxcl.losses.limits import check_numbers
from jaxcl.losses.spread import whole
from jaxcl.losses.tiles import fill_up

NCAForm = Literal["all", "others"]


def random_proxies(
    key: jax.Array, classes: int, features: int, dtype: Any = jnp.float32
) -> jax.Array:
    """Random proxies ``[classes, features]`` of about length 1."""
    return jax.random.normal(key, (classes, features), dtype) / math.sqrt(features)


def proxy_nca(
    z: jax.Array,
    labels: jax.Array,
    proxies: jax.Array,
    scale: float = 1.0,
    denominator: NCAForm = "all",
    *,
    precision: Any = "highest",
    impl: nce.Impl = "auto",
    mesh: nce.AnyMesh | None = None,
) -> jax.Array:
    """Proxy-NCA: ``-log softmax(-scale d^2)`` of a row's own proxy (Movshovitz-Attias et al., ICCV 2017).

    Args:
        z: ``float[N, D]``; normalised here, in at least float32.
        labels: ``int[N]`` below C; a row of negative label is left out.
        proxies: ``float[C, D]``; normalised here.
        scale: multiplies the squared distances.
        denominator: "all" proxies, a softmax (pytorch-metric-learning), or the "others", without the
            own one (the paper's equation 4), where the loss may be below 0.
        precision: of the similarity product, as in `jax.numpy.matmul`.
        impl: "dense" or "tiled" (`jaxcl.losses.nce`); "auto" chooses.
        mesh: the devices over whose axis "data" the rows are sharded; None takes the mesh set by
            `jax.set_mesh`, if any.

    Returns:
        A scalar in at least float32, the mean over the rows with a label; 0 without any; NaN if a traced
        label is not below C.

    Raises:
        ValueError: an unknown choice, a number that cannot be (`jaxcl.losses.limits`), or arrays that
            do not fit; a label that is not below C.
    """
    check_choice("proxy_nca", "denominator", denominator, ("all", "others"))
    check_numbers("proxy_nca", scale=scale)
    rows, labels, centres = _both("proxy_nca", z, labels, proxies)
    # d^2 = 2 - 2 s: what is the same for all proxies cancels in the softmax.
    sharpness = 2 * scale
    form: dict[str, Any] = {"precision": precision, "impl": impl, "mesh": mesh}
    others = _others(rows, labels, centres, sharpness, **form)
    own = sharpness * jnp.sum(rows * centres[_own(labels)], axis=1)
    known = labels >= 0
    if denominator == "all":
        cost = jax.nn.softplus(others - own)
    else:
        known = known & (others > -jnp.inf)
        cost = jnp.where(known, others, 0) - own
    return _of_proxies(mean_of(jnp.where(known, cost, 0), known), labels, centres)


def proxy_anchor(
    z: jax.Array,
    labels: jax.Array,
    proxies: jax.Array,
    margin: float = 0.1,
    alpha: float = 32.0,
    *,
    precision: Any = "highest",
    impl: nce.Impl = "auto",
    mesh: nce.AnyMesh | None = None,
) -> jax.Array:
    """Proxy-Anchor loss: the proxies are the anchors (Kim et al., CVPR 2020, equation 4).

    ``log(1 + sum exp(-alpha (s - margin)))`` over the rows of a proxy's class, the mean over the proxies that have some,
    plus ``log(1 + sum exp(alpha (s + margin)))`` over all other rows, the mean over all proxies.

    Args:
        z: ``float[N, D]``; normalised here, in at least float32.
        labels: ``int[N]`` below C; a row of negative label is left out.
        proxies: ``float[C, D]``; normalised here.
        margin: delta of the paper.
        alpha: the sharpness.
        precision: as in `proxy_nca`.
        impl: as in `proxy_nca`, or "ring".
        mesh: as in `proxy_nca`.

    Returns:
        A scalar in at least float32; NaN if a traced label is not below C.

    Raises:
        ValueError: as `proxy_nca`.
    """
    check_numbers("proxy_anchor", alpha=alpha, margin=margin)
    rows, labels, centres = _both("proxy_anchor", z, labels, proxies)
    count = len(centres)
    around = nce.ambient_mesh(rows=rows) if mesh is None else mesh
    # Each device has its share of the anchors, which here are proxies.
    centres = fill_up(centres, 1 if around is None else around.shape["data"])
    number = jnp.arange(len(centres), dtype=jnp.int32)
    settings: dict[str, Any] = {"precision": precision, "impl": impl, "mesh": mesh}

    def stats(want: tuple[nce.Stat, ...], scale: float) -> nce.Stats:
        found = nce.row_stats(
            centres,
            rows,
            nce.Relation(of_proxy),
            {"label": number},
            {"label": labels},
            scale=scale,
            bound=abs(scale),
            want=want,
            **settings,
        )
        return {name: whole(value)[:count] for name, value in found.items()}

    near, far = stats(("positive_lse", "positives"), -alpha), stats(("lse",), alpha)
    pull = jax.nn.softplus(near["positive_lse"] + alpha * margin)
    push = jax.nn.softplus(far["lse"] + alpha * margin)
    loss = mean_of(pull, near["positives"] > 0) + jnp.mean(push)
    return _of_proxies(loss, labels, proxies)


def arcface(
    z: jax.Array,
    labels: jax.Array,
    proxies: jax.Array,
    margin: float = 28.6,
    scale: float = 64.0,
    *,
    precision: Any = "highest",
    impl: nce.Impl = "auto",
    mesh: nce.AnyMesh | None = None,
) -> jax.Array:
    """ArcFace: cross-entropy of cosines with an angle added to the own class's (Deng et al., CVPR 2019, equation 3).

    Args:
        z: ``float[N, D]``; normalised here, in at least float32.
        labels: ``int[N]`` below C; a row of negative label is left out.
        proxies: ``float[C, D]``, the weights of the classes; normalised here.
        margin: the angle, in degrees. Where angle and margin together exceed 180, the cosine less
            ``margin * sin(margin)`` (in radians) goes on falling, as in the authors' code.
        scale: multiplies the cosines.
        precision: as in `proxy_nca`.
        impl: as in `proxy_nca`.
        mesh: as in `proxy_nca`.

    Returns:
        A scalar in at least float32, the mean over the rows with a label; 0 without any; NaN if a traced
        label is not below C.

    Raises:
        ValueError: as `proxy_nca`.
    """
    check_numbers("arcface", scale=scale, margin=margin)
    rows, labels, centres = _both("arcface", z, labels, proxies)
    others = _others(rows, labels, centres, scale, precision=precision, impl=impl, mesh=mesh)
    cosine = jnp.sum(rows * centres[_own(labels)], axis=1)
    angle = math.radians(margin)
    sine = jnp.sqrt(jnp.maximum(1 - jnp.square(cosine), jnp.finfo(cosine.dtype).eps))
    turned = cosine * math.cos(angle) - sine * math.sin(angle)
    own = jnp.where(cosine >= -math.cos(angle), turned, cosine - angle * math.sin(angle))
    known = labels >= 0
    cost = jax.nn.softplus(others - scale * own)
    return _of_proxies(mean_of(jnp.where(known, cost, 0), known), labels, centres)


def of_proxy(queries: nce.Meta, keys: nce.Meta) -> nce.Pairs:
    """Counts rows of known label that are not the proxy's; its own are positive."""
    same = queries["label"] == keys["label"]
    return nce.Pairs(counted=~same & (keys["label"] >= 0), positive=same)


def other_proxies(queries: nce.Meta, keys: nce.Meta) -> nce.Pairs:
    """Counts every proxy but the row's own; names no positives."""
    other = queries["label"] != keys["label"]
    return nce.Pairs(counted=other, positive=jnp.zeros_like(other))


def _others(
    rows: jax.Array, labels: jax.Array, centres: jax.Array, scale: float, **form: Any
) -> jax.Array:
    """The log-sum-exps ``[N]`` of the scaled cosines with all proxies but the own one."""
    stats = nce.row_stats(
        rows,
        centres,
        nce.Relation(other_proxies),
        {"label": labels},
        {"label": jnp.arange(len(centres), dtype=jnp.int32)},
        scale=scale,
        bound=abs(scale),
        want=("lse",),
        keys_everywhere=True,
        **form,
    )
    return stats["lse"]


def _of_proxies(loss: jax.Array, labels: jax.Array, proxies: jax.Array) -> jax.Array:
    """The loss, NaN if a row is of no proxy's class: indexing would give it the last proxy without a word."""
    return loss * jnp.where(jnp.any(labels >= len(proxies)), jnp.nan, 1)


def _own(labels: jax.Array) -> jax.Array:
    """The number of each row's proxy; of a row without one, the first."""
    return jnp.maximum(labels, 0)


def _both(
    function: str, z: jax.Array, labels: jax.Array, proxies: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalised rows, labels ``i32[N]`` and normalised proxies.

    Raises:
        ValueError: arrays that do not fit, or a label beyond the proxies.
    """
    z, labels = rows_of(function, z, labels)
    if proxies.ndim != 2 or proxies.shape[1] != z.shape[1] or not len(proxies):
        raise ValueError(
            f"{function}: proxies must be float[classes, {z.shape[1]}], as wide as z; got {list(proxies.shape)}."
        )
    # Traced labels have no values yet, and those on other processes' devices are not here.
    if not isinstance(labels, jax.core.Tracer) and labels.is_fully_addressable:
        highest = int(np.max(np.asarray(labels)))
        if highest >= len(proxies):
            raise ValueError(
                f"{function}: labels must be below {len(proxies)}, the number of proxies; got {highest}."
            )
    return prepared(z, True), labels.astype(jnp.int32), prepared(proxies, True)
