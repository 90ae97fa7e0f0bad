"""Similarity: do the similarities of features follow those that are known of the images?

Known are the depth of the common ancestor in a label tree, as `losses.similarity.target_similarity` counts it for the training
too, or what a table says of pairs or triples (`jaxcl.data.pairs`). Of pairs of images:

    spearman, pearson   correlation, of ranks and of values, of similarity of features and known one
                        (most pairs of a tree have one depth, 0: the best possible is then below 1)
    auc                 the chance that a similar pair is scored above one that is not; ties count
                        half. Similar is of the same class at a level, or the higher one of the two
                        values of a table
and of lists, an image with others of which it is known how similar they are to it, as a mean over the lists:
    triplet_accuracy    the share of pairs of its items, one known to be more similar than the other,
                        that are scored in that order; ties are not
    ndcg                the sum of the known similarities of the items over log2(1 + rank), divided by
                        the largest that any order has (Jarvelin and Kekalainen 2002), of the whole
                        ranking or, with @k, of its first k
and of the images of a table, of which it is known that some are similar (triples, or pairs of two values):
    recall@k            the share of images with a positive of theirs among the k nearest of all images of the
                        table; of equal scores the positives come last
The similarity of features is a cosine, or what a method scores them with itself (`Scoring`); of that also what it says of a pair,
where it says anything:
    error               the mean distance of the predicted from the known similarity
    accuracy            the share of pairs whose grade it tells
    balanced_accuracy   the mean of that share over the grades, most pairs being of the lowest
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from jaxcl.data import PairTable
from jaxcl.evaluators.base import Features, NothingToScore
from jaxcl.evaluators.hierarchy import _path_numbers, hierarchy
from jaxcl.evaluators.knn import prepare
from jaxcl.evaluators.retrieval import numbers_of_a_pair, rows_at_once, scored, similarities
from jaxcl.losses import Scoring
from jaxcl.losses.similarity import depth_similarities, grade, target_similarity

Floats = npt.NDArray[np.floating]

KS = (10,)

RECALL_KS = (1, 10)

PAIRS = 2_000_000
"""Most pairs that are correlated; of more, so many are drawn."""

QUERIES = 2_000
"""Most lists of a tree, each of which is all images."""

ITEMS = 4_096
"""Most items of a list of a table; of more, so many are drawn."""


@dataclasses.dataclass(frozen=True)
class SimilarityResult:
    """How far one set of features follows what is known. NaN is what the data do not define.

    Attributes:
        spearman: rank correlation.
        pearson: correlation.
        auc: for each label level, coarse -> fine; for a table, one number.
        triplet_accuracy: mean over the lists; of a table of triples the share of the triples.
        ndcg: k -> NDCG of the first k, 0 for the whole ranking; {} for triples.
        pairs: that are correlated.
        known: pairs whose similarity is known.
        lists: that are ordered, or triples.
        examples: images among which the pairs are.
        unlabelled: images left out, having no label at the coarsest level.
        metric: the similarity of features.
        missing: rows of the table left out, having an image that cannot be read.
        recall: k -> share of the images with a positive in the table that find one among the k nearest.
        predicted: "error", or "accuracy" and "balanced_accuracy", of what is predicted of the pairs.
    """

    spearman: float
    pearson: float
    auc: tuple[float, ...]
    triplet_accuracy: float
    ndcg: dict[int, float]
    pairs: int
    known: int
    lists: int
    examples: int
    unlabelled: int
    metric: str
    missing: int = 0
    recall: dict[int, float] = dataclasses.field(default_factory=dict)
    predicted: dict[str, float] = dataclasses.field(default_factory=dict)

    def scalars(self, prefix: str = "similarity/") -> dict[str, float]:
        """{prefix + "spearman"|"pearson"|"triplet_accuracy"|"ndcg"|"ndcg@<k>"|"recall@<k>"|...: value}, for a log or a table."""
        ndcg = {f"{prefix}ndcg" + (f"@{k}" if k else ""): v for k, v in self.ndcg.items()}
        return {
            f"{prefix}spearman": self.spearman,
            f"{prefix}pearson": self.pearson,
            f"{prefix}triplet_accuracy": self.triplet_accuracy,
            **ndcg,
            **{f"{prefix}recall@{k}": v for k, v in self.recall.items()},
            **{f"{prefix}{name}": v for name, v in self.predicted.items()},
        }


def tree_similarity(
    features: Features,
    ks: Sequence[int] = KS,
    metric: str = "cosine",
    limit: int = PAIRS,
    queries: int = QUERIES,
    seed: int = 0,
    by_depth: Sequence[float] = (),
    scoring: Scoring | None = None,
) -> SimilarityResult:
    """Scores features against their label tree.

    Memory grows with the images, not with their square: of many images some pairs are drawn, evenly (for the AUC, evenly among
    the similar ones and among the others), and some lists.

    Args:
        features: labelled examples; those without a label at the coarsest level are left out.
        ks: depths of NDCG beside the whole ranking; those larger than the number of other examples are left out.
        metric: "cosine", or "centred_cosine" after the mean is subtracted.
        limit: most pairs.
        queries: most lists.
        seed: of what is drawn.
        by_depth: the similarity of pairs that agree at 0, 1, ..., L levels; () for the share of
            levels. The AUC is about levels whatever it is.
        scoring: what scores two features, in the place of the metric.

    Raises:
        NothingToScore: all pairs are equally similar.
        ValueError: metric without an inner product, a number < 1, values that are not finite, or
            `by_depth` as in `losses.similarity.depth_similarities`.
    """
    if limit < 2:
        raise ValueError(f"limit={limit}: expected 2 pairs or more")
    if any(k < 1 for k in ks):
        raise ValueError(f"ks={tuple(ks)}: expected numbers >= 1")
    if not features.levels:
        raise NothingToScore("similarity: the examples have no labels")
    steps = depth_similarities(features.levels, by_depth)
    rows = np.flatnonzero(features.labels[:, 0] >= 0)
    labels, count = features.labels[rows], len(rows)
    paths = np.stack([_path_numbers(labels, level) for level in range(labels.shape[1])], 1)
    # The order of any two others, for each query, is what the hierarchy's violations are about; only
    # levels at which the similarity rises make a difference.
    rises = [b > a for a, b in itertools.pairwise(steps)]
    ordered = Features(features.h[rows], paths[:, rises])
    order = hierarchy(ordered, ks=(1,), metric=metric, limit=queries, seed=seed, scoring=scoring)
    x = _prepared(features.h[rows], metric, scoring)

    rng = np.random.default_rng(seed)
    known = count * (count - 1) // 2
    whole = known <= limit
    a, b = np.triu_indices(count, 1) if whole else _drawn_pairs(count, limit, rng)
    depth = (paths[a] == paths[b]).sum(1)
    target = np.asarray(steps)[depth]
    scores = _pair_scores(x, a, b, scoring=scoring)
    auc = []
    for level in range(paths.shape[1]):
        positive, negative = scores[depth > level], scores[depth <= level]
        if not whole:
            pairs = _pairs_of_a_class(paths[:, level], limit // 4, rng)
            positive = _pair_scores(x, *pairs, scoring=scoring)
        auc.append(area_under_curve(positive, negative))

    asked = np.arange(count)
    if count > queries:
        asked = np.sort(rng.choice(count, queries, replace=False))
    used = (0, *sorted({int(k) for k in ks if k < count}))
    found = _tree_ndcg(x, paths, asked, used, steps, scoring)
    with np.errstate(invalid="ignore"):
        ndcg = np.nansum(found, 0, dtype=np.float64) / (~np.isnan(found)).sum(0)
    return SimilarityResult(
        spearman=spearman(scores, target),
        pearson=pearson(scores, target),
        auc=tuple(auc),
        triplet_accuracy=1 - order.violation,
        ndcg=dict(zip(used, ndcg.tolist(), strict=True)),
        pairs=len(a),
        known=known,
        lists=len(asked),
        examples=count,
        unlabelled=len(features) - count,
        metric=_name(metric, scoring),
        predicted=_predicted(scoring, scores, target),
    )


def table_similarity(
    features: Features,
    table: PairTable,
    ks: Sequence[int] = KS,
    metric: str = "cosine",
    seed: int = 0,
    scoring: Scoring | None = None,
    recall_ks: Sequence[int] = RECALL_KS,
) -> SimilarityResult:
    """Scores features against a table of pairs or triples.

    The list of an image are all the images that it is paired with, in either column. For NDCG, similarities count from the
    lowest of the table. Rows of the table with an image that could not be read, and so has no features, are left out and counted.

    Args:
        features: of the images that the table numbers, by their `index`, or of all of them in order
            if they have none; labels are not used.
        table: pairs or triples, without respects (`PairTable.by_respect`).
        ks: depths of NDCG beside the whole list; a shorter list is taken whole.
        metric: "cosine", "centred_cosine" or "euclidean" (minus the squared distance).
        seed: of the items that are drawn of very long lists.
        scoring: what scores two features, in the place of the metric.
        recall_ks: depths of recall; those that are not below the number of images are left out.

    Raises:
        NothingToScore: no row of the table is of images that have features.
        ValueError: the table is of other images, unknown metric, a number < 1, values that are not finite.
    """
    for name, given in (("ks", ks), ("recall_ks", recall_ks)):
        if any(k < 1 for k in given):
            raise ValueError(f"{name}={tuple(given)}: expected numbers >= 1")
    lowest = 0.0 if table.similarity is None else float(np.min(table.similarity))
    listed = len(table)
    table = _of_features(table, features)
    x = _prepared(features.h, metric, scoring)
    euclidean = metric == "euclidean"
    first = _pair_scores(x, table.rows[:, 0], table.rows[:, 1], euclidean, scoring)
    nan = float("nan")
    made = functools.partial(
        SimilarityResult,
        examples=len(np.unique(table.rows)),
        unlabelled=0,
        known=len(table),
        metric=_name(metric, scoring),
        missing=listed - len(table),
    )

    def recall(positive: npt.NDArray[np.bool_]) -> dict[int, float]:
        return _recall(x, table.rows, positive, recall_ks, euclidean, scoring)

    if table.similarity is None:
        second = _pair_scores(x, table.rows[:, 0], table.rows[:, 2], euclidean, scoring)
        right = float((first > second).mean())
        likeness = np.repeat([1.0, 0.0], len(table))
        return made(
            nan,
            nan,
            (nan,),
            right,
            {},
            pairs=0,
            lists=len(table),
            recall=recall(np.ones(len(table), bool)),
            predicted=_predicted(scoring, np.concatenate([first, second]), likeness),
        )
    truth = table.similarity.astype(np.float64)
    values = np.unique(truth)
    auc = nan
    if len(values) == 2:
        auc = area_under_curve(first[truth == values[1]], first[truth == values[0]])
    orders, gains = _lists(table, first, truth - lowest, (0, *sorted(set(ks))), seed)
    return made(
        spearman=spearman(first, truth),
        pearson=pearson(first, truth),
        auc=(auc,),
        triplet_accuracy=float(np.mean(orders)) if orders else nan,
        ndcg={k: float(np.mean(found)) if found else nan for k, found in gains.items()},
        pairs=len(table),
        lists=len(orders),
        recall=recall(truth == values[1]) if len(values) == 2 else {},
        predicted=_predicted(scoring, first, truth),
    )


def _of_features(table: PairTable, features: Features) -> PairTable:
    """The rows of a table whose images all have features, with their rows of the features as numbers."""
    index = np.arange(len(features)) if features.index is None else features.index
    if len(features) > table.images or (features.index is None and len(features) < table.images):
        raise ValueError(
            f"the table is of {table.images} images, and there are features of {len(features)}"
        )
    if np.min(index) < 0 or np.max(index) >= table.images:
        raise ValueError(
            f"the table is of {table.images} images, and there are features of the images"
            f" {np.min(index)} to {np.max(index)}"
        )
    place = np.full(table.images, -1, np.int64)
    place[index] = np.arange(len(features))
    rows = place[table.rows]
    there = (rows >= 0).all(1)
    if not there.any():
        raise NothingToScore(
            f"similarity: none of the {len(table)} {table.kind}s of the table is of images that can be read"
        )
    return dataclasses.replace(
        table,
        rows=rows[there],
        similarity=None if table.similarity is None else table.similarity[there],
        images=len(features),
    )


def pearson(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """The correlation of two vectors; NaN where one of them does not vary."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    a, b = a - a.mean(), b - b.mean()
    spread = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / spread if spread > 0 else float("nan")


