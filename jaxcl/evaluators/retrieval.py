"""Retrieval: are the nearest images of the query's class?

Every query ranks all the gallery by similarity; items of equal similarity stand in the gallery's
order. The query itself is never an item. What the rankings are worth:

    recall@k      the share of queries with an item of their class among the k nearest. It is the
                  recall@k of metric learning (Jegou et al. 2011, Song et al. 2016) and the top-k
                  accuracy of retrieval with label trees.
    found@k       the mean share of a query's relevant items that are among the k nearest, which is
                  recall in information retrieval.
    R-precision   the mean share of relevant items among the R nearest, R being their number.
    MAP@R         the mean over the ranks i <= R of the precision at i where item i is relevant,
                  else 0 (Musgrave et al. 2020, equation 4).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.evaluators.base import Classes, Features, NothingToScore
from jaxcl.evaluators.knn import prepare
from jaxcl.losses import Scoring

KS = (1, 10, 20, 30, 40, 50)

ELEMENTS = 2**24
"""Similarities that are on the device at once."""

QUERIES = 1024
"""Most queries that are ranked at once."""

RANKED = 2**30
"""Places of all rankings together; of more queries that many are drawn."""


@dataclasses.dataclass(frozen=True)
class RetrievalResult:
    """What the rankings of one set of queries are worth at one level.

    Attributes:
        recall: k -> share of the queries with a relevant item among the k nearest.
        found: k -> mean share of the relevant items that are among the k nearest.
        r_precision: mean share of relevant items among the R nearest.
        map_at_r: mean average precision at R.
        queries: queries scored.
        gallery: items that are ranked (a query in the gallery leaves itself out).
        not_drawn: queries beyond the limit, left out by chance.
        without_relevant: queries left out, as no item is of their class.
        unlabelled: queries left out, having no label at this level.
        unlabelled_gallery: items left out for the same reason.
        left_out: the ks that were asked for and are larger than the gallery.
        metric: name of the similarity, or of the scorer.
    """

    recall: dict[int, float]
    found: dict[int, float]
    r_precision: float
    map_at_r: float
    queries: int
    gallery: int
    not_drawn: int
    without_relevant: int
    unlabelled: int
    unlabelled_gallery: int
    left_out: tuple[int, ...]
    metric: str

    def scalars(self, prefix: str = "retrieval/") -> dict[str, float]:
        """{prefix + "recall@<k>"|"found@<k>"|"r_precision"|"map@r": value}, for a log or a table."""
        return {
            **{f"{prefix}recall@{k}": value for k, value in self.recall.items()},
            **{f"{prefix}found@{k}": value for k, value in self.found.items()},
            f"{prefix}r_precision": self.r_precision,
            f"{prefix}map@r": self.map_at_r,
        }


def retrieval(
    queries: Features,
    level: int = -1,
    ks: Sequence[int] = KS,
    metric: str = "cosine",
    gallery: Features | None = None,
    own: np.ndarray | None = None,
    limit: int | None = None,
    seed: int = 0,
    scoring: Scoring | None = None,
) -> RetrievalResult:
    """Scores the rankings of the gallery by similarity to each query.

    Memory grows with the gallery, not with its product with the queries: at most `ELEMENTS`
    similarities exist at a time. R-precision and MAP@R need the R nearest of each query, so that
    large classes cost time: 0.1 s a query for R = 200,000 on a CPU.

    Args:
        queries: labelled examples that search.
        level: label level, coarse -> fine, negative from the finest.
        ks: depths. Those larger than the gallery are left out, which the result records.
        metric: "cosine", "centred_cosine" (the gallery's mean subtracted) or "euclidean".
        gallery: labelled examples that are searched; None: the queries, each of which then finds
            the others.
        own: with a gallery, the row i[M] that each query itself has there, -1 for none: it is left
            out of that query's ranking. None: no query is in the gallery.
        limit: most queries; of more, so many are drawn, which the result counts. None: as many as
            together rank `RANKED` items, each as many as the largest class has, or the largest k.
            For classes of 1,000 items that is a million queries, of 200,000 items 5,368.
        seed: of that draw.
        scoring: what scores a query, its first row, and an item, in the place of the metric.

    Raises:
        NothingToScore: no query has a label and an item of its class.
        ValueError: unknown metric or level, k or limit < 1, widths that differ, values that are not finite,
            or rows of `own` that are not in the gallery.
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"ks={tuple(ks)}: expected numbers >= 1")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: expected 1 or more, or None")
    searched = queries if gallery is None else gallery
    own = _own_rows(queries, gallery, own)
    classes = Classes.of(searched.labels, level)
    item_class, query_class = classes.number(searched.labels), classes.number(queries.labels)
    labelled = item_class >= 0
    sizes = np.bincount(item_class[labelled], minlength=len(classes) + 1)
    relevant = np.where(query_class >= 0, sizes[query_class], 0)
    relevant -= (own >= 0) & (query_class >= 0) & (item_class[own] == query_class)
    able = relevant > 0
    if not able.any():
        raise NothingToScore(
            f"retrieval at level {level}: no query has another example of its class in the gallery "
            f"of {int(labelled.sum())} labelled examples"
        )
    if limit is None:
        limit = max(
            1, RANKED // max(int(relevant.max()), *(k for k in ks if k <= len(searched)), 1)
        )
    rows = np.flatnonzero(able)
    if len(rows) > limit:
        rows = np.random.default_rng(seed).choice(rows, limit, replace=False)
    asked = np.zeros(len(queries), bool)
    asked[rows] = True
    # Rows among the labelled items.
    own = np.where((own >= 0) & labelled[own], np.cumsum(labelled)[own] - 1, -1)[asked]
    size = int(labelled.sum())
    longest = size - bool((own >= 0).any())
    used = tuple(sorted({int(k) for k in ks if k <= longest}))
    left_out = tuple(sorted({int(k) for k in ks} - set(used)))

    items, asking = prepare(
        searched.h[labelled], queries.h[:0] if gallery is None else queries.h[asked], metric
    )
    if scoring is not None:  # whose rows are as the network gave them
        items, asking = (x.astype(np.float32) for x in (searched.h[labelled], queries.h[asked]))
    elif gallery is None:
        asking = items[asked[labelled]]
    scores = _ranked(
        items,
        asking,
        own,
        item_class[labelled],
        query_class[asked],
        relevant[asked],
        used,
        metric == "euclidean",
        scoring,
    )
    means = scores.mean(0, dtype=np.float64).tolist()
    return RetrievalResult(
        recall=dict(zip(used, means[2:], strict=False)),
        found=dict(zip(used, means[2 + len(used) :], strict=True)),
        r_precision=means[0],
        map_at_r=means[1],
        queries=int(asked.sum()),
        gallery=size,
        not_drawn=int(able.sum() - asked.sum()),
        without_relevant=int(((query_class != -1) & ~able).sum()),
        unlabelled=int((query_class == -1).sum()),
        unlabelled_gallery=int((~labelled).sum()),
        left_out=left_out,
        metric=metric if scoring is None else scoring.scorer.name,
    )


