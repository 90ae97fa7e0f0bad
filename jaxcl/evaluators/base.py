"""What every evaluator starts from: features of a data set, taken once from a frozen network.

An evaluator sees `Features` only, so that the trained encoder, the untrained one and the raw
pixels are scored by the same code on the same examples.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxcl.views import EvalView, as_float

Encode = Callable[[Any, jax.Array], jax.Array]
"""(variables, images f[N,h,w,C] in [0,1]) -> features f[N,F]."""

Batches = Iterable[Mapping[str, np.ndarray]]
"""Dicts with "image" u8 or float [b,h,w,C], "label" i32[b,L], when padded "mask" bool[b], and maybe "index" i32[b]."""

Extractor = Callable[[Any, Batches], "Features"]
"""(variables, batches) -> features of all the examples of the batches, in their order."""

Alter = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array | None]]
"""(images f[b,H,W,C] in [0,1], index i32[b]) -> (images of the same shape, labels i32[b,L] to take
the place of the batch's, or None). A pure function: an example is altered alike in every batch."""


PIXEL_BYTES = 2**30
"""Of the raw pixels of all the images that are scored, as features; for more, the images are reduced."""

PIXEL_SIDE = 32
"""Of these reduced images, in pixels: about as many numbers as an encoder gives."""


TOP = 5
"""Of the top-5 accuracy."""

MANY = 10
"""From so many classes on it is scored: of fewer it says little."""


class NothingToScore(ValueError):
    """The data do not have what an evaluator asks about; the text says what is missing."""


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of a data set and its labels, on the host.

    Attributes:
        h: f32[N, F], one row an example.
        labels: i32[N, L], coarse -> fine; -1 where an example has no label at a level.
        index: i64[N], which example of its source each row is: those that cannot be read have none.
            None where that is not known.
    """

    h: np.ndarray
    labels: np.ndarray
    index: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.h.ndim != 2 or self.labels.ndim != 2 or len(self.h) != len(self.labels):
            raise ValueError(
                "Features: expected h[N,F] and labels[N,L] with the same N, got "
                f"h{list(self.h.shape)} and labels{list(self.labels.shape)}"
            )
        if not np.issubdtype(self.labels.dtype, np.integer):
            raise ValueError(f"Features: labels must be integers, got {self.labels.dtype}")
        if self.index is not None and self.index.shape != (len(self.h),):
            raise ValueError(
                f"Features: expected index[{len(self.h)}], got index{list(self.index.shape)}"
            )

    def __len__(self) -> int:
        return len(self.h)

    @property
    def levels(self) -> int:
        """Number of label levels."""
        return self.labels.shape[1]

    def take(self, rows: np.ndarray) -> Features:
        """The given rows (indices, or a bool mask), in that order."""
        index = None if self.index is None else self.index[rows]
        return Features(self.h[rows], self.labels[rows], index)

    def join(self, other: Features) -> Features:
        """These rows, then those of `other`, which may be of another source: the rows have no index then."""
        return Features(
            np.concatenate([self.h, other.h]), np.concatenate([self.labels, other.labels])
        )


def level_index(levels: int, level: int) -> int:
    """A level as a number in [0, levels); negative ones count from the finest.

    Raises:
        ValueError: there is no such level.
    """
    if not -levels <= level < levels:
        raise ValueError(
            f"level={level}: the labels have {levels} level(s); "
            f"give one of {list(range(levels))}, or a negative one counted from the finest"
        )
    return level % levels


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a gallery at one level, as consecutive numbers.

    A class is the whole path down to the level, so that a name which occurs under two parents
    makes two classes.

    Attributes:
        paths: i32[C, level + 1], sorted; class c is row c.
    """

    paths: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, level: int) -> Classes:
        """The classes that occur in labels i32[N, L] at a level; paths with a -1 are left out."""
        paths = labels[:, : level_index(labels.shape[1], level) + 1]
        return cls(np.unique(paths[(paths >= 0).all(1)], axis=0))

    def __len__(self) -> int:
        return len(self.paths)

    def number(self, labels: np.ndarray) -> np.ndarray:
        """Class numbers i32[N] of labels i32[N, L].

        -1: the example has no label at this level. -2: it has one that is not among the classes.
        """
        paths = labels[:, : self.paths.shape[1]]
        _, inverse = np.unique(np.concatenate([self.paths, paths]), axis=0, return_inverse=True)
        inverse = inverse.reshape(-1)
        known, own = inverse[: len(self.paths)], inverse[len(self.paths) :]
        lookup = np.full(int(np.max(inverse, initial=-1)) + 1, -2, np.int32)
        lookup[known] = np.arange(len(self.paths), dtype=np.int32)
        return np.where((paths < 0).any(1), np.int32(-1), lookup[own]).astype(np.int32)


