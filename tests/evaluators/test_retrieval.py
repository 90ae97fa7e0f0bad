"""Retrieval against loops over full sorts in float64."""

import sys

import jax
import numpy as np
import pytest

from jaxcl.evaluators import Features, NothingToScore, retrieval
from jaxcl.evaluators import retrieval as retrieval_function
from jaxcl.evaluators.base import comparable_levels
from jaxcl.losses import ScorerSpec, Scoring

module = sys.modules[retrieval_function.__module__]


def features(n, seed, missing=0.1, width=5):
    """Ragged labels of three levels: 3, up to 9 and up to 27 classes; some classes of one."""
    rng = np.random.default_rng(seed)
    fine = rng.integers(0, 27, n)
    labels = np.stack([fine // 9, fine // 3 % 3, fine % 3], 1).astype(np.int32)
    labels[rng.random(n) < missing, 2] = -1
    labels[rng.random(n) < missing / 3, 0] = -1
    centres = np.random.default_rng(0).normal(size=(27, width))
    return Features((centres[fine] + rng.normal(size=(n, width))).astype(np.float32), labels)


def brute_force(queries, level, ks, metric, gallery=None, own=None):
    """Sums of each figure over the queries, and the number of queries that count."""
    items = queries if gallery is None else gallery
    own = np.arange(len(queries)) if gallery is None else own
    kept = [j for j in range(len(items)) if (items.labels[j, : level + 1] >= 0).all()]
    g, q = items.h.astype(np.float64), queries.h.astype(np.float64)
    if metric in ("centred_cosine", "euclidean"):
        mean = g[kept].mean(0)
        g, q = g - mean, q - mean
    totals, count, without = {}, 0, 0
    for i in range(len(queries)):
        path = tuple(queries.labels[i, : level + 1])
        if -1 in path:
            continue
        order = []
        for j in kept:
            if own is not None and j == own[i]:
                continue
            if callable(metric):
                s = metric(queries.h[i].astype(np.float64), items.h[j].astype(np.float64))
            elif metric == "euclidean":
                s = -((q[i] - g[j]) ** 2).sum()
            else:
                s = q[i] @ g[j] / np.linalg.norm(q[i]) / np.linalg.norm(g[j])
            order.append((-round(s, 10), j, tuple(items.labels[j, : level + 1]) == path))
        order.sort()
        hits = [hit for _, _, hit in order]
        r = sum(hits)
        if not r:
            without += 1
            continue
        count += 1
        figures = {"rp": sum(hits[:r]) / r}
        figures["map"] = sum(sum(hits[: n + 1]) / (n + 1) for n in range(r) if hits[n]) / r
        for k in ks:
            figures["recall", k] = float(any(hits[:k]))
            figures["found", k] = sum(hits[:k]) / r
        for key, value in figures.items():
            totals[key] = totals.get(key, 0.0) + value
    return {key: value / count for key, value in totals.items()}, count, without


def check(result, expected, ks):
    assert result.r_precision == pytest.approx(expected["rp"], abs=1e-6)
    assert result.map_at_r == pytest.approx(expected["map"], abs=1e-6)
    for k in ks:
        assert result.recall[k] == pytest.approx(expected["recall", k], abs=1e-6), k
        assert result.found[k] == pytest.approx(expected["found", k], abs=1e-6), k


@pytest.mark.parametrize("metric", ["cosine", "centred_cosine", "euclidean"])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_each_query_leaves_itself_out(metric, level, monkeypatch):
    monkeypatch.setattr(module, "QUERIES", 32)  # several parts, the last one incomplete
    found, ks = features(70, 1), (1, 3, 10)
    result = retrieval(found, level, ks, metric)
    expected, count, without = brute_force(found, level, ks, metric)
    check(result, expected, ks)
    assert (result.queries, result.without_relevant) == (count, without)
    missing = int((found.labels[:, : level + 1] < 0).any(1).sum())
    assert (result.unlabelled, result.unlabelled_gallery) == (missing, missing)
    assert result.gallery == 70 - missing
    assert 0.1 < result.map_at_r < 0.95  # neither trivial way


def test_an_own_gallery_with_some_of_the_queries_in_it():
    queries, gallery, ks = features(30, 2), features(50, 3), (1, 5, 20)
    own = np.full(30, -1)
    own[:20] = np.arange(20) + 7
    gallery.h[own[:20]], gallery.labels[own[:20]] = queries.h[:20], queries.labels[:20]
    for rows in (None, own):
        result = retrieval(queries, 1, ks, gallery=gallery, own=rows)
        expected, count, _ = brute_force(queries, 1, ks, "cosine", gallery, rows)
        check(result, expected, ks)
        assert result.queries == count
    # Without the exclusion, every query that is there finds itself first.
    assert retrieval(queries, 1, (1,), gallery=gallery).recall[1] > result.recall[1] + 0.2


def trained_scorers():
    """Scorers, and what they say of two rows, which no cosine says."""
    rng = np.random.default_rng(7)
    map_, kernel = rng.normal(size=(3, 5)), rng.normal(size=(5, 5))
    first, second = rng.normal(size=(10, 6)), rng.normal(size=(6, 1))
    perceptron = {
        "kernel1": first,
        "bias1": np.full(6, 0.1),
        "kernel2": second,
        "bias2": np.zeros(1),
    }

    def mlp(x, y):
        both = np.concatenate([np.abs(x - y), x * y])
        return (np.maximum(both @ first + 0.1, 0) @ second)[0]

    return {
        "mahalanobis": ({"map": map_}, lambda x, y: -np.sum((map_ @ (x - y)) ** 2)),
        "bilinear": ({"kernel": kernel}, lambda x, y: x @ (kernel + kernel.T) @ y / 2),
        "mlp": (perceptron, mlp),
    }


@pytest.mark.parametrize("name", ["mahalanobis", "bilinear", "mlp"])
@pytest.mark.parametrize("searched", ["own", "other"])
def test_a_trained_scorer_ranks_in_the_place_of_the_metric(name, searched, monkeypatch):
    monkeypatch.setattr(module, "QUERIES", 16)
    params, by_hand = trained_scorers()[name]
    spec = ScorerSpec(name, rank=3 * (name == "mahalanobis"), hidden=6 if name == "mlp" else 64)
    shapes = jax.tree.map(np.shape, spec.init(jax.random.key(0), 5))
    params = {k: np.asarray(v, np.float32).reshape(shapes[k]) for k, v in params.items()}
    queries, ks = features(40, 5), (1, 4)
    gallery = None if searched == "own" else features(50, 6)
    found = retrieval(queries, 1, ks, gallery=gallery, scoring=Scoring(spec, params))
    expected, count, _ = brute_force(queries, 1, ks, by_hand, gallery)
    check(found, expected, ks)
    assert (found.queries, found.metric) == (count, name)
    assert abs(found.map_at_r - retrieval(queries, 1, ks, gallery=gallery).map_at_r) > 1e-3


def test_recall_rises_with_k_and_labels_may_have_other_numbers():
    found = features(120, 4)
    ks = (1, 2, 3, 5, 8, 13, 21)
    result = retrieval(found, 2, ks)
    assert (np.diff([*result.recall.values()]) >= 0).all()
    assert (np.diff([*result.found.values()]) >= 0).all()
    assert len(set(result.recall.values())) > 3
    renamed = Features(found.h, np.where(found.labels >= 0, (found.labels * 7 + 3) % 11, -1))
    again = retrieval(renamed, 2, ks)
    assert again == result
    order = np.random.default_rng(0).permutation(120)
    moved = retrieval(found.take(order), 2, ks)
    assert moved.map_at_r == pytest.approx(result.map_at_r, abs=1e-6)


def test_of_equal_items_the_earlier_one_comes_first():
    same = np.tile(np.array([[1.0, 2.0]], np.float32), (4, 1))
    found = Features(same, np.array([[0], [1], [1], [0]], np.int32))
    result = retrieval(found, ks=(1, 2, 3))
    # Rankings 1 2 3, 0 2 3, 0 1 3, 0 1 2 have their only relevant item at rank 3, 2, 2, 1.
    assert result.recall == {1: 0.25, 2: 0.75, 3: 1.0}
    assert result.map_at_r == result.r_precision == 0.25
    again = retrieval(found, ks=(1, 2, 3))
    assert again == result


def test_figures_of_a_ranking_by_hand():
    # Two of the query's class among four, at ranks 1 and 3.
    angles = np.deg2rad([0.0, 10.0, 20.0, 30.0, 40.0])
    h = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    gallery = Features(h[1:], np.array([[5], [6], [5], [6]], np.int32))
    query = Features(h[:1], np.array([[5]], np.int32))
    result = retrieval(query, ks=(1, 2, 3), gallery=gallery)
    assert result.recall == {1: 1.0, 2: 1.0, 3: 1.0}
    assert result.found == {1: 0.5, 2: 0.5, 3: 1.0}
    assert (result.r_precision, result.map_at_r) == (0.5, 0.5)
    assert result.scalars("x/") == {
        "x/recall@1": 1.0, "x/recall@2": 1.0, "x/recall@3": 1.0,
        "x/found@1": 0.5, "x/found@2": 0.5, "x/found@3": 1.0,
        "x/r_precision": 0.5, "x/map@r": 0.5,
    }  # fmt: skip


def test_of_more_queries_than_the_limit_some_are_drawn(monkeypatch):
    found, ks = features(70, 1), (1, 10)
    whole = retrieval(found, 0, ks)
    assert whole.not_drawn == 0
    part = retrieval(found, 0, ks, limit=20, seed=3)
    assert (part.queries, part.not_drawn) == (20, whole.queries - 20)
    assert part.without_relevant == whole.without_relevant
    assert part == retrieval(found, 0, ks, limit=20, seed=3)
    maps = [retrieval(found, 0, ks, limit=20, seed=seed).map_at_r for seed in range(30)]
    assert len(set(maps)) > 20
    assert np.mean(maps) == pytest.approx(whole.map_at_r, abs=4 * np.std(maps) / 30**0.5)
    # The same with a gallery: each query keeps its own row and class.
    each = [
        retrieval(found, 0, ks, gallery=found, own=np.arange(70), limit=1, seed=s) for s in range(8)
    ]
    alone = [retrieval(found, 0, ks, limit=1, seed=s) for s in range(8)]
    assert [r.map_at_r for r in each] == [r.map_at_r for r in alone]
    # By itself the limit is one of work: places in rankings, as many as the largest class has items.
    sizes = np.bincount(found.labels[found.labels[:, 0] >= 0, 0])
    monkeypatch.setattr(module, "RANKED", 30 * (sizes.max() - 1))
    assert retrieval(found, 0, (1,)).queries == 30
    with pytest.raises(ValueError, match="limit=0: expected 1 or more"):
        retrieval(found, limit=0)


@pytest.mark.parametrize("deepest", [50, 2**16])
def test_memory_does_not_grow_with_the_product(deepest):
    """A million items of 128 numbers: what the compiled program needs, without running it, for small and large classes."""

    def needed(items):
        q = module.rows_at_once(items)
        shapes = [((q, 128), np.float32), ((q,), np.int32), ((q,), np.int32), ((q,), np.int32)]
        shapes += [((items, 128), np.float32), ((items,), np.int32)]
        made = module._score.lower(
            *(jax.ShapeDtypeStruct(*s) for s in shapes),
            ks=(1, 50),
            deepest=deepest,
            euclidean=False,
        )
        memory = made.compile().memory_analysis()
        return memory.temp_size_in_bytes, memory.argument_size_in_bytes

    small, large = needed(2**17), needed(2**20)
    similarities = 4 * module.ELEMENTS
    assert large[0] < 6 * similarities
    assert large[0] < 1.25 * small[0] + 4 * 2**20
    assert large[1] < 8.1 * small[1]


def test_what_cannot_be_scored_is_named():
    alone = Features(np.eye(4, dtype=np.float32), np.arange(4)[:, None])
    with pytest.raises(NothingToScore, match="no query has another example of its class"):
        retrieval(alone)
    pairs = Features(np.eye(4, dtype=np.float32), np.array([[0], [0], [1], [-1]]))
    result = retrieval(pairs, ks=(1, 2, 50))
    assert (result.queries, result.without_relevant, result.unlabelled) == (2, 1, 1)
    assert (result.gallery, result.left_out) == (3, (50,))
    for bad, text in (
        ({"ks": (0,)}, "ks="),
        ({"metric": "dot"}, "metric='dot'"),
        ({"own": np.zeros(4, int)}, "without a gallery"),
        ({"gallery": pairs, "own": np.zeros(3, int)}, "a gallery row for each of the 4 queries"),
        ({"gallery": pairs, "own": np.full(4, 4)}, "rows of the gallery of 4"),
        ({"gallery": Features(np.eye(3), np.zeros((3, 1), int))}, "width 3, queries 4"),
        ({"level": 1}, "level=1"),
    ):
        with pytest.raises(ValueError, match=text):
            retrieval(pairs, **bad)
    broken = Features(np.full((4, 2), np.nan), pairs.labels)
    with pytest.raises(ValueError, match="not finite"):
        retrieval(broken)


def test_levels_that_can_be_compared():
    labels = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 2], [0, 1, -1]])
    assert comparable_levels(("all", "kind", "image"), labels) == {"kind": 1}
    assert comparable_levels(("all", "kind", "image"), labels[:2]) == {}