def _own_rows(queries: Features, gallery: Features | None, own: np.ndarray | None) -> np.ndarray:
    """The gallery row i64[M] of each query, -1 for none."""
    if gallery is None:
        if own is not None:
            raise ValueError("own: without a gallery each query is its own row; leave it out")
        return np.arange(len(queries))
    if own is None:
        return np.full(len(queries), -1)
    own = np.asarray(own)
    if own.shape != (len(queries),) or not np.issubdtype(own.dtype, np.integer):
        raise ValueError(
            f"own: expected a gallery row for each of the {len(queries)} queries, got "
            f"{own.dtype}{list(own.shape)}"
        )
    if own.min(initial=-1) < -1 or own.max(initial=-1) >= len(gallery):
        raise ValueError(
            f"own: expected rows of the gallery of {len(gallery)}, or -1; got {own.min()} to "
            f"{own.max()}"
        )
    return own.astype(np.int64)


def _ranked(
    items: np.ndarray,
    queries: np.ndarray,
    own: np.ndarray,
    item_class: np.ndarray,
    query_class: np.ndarray,
    relevant: np.ndarray,
    ks: tuple[int, ...],
    euclidean: bool,
    scoring: Scoring | None,
) -> np.ndarray:
    """R-precision, MAP@R, hits and shares at each k of each query: f32[M, 2 + 2 len(ks)]."""
    deepest = max((*ks, int(relevant.max())))
    rows = rows_at_once(len(items) * numbers_of_a_pair(scoring, items.shape[1]))
    gallery = jnp.asarray(items), jnp.asarray(item_class)
    done = []
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        missing = rows - len(queries[part])  # of the last part: one shape, one compilation
        chunk = (
            np.pad(queries[part], ((0, missing), (0, 0))),
            np.pad(own[part], (0, missing)),
            np.pad(query_class[part], (0, missing)),
            np.pad(relevant[part], (0, missing), constant_values=1),
        )
        scores = _score(
            *chunk, *gallery, ks=ks, deepest=deepest, euclidean=euclidean, scoring=scoring
        )
        done.append(np.asarray(scores)[: rows - missing])
    return np.concatenate(done)