def spearman(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """The correlation of the ranks of two vectors; equal values share the mean of their ranks."""
    return pearson(average_ranks(x), average_ranks(y))


def average_ranks(x: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Ranks f64[N] from 1; equal values have the mean of the ranks that they take."""
    _, inverse, counts = np.unique(np.asarray(x), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse.reshape(-1)]


def area_under_curve(positive: Floats, negative: Floats) -> float:
    """The chance that a positive score is above a negative one, ties counting half; NaN without one of them."""
    p, n = len(positive), len(negative)
    if not p or not n:
        return float("nan")
    ranks = average_ranks(np.concatenate([positive, negative]))
    return float((ranks[:p].sum() - p * (p + 1) / 2) / (p * n))


def ndcg(scores: Floats, gains: Floats, k: int = 0) -> float:
    """NDCG of one list.

    Args:
        scores: [M]; equal ones stand in the order given.
        gains: [M], 0 or above.
        k: how many of the ranking count; 0 for all.

    Returns:
        a number in [0, 1]; NaN if no gain is above 0.
    """
    k = k or len(gains)
    discount = 1 / np.log2(np.arange(2, min(k, len(gains)) + 2))
    best = np.sort(gains)[::-1][:k] @ discount
    return (
        float(gains[np.argsort(-scores, kind="stable")][:k] @ discount / best) if best else math.nan
    )


def order_accuracy(scores: Floats, truth: Floats) -> float:
    """The share of a list's pairs with different truth that the scores put in that order; NaN if there is none."""
    right = total = 0
    for rows in range(0, len(truth), 256):
        above = truth[rows : rows + 256, None] > truth[None]
        right += int((above & (scores[rows : rows + 256, None] > scores[None])).sum())
        total += int(above.sum())
    return right / total if total else float("nan")


def _lists(
    table: PairTable, scores: Floats, gains: Floats, ks: tuple[int, ...], seed: int
) -> tuple[list[float], dict[int, list[float]]]:
    """Order accuracy, and NDCG at each k, of each image's list that has an order."""
    rng = np.random.default_rng(seed)
    anchor = np.concatenate([table.rows[:, 0], table.rows[:, 1]])
    row = np.tile(np.arange(len(table)), 2)
    by_anchor = np.argsort(anchor, kind="stable")
    _, starts = np.unique(anchor[by_anchor], return_index=True)
    orders: list[float] = []
    found: dict[int, list[float]] = {k: [] for k in ks}
    for items in np.split(row[by_anchor], starts[1:]):
        if len(items) > ITEMS:
            items = rng.choice(items, ITEMS, replace=False)
        own = gains[items]
        if np.min(own) == np.max(own):
            continue
        orders.append(order_accuracy(scores[items], own))
        for k, values in found.items():
            values.append(ndcg(scores[items], own, k))
    return orders, found


def _name(metric: str, scoring: Scoring | None) -> str:
    return metric if scoring is None else scoring.scorer.name


def _prepared(h: Floats, metric: str, scoring: Scoring | None) -> Floats:
    """Rows f32[N, F] as `_pair_scores` takes them.

    Raises:
        ValueError: unknown metric, or values that are not finite.
    """
    x, _ = prepare(h, h[:0], metric)
    return x if scoring is None else h.astype(np.float32)


def _predicted(scoring: Scoring | None, scores: Floats, target: Floats) -> dict[str, float]:
    """How good it is what scores [P] say of pairs of known similarity f64[P]; {} if they say nothing."""
    if scoring is None or scoring.predict is None:
        return {}
    found = np.asarray(scoring.predict(jnp.asarray(scores)))
    if not scoring.edges:
        return {"error": float(np.abs(found - target).mean())}
    truth = np.asarray(grade(jnp.asarray(target, jnp.float32), scoring.edges))
    right = found == truth
    of_grades = [float(right[truth == g].mean()) for g in np.unique(truth)]
    return {"accuracy": float(right.mean()), "balanced_accuracy": float(np.mean(of_grades))}


def _recall(
    x: Floats,
    rows: npt.NDArray[np.integer],
    positive: npt.NDArray[np.bool_],
    ks: Sequence[int],
    euclidean: bool,
    scoring: Scoring | None,
) -> dict[int, float]:
    """recall@k of the images with a positive pair, rows[positive, :2] (of triples, of the anchors), among all that `rows` name."""
    named, number = np.unique(rows, return_inverse=True)
    number = number.reshape(rows.shape)[positive, :2]
    if rows.shape[1] == 2:
        number = np.concatenate([number, number[:, ::-1]])
    used = sorted({int(k) for k in ks if k < len(named)})
    asked, place = np.unique(number[:, 0], return_inverse=True)
    if not used or not len(asked):
        return {}
    items = jnp.asarray(x[named])
    size = rows_at_once(len(named) * numbers_of_a_pair(scoring, x.shape[1]))
    before = []
    for start in range(0, len(asked), size):
        part = np.pad(asked[start : start + size], (0, max(0, start + size - len(asked))), "edge")
        similar = np.zeros((size, len(named)), bool)
        own = (place >= start) & (place < start + size)
        similar[place[own] - start, number[own, 1]] = True
        found = _before(part, items, similar, euclidean=euclidean, scoring=scoring)
        before.append(np.asarray(found)[: len(asked) - start])
    ranks = np.concatenate(before)
    return {k: float((ranks < k).mean()) for k in used}


@functools.partial(jax.jit, static_argnames=("euclidean", "scoring"))
def _before(
    rows: jax.Array,
    items: jax.Array,
    similar: jax.Array,
    *,
    euclidean: bool,
    scoring: Scoring | None,
) -> jax.Array:
    """How many others are as near as the nearest similar item, or nearer: i32[q] of the items of some rows i32[q]."""
    if scoring is None:
        s = similarities(items[rows], items, euclidean)
    else:
        s = scored(items[rows], items, scoring)
    best = jnp.max(jnp.where(similar, s, -jnp.inf), axis=1, keepdims=True)
    other = ~similar & (jnp.arange(len(items)) != rows[:, None])
    return jnp.sum(other & (s >= best), axis=1)


def _pair_scores(
    x: Floats,
    a: npt.NDArray[np.integer],
    b: npt.NDArray[np.integer],
    euclidean: bool = False,
    scoring: Scoring | None = None,
) -> Floats:
    """Similarity f32[P] of the rows a[P] and b[P] of x[N, F]."""
    size = max(1, 2**22 // (x.shape[1] * numbers_of_a_pair(scoring, x.shape[1])))
    out = np.empty(len(a), np.float32)
    for start in range(0, len(a), size):
        part = slice(start, start + size)
        left, right = x[a[part]], x[b[part]]
        if scoring is not None:
            out[part] = np.asarray(scoring.of_rows(jnp.asarray(left), jnp.asarray(right)))
        elif euclidean:
            out[part] = -np.square(left - right).sum(1)
        else:
            out[part] = np.einsum("nf,nf->n", left, right)
    return out


def _drawn_pairs(
    count: int, pairs: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]:
    """Pairs of two different rows of `count`, drawn evenly and with replacement."""
    a = rng.integers(count, size=pairs)
    b = rng.integers(count - 1, size=pairs)
    return a, b + (b >= a)


def _pairs_of_a_class(
    number: npt.NDArray[np.integer], pairs: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]:
    """Pairs of two different rows with the same number, drawn evenly from all such pairs; none if there are none."""
    order = np.argsort(number, kind="stable")
    _, starts, sizes = np.unique(number[order], return_index=True, return_counts=True)
    weights = sizes * (sizes - 1.0)
    if not weights.any():
        return order[:0], order[:0]
    drawn = rng.choice(len(sizes), pairs, p=weights / weights.sum())
    a = rng.integers(sizes[drawn])
    b = rng.integers(sizes[drawn] - 1)
    return order[starts[drawn] + a], order[starts[drawn] + b + (b >= a)]


def _tree_ndcg(
    x: Floats,
    paths: npt.NDArray[np.integer],
    asked: npt.NDArray[np.integer],
    ks: tuple[int, ...],
    steps: tuple[float, ...],
    scoring: Scoring | None,
) -> Floats:
    """NDCG f32[M, len(ks)] of all other rows for each asked one; NaN where nothing is similar."""
    items = jnp.asarray(x), jnp.asarray(paths)
    size = rows_at_once(len(x) * numbers_of_a_pair(scoring, x.shape[1]))
    done = []
    for start in range(0, len(asked), size):
        part = asked[start : start + size]
        rows = np.pad(part, (0, size - len(part)), mode="edge")
        found = _score(rows, *items, ks=ks, steps=steps, scoring=scoring)
        done.append(np.asarray(found)[: len(part)])
    return np.concatenate(done)


@functools.partial(jax.jit, static_argnames=("ks", "steps", "scoring"))
def _score(
    rows: jax.Array,
    items: jax.Array,
    paths: jax.Array,
    *,
    ks: tuple[int, ...],
    steps: tuple[float, ...],
    scoring: Scoring | None,
) -> jax.Array:
    """The numbers of `_tree_ndcg` for some rows i32[q]."""
    s = scored(items[rows], items, scoring)
    # A number stands for a path: who agrees at a level agrees at all the coarser ones.
    similarity = target_similarity(paths[rows], paths, steps) - steps[0]
    # The query itself comes last, and is similar to nothing.
    itself = jnp.arange(len(items)) == rows[:, None]
    s, gain = jnp.where(itself, -jnp.inf, s), jnp.where(itself, 0, similarity)
    _, ranked = jax.lax.sort((-s, gain), num_keys=1)
    ideal = jnp.flip(jnp.sort(gain, axis=1), axis=1)
    discount = 1 / jnp.log2(2 + jnp.arange(len(items), dtype=s.dtype))
    columns = []
    for k in ks:
        k = k or len(items)
        best = ideal[:, :k] @ discount[:k]
        found = ranked[:, :k] @ discount[:k]
        columns.append(jnp.where(best > 0, found / jnp.where(best > 0, best, 1), jnp.nan))
    return jnp.stack(columns, axis=1)
