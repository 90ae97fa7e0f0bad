"""Hierarchy: are examples the nearer, the more of their label path they share?

The depth of a pair is the number of leading labels that its two examples share: 0 for nothing, L
for the same leaf. Three figures, all of cosine distance (1 - cosine):

    distance      mean over the pairs of each depth. It should fall with depth: same leaf < same
                  parent < different.
    violations    of a query and two others, one at depth d and one at depth d - 1, the share where
                  the deeper one is not the nearer one; a mean over queries. 0 is a hierarchy that
                  is kept, 0.5 is chance. Equal distances violate it.
    precision@k   hierarchical precision (Deng, Berg and Fei-Fei 2011): the depths of the k nearest,
                  summed, over the largest sum that any k examples could have.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.evaluators.base import Classes, Features, NothingToScore
from jaxcl.evaluators.knn import prepare
from jaxcl.evaluators.retrieval import numbers_of_a_pair, rows_at_once, scored
from jaxcl.losses import Scoring

KS = (1, 10, 50)

QUERIES = 10_000
"""Most queries for violations and precision, which sort the whole set for each query."""


@dataclasses.dataclass(frozen=True)
class HierarchyResult:
    """How far one set of features keeps its label tree. Index d is a depth, 0 to L.

    Attributes:
        distance: mean cosine distance of the pairs at each depth; NaN where there is no such pair.
        pairs: number of those pairs.
        violations: at each depth d >= 1 the share of (query, depth d, depth d - 1) in the wrong
            order, NaN where there is none; index 0 is NaN.
        violation: the share over all (query, deeper, less deep), whatever the two depths.
        precision: k -> hierarchical precision.
        queries: for violations and precision.
        examples: compared with.
        unlabelled: examples left out, having no label at the coarsest level.
        metric: "cosine" or "centred_cosine".
    """

    distance: tuple[float, ...]
    pairs: tuple[int, ...]
    violations: tuple[float, ...]
    violation: float
    precision: dict[int, float]
    queries: int
    examples: int
    unlabelled: int
    metric: str

    @property
    def kept(self) -> bool:
        """Whether the mean distance falls with every depth at which there are pairs."""
        known = [d for d in self.distance if not np.isnan(d)]
        return all(deeper < other for other, deeper in itertools.pairwise(known))

    def relative(self, depth: int) -> float:
        """Mean distance at a depth over that of the least deep pairs; comparable over networks."""
        known = [d for d in self.distance if not np.isnan(d)]
        return self.distance[depth] / known[0] if known[0] > 0 else float("nan")


def hierarchy(
    features: Features,
    ks: Sequence[int] = KS,
    metric: str = "cosine",
    limit: int = QUERIES,
    seed: int = 0,
    scoring: Scoring | None = None,
) -> HierarchyResult:
    """The three figures of labelled examples among themselves.

    Distances are over all pairs, in time and memory linear in the examples: the sum over the pairs
    of a class is that of its summed vector with itself. Violations and precision rank all examples
    for each query, a few queries at a time.

    Args:
        features: labelled examples; those without a label at the coarsest level are left out.
        ks: depths of the precision; those larger than the number of other examples are left out.
        metric: "cosine", or "centred_cosine" after the mean is subtracted.
        limit: most queries of violations and precision; of more, so many are drawn.
        seed: of that draw.
        scoring: what violations and precision go by, in the place of the metric.

    Raises:
        NothingToScore: all pairs have the same depth.
        ValueError: metric without an inner product, k or limit < 1, values that are not finite.
    """
    if metric not in ("cosine", "centred_cosine"):
        raise ValueError(f"metric={metric!r}: expected cosine or centred_cosine")
    if not ks or min(ks) < 1 or limit < 1:
        raise ValueError(f"ks={tuple(ks)}, limit={limit}: expected numbers >= 1")
    if not features.levels:
        raise NothingToScore("hierarchy: the examples have no labels")
    rows = np.flatnonzero(features.labels[:, 0] >= 0)
    if len(rows) < 2:
        raise NothingToScore(f"hierarchy: {len(rows)} labelled examples make no pair")
    labelled = features.take(rows)
    paths = np.stack([_path_numbers(labelled.labels, level) for level in range(features.levels)], 1)
    x, _ = prepare(labelled.h, labelled.h[:0], metric)
    distance, pairs = _distances(x, paths)
    if np.count_nonzero(pairs) < 2:
        raise NothingToScore(
            f"hierarchy: the pairs of {len(rows)} labelled examples are all at one depth of the "
            "tree; at least two classes are needed, and one with two examples"
        )
    asked = np.arange(len(rows))
    if len(asked) > limit:
        asked = np.sort(np.random.default_rng(seed).choice(len(rows), limit, replace=False))
    used = tuple(sorted({int(k) for k in ks if k < len(rows)}))
    if scoring is not None:
        x = labelled.h
    scores = _ranked(x, paths, asked, used, scoring)
    with np.errstate(invalid="ignore"):
        wrong = np.nansum(scores, 0, dtype=np.float64) / (~np.isnan(scores)).sum(0)
    depths = features.levels
    return HierarchyResult(
        distance=tuple(distance.tolist()),
        pairs=tuple(pairs.tolist()),
        violations=(float("nan"), *wrong[:depths].tolist()),
        violation=float(wrong[depths]),
        precision=dict(zip(used, wrong[depths + 1 :].tolist(), strict=True)),
        queries=len(asked),
        examples=len(rows),
        unlabelled=len(features) - len(rows),
        metric=metric,
    )


def _path_numbers(labels: np.ndarray, level: int) -> np.ndarray:
    """Class numbers at a level; an example without a label there has a number of its own."""
    classes = Classes.of(labels, level)
    number = classes.number(labels)
    return np.where(number >= 0, number, len(classes) + np.arange(len(labels))).astype(np.int32)


def _distances(x: np.ndarray, paths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean cosine distance f64[L + 1], number of pairs i64[L + 1]) at each depth."""
    count = len(x)
    own = (x.astype(np.float64) ** 2).sum()
    total, pairs = [], []  # of the pairs that share at least so many levels
    for number in (np.zeros(count, int), *paths.T):
        _, number, size = np.unique(number, return_inverse=True, return_counts=True)
        order = np.argsort(number, kind="stable")
        starts = np.cumsum(size) - size
        square = 0.0
        for first in range(0, x.shape[1], 64):  # columns at a time: no second copy of x
            columns = x[:, first : first + 64].astype(np.float64)[order]
            square += (np.add.reduceat(columns, starts) ** 2).sum()
        total.append((square - own) / 2)
        pairs.append(int((size * (size - 1) // 2).sum()))
    exactly = np.append(-np.diff(pairs), pairs[-1])
    cosine = np.append(-np.diff(total), total[-1])
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(exactly > 0, 1 - cosine / exactly, np.nan)
    return mean, exactly


def _ranked(
    x: np.ndarray,
    paths: np.ndarray,
    asked: np.ndarray,
    ks: tuple[int, ...],
    scoring: Scoring | None,
) -> np.ndarray:
    """f32[M, L + 1 + len(ks)]: violations at each depth >= 1, over all depths, and precisions."""
    items = jnp.asarray(x), jnp.asarray(paths)
    size = rows_at_once(len(x) * numbers_of_a_pair(scoring, x.shape[1]))
    done = []
    for start in range(0, len(asked), size):
        part = asked[start : start + size]
        rows = np.pad(part, (0, size - len(part)), mode="edge")
        found = _score(rows, *items, ks=ks, scoring=scoring)
        done.append(np.asarray(found)[: len(part)])
    return np.concatenate(done)


@functools.partial(jax.jit, static_argnames=("ks", "scoring"))
def _score(
    rows: jax.Array,
    items: jax.Array,
    paths: jax.Array,
    *,
    ks: tuple[int, ...],
    scoring: Scoring | None,
) -> jax.Array:
    """The numbers of `_ranked` for the items of some rows i32[q]; NaN where there is nothing."""
    levels = paths.shape[1]
    far = -scored(items[rows], items, scoring)
    own = paths[rows]
    # A number stands for a path: who agrees at a level agrees at all the coarser ones.
    depth = sum(
        (own[:, level, None] == paths[None, :, level]).astype(jnp.int32) for level in range(levels)
    )
    # Of equal distances the less deep one first. The query itself comes last, at no depth.
    itself = jnp.arange(len(items)) == rows[:, None]
    far, depth = jnp.where(itself, jnp.inf, far), jnp.where(itself, -1, depth)
    _, ranked = jax.lax.sort((far, depth), num_keys=2)

    def wrong(deeper: jax.Array, other: jax.Array) -> jax.Array:
        """Share of the pairs (deeper, other) in which the other comes first, and their number."""
        before = jnp.cumsum(other, axis=1) / jnp.maximum(other.sum(1, keepdims=True), 1)
        pairs = deeper.sum(1) * other.sum(1).astype(before.dtype)
        share = jnp.where(deeper, before, 0).sum(1) / jnp.maximum(deeper.sum(1), 1)
        return jnp.stack([share, pairs])

    adjacent = [wrong(ranked == d, ranked == d - 1) for d in range(1, levels + 1)]
    # Over all depths: each pair of a deeper and any less deep example once.
    every = jnp.stack(
        [wrong(ranked == d, (ranked < d) & (ranked >= 0)) for d in range(1, levels + 1)]
    )
    share = (every[:, 0] * every[:, 1]).sum(0) / jnp.maximum(every[:, 1].sum(0), 1)
    columns = [*adjacent, jnp.stack([share, every[:, 1].sum(0)])]
    if ks:
        deepest = max(ks)
        found = jnp.cumsum(ranked[:, :deepest], axis=1)
        best = jnp.cumsum(jax.lax.top_k(depth, deepest)[0], axis=1)
        # A query whose best is 0 shares nothing with anyone.
        columns += [
            jnp.stack([found[:, k - 1] / jnp.maximum(best[:, k - 1], 1), best[:, k - 1]])
            for k in ks
        ]
    return jnp.stack(
        [jnp.where(count > 0, share, jnp.nan).astype(jnp.float32) for share, count in columns], 1
    )