def shared_levels(names: Sequence[str], gallery: np.ndarray, queries: np.ndarray) -> dict[str, int]:
    """The levels worth scoring: at least two classes, and some queries of those classes.

    Args:
        names: of the levels.
        gallery: i32[N, L], labels that are learned from.
        queries: i32[M, L], labels that are asked for.

    Returns:
        name -> column.
    """
    shared = {}
    for level, name in enumerate(names):
        classes = Classes.of(gallery, level)
        if len(classes) > 1 and (classes.number(queries) >= 0).any():
            shared[name] = level
    return shared


def comparable_levels(names: Sequence[str], labels: np.ndarray) -> dict[str, int]:
    """The levels at which examples can be compared among themselves: name -> column.

    At such a level there are two classes or more, and one of them at least has two examples.

    Args:
        names: of the levels.
        labels: i32[N, L].
    """
    comparable = {}
    for level, name in enumerate(names):
        classes = Classes.of(labels, level)
        numbers = classes.number(labels)
        if len(classes) > 1 and np.max(np.bincount(numbers[numbers >= 0])) > 1:
            comparable[name] = level
    return comparable


def score(predicted: np.ndarray, truth: np.ndarray) -> tuple[float, int, int, int]:
    """(accuracy, examples scored, examples without a label, examples of an unseen class).

    Args:
        predicted: class numbers [N].
        truth: those of `Classes.number`; -1 is not scored, -2 is scored, as wrong.

    Raises:
        ValueError: no example has a label.
    """
    asked = truth != -1
    if not asked.any():
        raise ValueError("no example to score has a label at this level")
    correct = predicted[asked] == truth[asked]
    return float(correct.mean()), int(asked.sum()), int((~asked).sum()), int((truth == -2).sum())


