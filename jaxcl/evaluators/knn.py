"""Weighted k-nearest-neighbour classification, the monitor of InstDisc and MoCo.

Each query is given the class for which its k nearest gallery examples vote, each with weight
exp(similarity / temperature) (Wu et al. 2018, section 3.4), or 1 each when the temperature is None.
Neighbours of equal similarity come in the order of the gallery; of classes with equal votes wins
the one whose nearest member is nearest.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.evaluators.base import Classes, Features

METRICS = ("cosine", "centred_cosine", "euclidean")


@dataclasses.dataclass(frozen=True)
class KnnResult:
    """Accuracies of one gallery, one set of queries and one level.

    Attributes:
        accuracy: k -> fraction of the queries given their class.
        queries: queries scored.
        gallery: gallery examples used.
        unlabelled: queries left out, having no label at this level.
        unlabelled_gallery: gallery examples left out for the same reason.
        unseen: queries whose class is not in the gallery; they are scored, as wrong.
        left_out: the ks that were asked for and are larger than the gallery.
        metric: name of the similarity.
        temperature: of the vote; None: uniform.
    """

    accuracy: dict[int, float]
    queries: int
    gallery: int
    unlabelled: int
    unlabelled_gallery: int
    unseen: int
    left_out: tuple[int, ...]
    metric: str
    temperature: float | None

    @property
    def best(self) -> tuple[int, float]:
        """The k of the highest accuracy, the smallest of equals, and that accuracy."""
        k = max(self.accuracy, key=lambda k: (self.accuracy[k], -k))
        return k, self.accuracy[k]

    def scalars(self, prefix: str = "knn/") -> dict[str, float]:
        """{prefix + "k<k>": accuracy}, for a log."""
        return {f"{prefix}k{k}": value for k, value in self.accuracy.items()}


@dataclasses.dataclass(frozen=True)
class SelectedKnn:
    """A kNN whose k and metric were chosen on validation examples.

    Attributes:
        accuracy: on the test queries.
        k: chosen.
        metric: chosen.
        validation: metric -> k -> accuracy of the validation examples in the training gallery.
        test: the whole result at the chosen k, with its counts.
    """

    accuracy: float
    k: int
    metric: str
    validation: dict[str, dict[int, float]]
    test: KnnResult

    def scalars(self, prefix: str = "knn/") -> dict[str, float]:
        """{prefix + "accuracy"|"k"|"validation": value}."""
        return {
            f"{prefix}accuracy": self.accuracy,
            f"{prefix}k": float(self.k),
            f"{prefix}validation": self.validation[self.metric][self.k],
        }


def knn(
    gallery: Features,
    queries: Features,
    level: int = -1,
    ks: Sequence[int] = (1, 5, 10, 20, 200),
    temperature: float | None = 0.1,
    metric: str = "cosine",
) -> KnnResult:
    """kNN accuracy of `queries` in `gallery` at one label level.

    Args:
        gallery: labelled examples to find neighbours among.
        queries: labelled examples to classify; none of them should be in the gallery.
        level: label level, coarse -> fine, negative from the finest.
        ks: numbers of neighbours. Those larger than the gallery are left out, which the result records.
        temperature: a neighbour of similarity s has weight exp(s / temperature); None: weight 1.
        metric: "cosine"; "centred_cosine", cosine after the gallery's mean is subtracted from
            both; "euclidean", whose similarity is the negative distance.

    Returns:
        The result with its counts.

    Raises:
        ValueError: unknown metric or level, temperature <= 0, k < 1, widths that differ, nothing
            labelled at this level on either side, or every k larger than the gallery.
    """
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature={temperature}: expected a number > 0, or None")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks={tuple(ks)}: expected numbers >= 1")
    classes = Classes.of(gallery.labels, level)
    gallery_class, query_class = classes.number(gallery.labels), classes.number(queries.labels)
    labelled, asked = gallery_class >= 0, query_class != -1
    if not labelled.any() or not asked.any():
        side = "queries" if labelled.any() else "gallery"
        raise ValueError(f"kNN at level {level}: no example of the {side} has a label there")
    used = sorted({int(k) for k in ks if k <= labelled.sum()})
    left_out = tuple(sorted({int(k) for k in ks} - set(used)))
    if not used:
        raise ValueError(
            f"ks={tuple(ks)}: all larger than the gallery of {int(labelled.sum())} examples"
        )

    similarity, index = neighbours(gallery.h[labelled], queries.h[asked], k=used[-1], metric=metric)
    votes_of = gallery_class[labelled][index]
    truth = query_class[asked]
    correct = np.zeros(len(used), np.int64)
    for rows in _chunks(len(truth), 256):
        predicted = _vote(similarity[rows], votes_of[rows], tuple(used), temperature)
        correct += (np.asarray(predicted) == truth[None, rows]).sum(1)
    return KnnResult(
        accuracy={k: float(c) / len(truth) for k, c in zip(used, correct, strict=True)},
        queries=len(truth),
        gallery=int(labelled.sum()),
        unlabelled=int((~asked).sum()),
        unlabelled_gallery=int((~labelled).sum()),
        unseen=int((truth == -2).sum()),
        left_out=left_out,
        metric=metric,
        temperature=temperature,
    )


def knn_selected(
    train: Features,
    validation: Features,
    test: Features,
    level: int = -1,
    ks: Sequence[int] = (1, 2, 5, 10, 20, 50),
    temperature: float | None = 0.1,
    metrics: Sequence[str] = ("cosine", "centred_cosine"),
    test_gallery: Features | None = None,
) -> SelectedKnn:
    """kNN with k and metric chosen on `validation`, then scored once on `test`.

    The choice is made with `train` as the gallery; the score with `test_gallery`, by default
    `train` and `validation` together. Of equal accuracies the first metric and the smallest k win.

    Raises:
        ValueError: as `knn`; no metric.
    """
    if not metrics:
        raise ValueError("metrics: expected at least one of " + ", ".join(METRICS))
    tried = {m: knn(train, validation, level, ks, temperature, m) for m in metrics}
    metric = max(metrics, key=lambda m: tried[m].best[1])
    k = tried[metric].best[0]
    gallery = train.join(validation) if test_gallery is None else test_gallery
    scored = knn(gallery, test, level, (k,), temperature, metric)
    return SelectedKnn(
        accuracy=scored.accuracy[k],
        k=k,
        metric=metric,
        validation={m: r.accuracy for m, r in tried.items()},
        test=scored,
    )


def neighbours(
    gallery: np.ndarray, queries: np.ndarray, k: int, metric: str = "cosine"
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest gallery rows of each query, nearest first, equals in the gallery's order.

    Similarities are computed in float32 at the highest matmul precision, over tiles of both sides,
    so memory does not grow with their product.

    Args:
        gallery: f[N, F].
        queries: f[M, F].
        k: 1 <= k <= N.
        metric: see `knn`. A row of zeros has cosine 0 with everything.

    Returns:
        (similarities f32[M, k], indices i32[M, k] into the gallery).

    Raises:
        ValueError: unknown metric, widths that differ, k out of range, a value that is not finite.
    """
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k={k}: expected 1 <= k <= {len(gallery)}, the size of the gallery")
    gallery, queries = prepare(gallery, queries, metric)
    euclidean = metric == "euclidean"
    found = []
    for rows in _chunks(len(queries), 1024):
        part = jnp.asarray(queries[rows])
        best = (
            jnp.full((len(part), k), -jnp.inf, part.dtype),
            jnp.zeros((len(part), k), jnp.int32),
        )
        for tile in _chunks(len(gallery), 16384):
            best = _nearest(*best, part, jnp.asarray(gallery[tile]), tile.start, euclidean)
        found.append(jax.device_get(best))
    similarity, index = (np.concatenate(side) for side in zip(*found, strict=True))
    return similarity, index


