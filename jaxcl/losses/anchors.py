"""Anchors against keys, a block of anchors at a time: for losses that need more of a pair than an inner product.

The losses of metric learning look at distances of any kind, compare them with margins and with each other, and those of
graded similarity at scores that may be learned; they cannot be had from the log-sum-exps of `nce` alone. Here a function
sees some anchors and all keys, makes arrays ``[b, K]`` of them, and gives some numbers for each anchor (`over_anchors`).
Blocks are made anew in the backward pass, so that memory is linear in the anchors; on several devices each has its share of
the anchors, and every key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcl.losses.contrastive import normalize
from jaxcl.losses.distances import Distance
from jaxcl.losses.nce import AnyMesh, ambient_mesh
from jaxcl.losses.spread import Places, on_auto_axis, spread
from jaxcl.losses.tiles import fill_up, tile_size

PyTree = Any
T = TypeVar("T")

# Distances or scores of a block, in elements; 4 MiB in float32, of which some are there at a time.
ELEMENTS = 2**20


class Reference(NamedTuple):
    """Further keys, which are no anchors, such as the embeddings of earlier batches (XBM, Wang et al., CVPR 2020).

    Attributes:
        z: ``float[K, D]``; no gradient flows into them.
        labels: ``int[K]``; a key of negative label is neither positive nor negative of an anchor.
        valid: ``bool[K]``, the keys that are to be used; None for all.
    """

    z: jax.Array
    labels: jax.Array
    valid: jax.Array | None = None


class Held(NamedTuple):
    """What a block of anchors is held against.

    Attributes:
        d: ``[b, K]``, the distances.
        positive: ``bool[b, K]``, keys of the anchor's label, without those of its own image.
        negative: ``bool[b, K]``, keys of other labels. An anchor or a key of unknown label is of neither.
    """

    d: jax.Array
    positive: jax.Array
    negative: jax.Array


class Sides(NamedTuple):
    """Anchors and keys, as `over_anchors` takes them.

    Attributes:
        anchors: "z" ``[N, D]``, "label", "image" and "index" ``[N]``.
        keys: "z" ``[K, D]``, "label", "image" and "valid" ``[K]``; the anchors come first.
        distance: of an anchor and a key.
        normalized: whether the rows are of length 1.
    """

    anchors: dict[str, jax.Array]
    keys: dict[str, jax.Array]
    distance: Distance
    normalized: bool

    @property
    def dtype(self) -> Any:
        """Of the distances."""
        return self.anchors["z"].dtype

    @property
    def by_products(self) -> bool:
        """Whether a distance falls as the inner product of the rows rises, and hangs on nothing else."""
        name = self.distance.name
        return name == "dot" or (self.normalized and name in ("l2", "squared_l2", "cosine"))


def sides(
    function: str,
    z: jax.Array,
    labels: jax.Array,
    reference: Reference | None,
    distance: Distance | str,
    normalized: bool,
    images: jax.Array | None = None,
) -> Sides:
    """The anchors, and what they are held against: each other, and the reference.

    Args:
        function: named in errors.
        z: ``float[N, D]``.
        labels: ``int[N]``.
        reference: further keys.
        distance: a name, or a `Distance`.
        normalized: whether rows are L2-normalised first.
        images: see `image_numbers`.

    Raises:
        ValueError: arrays that do not fit, or an unknown distance; names `function`.
    """
    z, labels = rows_of(function, z, labels)
    z = prepared(z, normalized)
    both = {
        "z": z,
        "label": labels.astype(jnp.int32),
        "image": image_numbers(function, len(z), images),
    }
    anchors = {**both, "index": jnp.arange(len(z), dtype=jnp.int32)}
    keys = {**both, "valid": jnp.ones(len(z), bool)}
    if reference is not None:
        further = reference_rows(function, z, reference, normalized)
        keys = {name: jnp.concatenate([x, further[name]]) for name, x in keys.items()}
    distance = Distance(distance) if isinstance(distance, str) else distance
    return Sides(anchors, keys, distance, normalized)


def image_numbers(function: str, rows: int, images: jax.Array | None) -> jax.Array:
    """What rows are of, ``i32[N]``: two rows of one image are neither positive nor negative of each other.

    Args:
        function: named in errors.
        rows: N.
        images: ``int[N]``, from 0 on; None: every row is an image of its own.

    Raises:
        ValueError: they are not N whole numbers.
    """
    if images is None:
        return jnp.arange(rows, dtype=jnp.int32)
    _check_int32(function, "images", images)
    images = jnp.asarray(images)
    if images.shape != (rows,) or not jnp.issubdtype(images.dtype, jnp.integer):
        raise ValueError(
            f"{function}: images must be int[{rows}], one for each row of z; got {images.dtype}"
            f"{list(images.shape)}."
        )
    return images.astype(jnp.int32)


def prepared(z: jax.Array, normalized: bool) -> jax.Array:
    """Embeddings in at least float32, normalised if they are to be."""
    return normalize(z) if normalized else z.astype(jnp.promote_types(z.dtype, jnp.float32))


def reference_rows(
    function: str, z: jax.Array, reference: Reference, normalized: bool
) -> dict[str, jax.Array]:
    """A reference as keys, none of which is an anchor.

    Raises:
        ValueError: arrays that do not fit.
    """
    further, labels = jnp.asarray(reference.z), jnp.asarray(reference.labels)
    count = labels.size
    valid = jnp.ones(count, bool) if reference.valid is None else jnp.asarray(reference.valid)
    if (
        further.shape != (count, z.shape[1])
        or not jnp.issubdtype(further.dtype, jnp.floating)
        or valid.dtype != bool
        or labels.ndim != 1
        or not jnp.issubdtype(labels.dtype, jnp.integer)
        or valid.shape != labels.shape
    ):
        raise ValueError(
            f"{function}: reference must be z float[K, {z.shape[1]}], labels int[K] and valid bool[K]; got "
            f"{further.dtype}{list(further.shape)}, {labels.dtype}{list(labels.shape)} and {valid.dtype}{list(valid.shape)}."
        )
    return {
        "z": lax.stop_gradient(prepared(further, normalized)).astype(z.dtype),
        "label": labels.astype(jnp.int32),
        "image": jnp.full(count, -1, jnp.int32),
        "valid": valid,
    }


def held(anchors: dict[str, jax.Array], keys: dict[str, jax.Array], distance: Distance) -> Held:
    """The distances of some anchors to all keys, and which are of their labels."""
    label = anchors["label"][:, None]
    same = label == keys["label"][None, :]
    other = (anchors["image"][:, None] != keys["image"][None, :]) & keys["valid"][None, :]
    other &= (label >= 0) & (keys["label"][None, :] >= 0)
    return Held(distance.of_pairs(anchors["z"], keys["z"]), other & same, other & ~same)


def over_anchors(
    block: Callable[[Any, Any], T],
    anchors: PyTree,
    whole: PyTree,
    columns: int,
    *,
    mesh: AnyMesh | None = None,
    axis: str = "data",
) -> T:
    """``block(anchors, whole)`` for all anchors, some at a time.

    Args:
        block: a function of leaves ``[b, ...]`` of the anchors and all of `whole`, to leaves ``[b, ...]``, each anchor by
            itself; it closes over no arrays. Anchors of zeros, which may fill up the last block, must give finite
            values and gradients.
        anchors: leaves ``[N, ...]``.
        whole: what each block needs all of, such as the keys, or the parameters of what scores them.
        columns: how many elements a block makes for each anchor.
        mesh: over whose axis `axis` the anchors are, or are to be, sharded; None takes the mesh set by
            `jax.set_mesh`, if any.
        axis: name of that axis.

    Raises:
        ValueError: the anchors do not divide over the devices.
    """
    mesh = ambient_mesh(axis, anchors) if mesh is None else mesh
    count = len(jax.tree.leaves(anchors)[0])
    devices = 1 if mesh is None else mesh.shape[axis]
    if count % devices:
        raise ValueError(
            f'{count} anchors do not divide over the {devices} devices of mesh axis "{axis}"; change the batch.'
        )

    def share(whole: PyTree, anchors: PyTree) -> T:
        own = len(jax.tree.leaves(anchors)[0])
        size = tile_size(own, max(1, ELEMENTS // max(1, columns)))
        once = jax.checkpoint(lambda some: block(some, whole))
        if size >= own:
            return once(anchors)
        cut = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), fill_up(anchors, size))
        out = lax.map(once, cut)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:own], out)

    def run(mesh: AnyMesh | None, whole: PyTree, anchors: PyTree) -> T:
        places = Places(mesh if devices > 1 else None, axis, ring=False, keys_everywhere=True)
        return spread(places, share, (whole,), (anchors,))

    return on_auto_axis(run, mesh, axis, True, whole, anchors)


def rows_of(function: str, z: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Embeddings ``[N, D]`` and their labels ``[N]`` as arrays, which may come as lists.

    Raises:
        ValueError: it is not that; names `function`, what was expected and what came.
    """
    _check_int32(function, "labels", labels)
    z, labels = jnp.asarray(z), jnp.asarray(labels)
    if z.ndim != 2 or 0 in z.shape or not jnp.issubdtype(z.dtype, jnp.floating):
        raise ValueError(
            f"{function}: z must be float[rows, features], neither of them 0; got {z.dtype}{list(z.shape)}."
        )
    if labels.shape != z.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"{function}: labels must be int[{len(z)}], one for each row of z; got {labels.dtype}"
            f"{list(labels.shape)}."
        )
    return z, labels


def _check_int32(function: str, name: str, numbers: Any) -> None:
    """Refuses what JAX would wrap around without a word; numbers that it already holds are as wide as it made them."""
    if not isinstance(numbers, np.ndarray) or numbers.dtype.kind not in "iu" or not numbers.size:
        return
    least, most = int(numbers.min()), int(numbers.max())
    if least < -(2**31) or most >= 2**31:
        raise ValueError(
            f"{function}: {name} must fit 32 bits; got {least} to {most}: number them from 0 on, as"
            " numpy.unique(..., return_inverse=True) does."
        )


def check_choice(function: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses a value that is none of the choices.

    Raises:
        ValueError: names `function`, the argument and the choices.
    """
    if value not in choices:
        known = ", ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{function}: {name} must be one of {known}, got {value!r}.")


def mean_of(total: jax.Array, count: jax.Array) -> jax.Array:
    """Sums over anchors as a mean: ``sum(total) / sum(count)``, and 0, with gradient 0, of nothing."""
    return jnp.sum(total) / jnp.maximum(jnp.sum(lax.stop_gradient(count)), 1)