def rows_at_once(items: int) -> int:
    """How many queries are compared with so many items at once."""
    return max(1, min(QUERIES, ELEMENTS // items))


def numbers_of_a_pair(scoring: Scoring | None, width: int) -> int:
    """How many numbers a score of two rows of this width takes; see `scored`."""
    return 1 if scoring is None else scoring.scorer.numbers_of_a_pair(width)


def scored(queries: jax.Array, items: jax.Array, scoring: Scoring | None) -> jax.Array:
    """Scores f32[q, N]: inner products, or those of a scoring."""
    if scoring is None:
        return similarities(queries, items, euclidean=False)
    return scoring.of_pairs(queries, items)


def similarities(queries: jax.Array, items: jax.Array, euclidean: bool) -> jax.Array:
    """Inner products f32[q, N], or negative squared distances, at the highest matmul precision."""
    s = jnp.matmul(queries, items.T, precision="highest")
    if not euclidean:
        return s
    square = (queries**2).sum(1)[:, None] + (items**2).sum(1)[None] - 2 * s
    return -jnp.maximum(square, 0)


@functools.partial(jax.jit, static_argnames=("ks", "deepest", "euclidean", "scoring"))
def _score(
    queries: jax.Array,
    own: jax.Array,
    query_class: jax.Array,
    relevant: jax.Array,
    items: jax.Array,
    item_class: jax.Array,
    *,
    ks: tuple[int, ...],
    deepest: int,
    euclidean: bool,
    scoring: Scoring | None = None,
) -> jax.Array:
    """The numbers of `_ranked` for some queries f32[q, F] and all items f32[N, F]."""
    if scoring is None:
        s = similarities(queries, items, euclidean)
    else:
        s = scored(queries, items, scoring)
    s = jnp.where(jnp.arange(len(items)) == own[:, None], -jnp.inf, s)
    value, nearest = jax.lax.top_k(s, deepest)  # equals in the gallery's order
    hit = (item_class[nearest] == query_class[:, None]) & (value > -jnp.inf)
    found = jnp.cumsum(hit, axis=1)
    rank = jnp.arange(1, deepest + 1)
    count = relevant[:, None]
    early = hit & (rank <= count)
    columns = [
        early.sum(1) / relevant,
        jnp.where(early, found / rank, 0).sum(1) / relevant,
        *(found[:, k - 1] > 0 for k in ks),
        *(found[:, k - 1] / relevant for k in ks),
    ]
    return jnp.stack([column.astype(jnp.float32) for column in columns], axis=1)