def prepare(gallery: np.ndarray, queries: np.ndarray, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Both sides f32 such that similarity is an inner product, or a distance free of cancellation.

    Raises:
        ValueError: unknown metric, widths that differ, a value that is not finite.
    """
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r}: expected one of {', '.join(METRICS)}")
    if gallery.shape[1] != queries.shape[1]:
        raise ValueError(
            f"gallery features have width {gallery.shape[1]}, queries {queries.shape[1]}"
        )
    for side, values in (("gallery", gallery), ("queries", queries)):
        if not np.isfinite(values).all():
            rows = (~np.isfinite(values)).any(1).sum()
            raise ValueError(f"{side}: {rows} of {len(values)} feature rows are not finite")
    # Distances do not depend on the origin; near the mean |a|^2 + |b|^2 - 2ab loses least.
    mean = gallery.mean(0, dtype=np.float64) if metric != "cosine" else None
    unit = metric != "euclidean"
    return _moved(gallery, mean, unit), _moved(queries, mean, unit)


def _moved(x: np.ndarray, mean: np.ndarray | None, unit: bool) -> np.ndarray:
    """f32 rows of x less the mean, of length 1 if `unit`; computed in float64, some rows at a time."""
    moved = np.empty(x.shape, np.float32)
    for rows in _chunks(len(x), 65536):
        part = x[rows].astype(np.float64)
        if mean is not None:
            part -= mean
        if unit:
            part /= np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
        moved[rows] = part
    return moved


@functools.partial(jax.jit, static_argnames="euclidean")
def _nearest(
    similarity: jax.Array,
    index: jax.Array,
    queries: jax.Array,
    tile: jax.Array,
    start: int,
    euclidean: bool,
) -> tuple[jax.Array, jax.Array]:
    """Merge one gallery tile, whose first row is number `start`, into the best k so far."""
    s = jnp.matmul(queries, tile.T, precision="highest")
    if euclidean:
        square = (queries**2).sum(1)[:, None] + (tile**2).sum(1)[None] - 2 * s
        s = -jnp.sqrt(jnp.maximum(square, 0))
    rows = jnp.broadcast_to(start + jnp.arange(len(tile), dtype=jnp.int32), s.shape)
    # top_k keeps the order of equals, and earlier tiles stand before later ones.
    best, place = jax.lax.top_k(jnp.concatenate([similarity, s], 1), similarity.shape[1])
    return best, jnp.take_along_axis(jnp.concatenate([index, rows], 1), place, 1)


@functools.partial(jax.jit, static_argnames=("ks", "temperature"))
def _vote(
    similarity: jax.Array, classes: jax.Array, ks: tuple[int, ...], temperature: float | None
) -> jax.Array:
    """Predicted classes i32[len(ks), M] from neighbours [M, K], nearest first."""
    if temperature is None:
        weight = jnp.ones_like(similarity)
    else:  # relative to the nearest: the same winner, no overflow
        weight = jnp.exp((similarity - similarity[:, :1]) / temperature)
    predicted = []
    for k in ks:
        same = classes[:, :k, None] == classes[:, None, :k]
        votes = (same * weight[:, None, :k]).sum(-1)  # of each neighbour's class
        winner = votes.argmax(1)[:, None]  # the first, so the nearest, of equals
        predicted.append(jnp.take_along_axis(classes[:, :k], winner, 1)[:, 0])
    return jnp.stack(predicted)


def _chunks(n: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]