def top_score(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """The share of the examples whose class has one of the `TOP` highest scores; None of fewer than `MANY` classes.

    Of equal scores the first counts as the higher one, as argmax has it.

    Args:
      scores: f[N, C], logits.
      truth: as in `score`, which leaves out and counts as wrong the same examples.
    """
    classes = scores.shape[1]
    asked = truth != -1
    if classes < MANY or not asked.any():
        return None
    scores, truth = scores[asked], truth[asked]
    own = scores[np.arange(len(scores)), np.maximum(truth, 0)][:, None]
    earlier = np.arange(classes) < truth[:, None]
    # What is not a number is not among the highest.
    above = (~(scores <= own) | ((scores == own) & earlier)).sum(1)
    return float(((above < TOP) & (truth >= 0)).mean())


def make_extractor(
    encode: Encode,
    view: Callable[[jax.Array], jax.Array] | None = None,
    sharding: NamedSharding | None = None,
) -> Extractor:
    """A function that runs a frozen network over a data set; compiled once, for any variables.

    Args:
        encode: (variables, images f[N,h,w,C] in [0,1]) -> f[N,F]; pure, evaluation mode.
        view: the evaluation preprocessing of a batch f[N,H,W,C] in [0,1] (resize, centre crop),
            run inside the same compiled call. None: the images as they are.
        sharding: where to put a batch [N, ...], its first axis split over devices. If these are
            of several processes, each is given its own rows of each batch, the same number, and
            gets the features of all. None: the default device.

    Returns:
        extract(variables, batches) -> Features. Batches may be padded, with "mask" false on the
        padding, or end with a smaller one: the features hold each real example once, in order, and
        its "index" if the batches have that.
        It raises ValueError when the batches hold no example or the images are neither uint8 nor
        floating point.
    """
    replicated = None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())
    devices = 1 if sharding is None else len(sharding.addressable_devices)

    def features(variables: Any, rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
        images = as_float(rows["image"])
        h = encode(variables, images if view is None else view(images))
        if h.ndim != 2:
            raise ValueError(f"encode must return [N, F], got shape {h.shape}")
        # The other columns go along, so that every process gets those of all rows in one order.
        others = {name: column for name, column in rows.items() if name != "image"}
        return {"h": h.astype(jnp.promote_types(h.dtype, jnp.float32)), **others}

    compiled = jax.jit(features, out_shardings=replicated)

    def extract(variables: Any, batches: Batches) -> Features:
        computed: list[dict[str, jax.Array]] = []  # at most two batches, on devices
        found: list[dict[str, np.ndarray]] = []
        size = 0
        for batch in batches:
            rows = _columns(batch)
            # One size for all batches: one compilation.
            size = max(size, -(-len(rows["image"]) // devices) * devices)
            computed.append(compiled(variables, _place(rows, size, sharding)))
            if len(computed) > 1:  # one batch is computed while the next one is read
                found.append(_fetch(computed.pop(0)))
        found += map(_fetch, computed)
        if not sum(len(part["h"]) for part in found):
            raise ValueError("no examples to take features of: the batches are empty")
        index = None
        if all("index" in part for part in found):
            index = np.concatenate([part["index"] for part in found]).astype(np.int64)
        h, labels = (np.concatenate([part[key] for part in found]) for key in ("h", "label"))
        return Features(h, labels, index)

    return extract


def raw_pixels(
    batches: Batches,
    view: Callable[[jax.Array], jax.Array] | None = None,
    sharding: NamedSharding | None = None,
) -> Features:
    """The pixels themselves as features: the floor under every encoder; see `make_extractor`."""
    return _pixels(view, sharding)(None, batches)


@functools.lru_cache(maxsize=4)
def _pixels(
    view: Callable[[jax.Array], jax.Array] | None, sharding: NamedSharding | None
) -> Extractor:
    return make_extractor(lambda _, images: images.reshape(len(images), -1), view, sharding)


def pixel_view(
    view: EvalView | None, shape: tuple[int, int, int], examples: int, say: Callable[[str], None]
) -> EvalView | None:
    """The view of the images whose raw pixels are to be features.

    It is the given one, unless the features of all the images would take more than `PIXEL_BYTES`: they
    are then those of images reduced to a side of `PIXEL_SIDE` pixels.

    Args:
        view: that of the encoders, or None for whole images.
        shape: (h, w, C) of the images after the view.
        examples: number of images, in all the splits that are compared.
        say: gets a line where they are reduced.
    """
    size = 4 * examples * math.prod(shape)
    if size <= PIXEL_BYTES or max(shape[:2]) <= PIXEL_SIDE:
        return view
    say(
        f"raw pixels are those of images reduced to {PIXEL_SIDE} pixels a side: of {examples:,} images of "
        f"{shape[0]} x {shape[1]} they would take {size / 2**30:.1f} GiB"
    )
    return EvalView(PIXEL_SIDE, 1.0 if view is None else view.fraction)


def altered(batches: Batches, alter: Alter) -> Iterator[dict[str, np.ndarray]]:
    """The same batches with altered images, for the same extractor.

    Images of 8 bits stay such (rounded): what is altered is the image, as if it had been stored so.

    Args:
        batches: with "index" i32[b].
        alter: what to do; best compiled.
    """
    for batch in batches:
        images, labels = alter(as_float(batch["image"]), jnp.asarray(batch["index"]))
        if batch["image"].dtype == np.uint8:
            images = jnp.round(jnp.clip(images, 0, 1) * 255).astype(jnp.uint8)
        label = batch["label"] if labels is None else np.asarray(labels)
        yield {**batch, "image": np.asarray(images), "label": label}


def _columns(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of a batch, what features are made of."""
    rows = {"image": np.asarray(batch["image"]), "label": np.asarray(batch["label"], np.int32)}
    rows["mask"] = np.asarray(batch.get("mask", np.ones(len(rows["image"]), bool)), bool)
    if "index" in batch:
        rows["index"] = np.asarray(batch["index"], np.int32)
    return rows


def _place(
    rows: Mapping[str, np.ndarray], size: int, sharding: NamedSharding | None
) -> dict[str, jax.Array]:
    """Columns [b, ...], this process's rows, on the devices, filled up to `size` with masked ones."""
    placed = {}
    for name, column in rows.items():
        padded = np.zeros((size, *column.shape[1:]), column.dtype)
        padded[: len(column)] = column
        if sharding is None:
            placed[name] = jnp.asarray(padded)
        else:
            placed[name] = jax.make_array_from_process_local_data(sharding, padded)
    return placed


def _fetch(computed: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Columns on the host, without the masked rows."""
    rows = {name: np.asarray(column) for name, column in computed.items()}
    mask = rows.pop("mask")
    return {name: column[mask] for name, column in rows.items()}
