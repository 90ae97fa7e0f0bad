"""kNN against a loop in float64 NumPy that shares nothing with it."""

import numpy as np
import pytest

from jaxcl.evaluators import Features, knn, knn_selected, neighbours
from jaxcl.evaluators import knn as knn_function
from jaxcl.evaluators.base import Classes


def features(n, width, classes, seed, missing=0.0):
    rng = np.random.default_rng(seed)
    fine = rng.integers(0, classes, n)
    h = rng.normal(size=(n, width)) + 0.7 * np.stack([np.cos(fine), np.sin(2 * fine)], 1).repeat(
        width // 2, 1
    )
    labels = np.stack([fine // 3, fine % 3], 1).astype(np.int32)
    labels[rng.random(n) < missing, 1] = -1
    return Features(h.astype(np.float32) + 0.3, labels)


def brute_force(gallery, queries, level, k, temperature, metric):
    """Predictions are paths (tuples); returns (correct, asked)."""
    g, q = gallery.h.astype(np.float64), queries.h.astype(np.float64)
    if metric == "centred_cosine":
        centre = gallery.h[(gallery.labels[:, : level + 1] >= 0).all(1)].astype(np.float64).mean(0)
        g, q = g - centre, q - centre
    correct = asked = 0
    for x, label in zip(q, queries.labels, strict=True):
        path = tuple(label[: level + 1])
        if -1 in path:
            continue
        asked += 1
        near = []
        for number, (y, other) in enumerate(zip(g, gallery.labels, strict=True)):
            if -1 in other[: level + 1]:
                continue
            if metric == "euclidean":
                s = -np.sqrt(((x - y) ** 2).sum())
            else:
                s = (x @ y) / (np.linalg.norm(x) * np.linalg.norm(y))
            near.append((-s, number, tuple(other[: level + 1])))
        near.sort()
        votes = {}
        for s, _, c in near[:k]:
            votes[c] = votes.get(c, 0.0) + (
                1.0 if temperature is None else np.exp(-s / temperature)
            )
        # dicts keep insertion order: the first of equals is the one met nearest
        correct += max(votes, key=lambda c: votes[c]) == path
    return correct, asked


@pytest.mark.parametrize("metric", ["cosine", "centred_cosine", "euclidean"])
@pytest.mark.parametrize("temperature", [None, 0.1])
@pytest.mark.parametrize("level", [0, 1])
def test_equals_brute_force(metric, temperature, level):
    gallery, queries = features(61, 6, 9, 0, missing=0.1), features(43, 6, 9, 1, missing=0.1)
    result = knn(gallery, queries, level, (1, 2, 4, 7, 30), temperature, metric)
    assert set(result.accuracy) == {1, 2, 4, 7, 30}
    for k, accuracy in result.accuracy.items():
        correct, asked = brute_force(gallery, queries, level, k, temperature, metric)
        assert result.queries == asked
        assert accuracy == correct / asked, k
    assert 0.1 < result.accuracy[7] < 1.0  # neither trivial way


def test_ties_go_to_the_nearest_member_and_equal_neighbours_to_the_gallery_order():
    gallery = Features(
        np.array([[1, 0], [1, 0], [1, 1], [0, 1]], np.float32),
        np.array([[5], [2], [2], [5]], np.int32),
    )
    query = np.array([[1, 0.1]], np.float32)
    similarity, index = neighbours(gallery.h, query, 4)
    assert index.tolist() == [[0, 1, 2, 3]]
    assert similarity[0, 0] == similarity[0, 1]
    for k, winner in {1: 5, 2: 5, 3: 2, 4: 5}.items():
        scores = {
            c: knn(gallery, Features(query, np.array([[c]])), ks=(k,), temperature=None).accuracy[k]
            for c in (2, 5)
        }
        assert scores == {winner: 1.0, 7 - winner: 0.0}


def test_neighbours_across_tiles_equal_a_full_sort():
    rng = np.random.default_rng(3)
    gallery, queries = rng.normal(size=(16384 + 77, 3)), rng.normal(size=(1024 + 3, 3))
    gallery[16384 + 5] = gallery[7]  # equal neighbours in two tiles: the earlier one first
    queries[1] = gallery[7]
    similarity, index = neighbours(gallery, queries, 5, "euclidean")
    assert index[1, :2].tolist() == [7, 16384 + 5]
    for row in (0, 1, 500, 1023, 1024, 1026):
        distance = np.sqrt(((gallery - queries[row]) ** 2).sum(1))
        order = np.argsort(distance, kind="stable")[:5]
        np.testing.assert_allclose(-similarity[row], distance[order], atol=2e-3)
        assert set(index[row]) == set(order)


def test_same_names_under_different_parents_are_different_classes():
    gallery = Features(np.eye(2, dtype=np.float32), np.array([[0, 7], [1, 7]], np.int32))
    queries = Features(np.eye(2, dtype=np.float32)[::-1], gallery.labels)
    assert knn(gallery, queries, 1, (1,)).accuracy[1] == 0.0
    assert len(Classes.of(gallery.labels, 1)) == 2
    assert len(Classes.of(gallery.labels[:, 1:], 0)) == 1


def test_counts_of_missing_and_unseen_labels():
    gallery = Features(np.eye(4, dtype=np.float32), np.array([[0], [1], [-1], [1]], np.int32))
    queries = Features(np.eye(4, dtype=np.float32), np.array([[0], [-1], [9], [1]], np.int32))
    result = knn(gallery, queries, ks=(1, 3, 4, 200))
    assert (result.queries, result.unlabelled, result.unseen) == (3, 1, 1)
    assert (result.gallery, result.unlabelled_gallery, result.left_out) == (3, 1, (4, 200))
    assert result.accuracy[1] == 2 / 3
    assert result.scalars("x/") == {"x/k1": 2 / 3, "x/k3": result.accuracy[3]}


def test_zero_rows_and_large_scores_stay_finite():
    gallery = Features(np.eye(3, dtype=np.float32) * 1e4, np.arange(3)[:, None])
    queries = Features(np.zeros((1, 3), np.float32), np.zeros((1, 1), np.int64))
    similarity, _ = neighbours(gallery.h, queries.h, 3)
    assert similarity.tolist() == [[0, 0, 0]]
    assert knn(gallery, queries, ks=(1,), metric="euclidean", temperature=1e-3).accuracy[1] == 1


def test_selection_looks_at_validation_only_and_scores_on_the_joined_gallery():
    train, validation = features(120, 8, 6, 0), features(40, 8, 6, 1)
    test = features(50, 8, 6, 2)
    chosen = knn_selected(train, validation, test, ks=(1, 3, 9))
    for metric in ("cosine", "centred_cosine"):
        expected = knn_function(train, validation, ks=(1, 3, 9), metric=metric).accuracy
        assert chosen.validation[metric] == expected
    best = max(max(v.values()) for v in chosen.validation.values())
    assert chosen.validation[chosen.metric][chosen.k] == best
    again = knn_function(train.join(validation), test, ks=(chosen.k,), metric=chosen.metric)
    assert chosen.accuracy == again.accuracy[chosen.k]
    assert chosen.test.gallery == 160
    shuffled = Features(test.h, test.labels[::-1].copy())
    other = knn_selected(train, validation, shuffled, ks=(1, 3, 9))
    assert (other.k, other.metric) == (chosen.k, chosen.metric)
    assert chosen.scalars()["knn/validation"] == best


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "cos"}, "metric='cos': expected one of cosine"),
        ({"temperature": 0.0}, "temperature=0.0: expected a number > 0"),
        ({"ks": (0, 1)}, r"ks=\(0, 1\): expected numbers >= 1"),
        ({"ks": (50,)}, "all larger than the gallery of 10"),
        ({"level": 2}, "level=2: the labels have 2"),
    ],
)
def test_errors(change, message):
    data = features(10, 4, 3, 0)
    with pytest.raises(ValueError, match=message):
        knn(data, data, **change)


def test_errors_of_the_features():
    data = features(10, 4, 3, 0)
    with pytest.raises(ValueError, match="width 4, queries 6"):
        knn(data, features(5, 6, 3, 0))
    blank = Features(data.h, np.full_like(data.labels, -1))
    with pytest.raises(ValueError, match="of the gallery has a label"):
        knn(blank, data)
    with pytest.raises(ValueError, match="of the queries has a label"):
        knn(data, blank)
    broken = Features(np.where(np.arange(10)[:, None] == 3, np.nan, data.h), data.labels)
    with pytest.raises(ValueError, match="queries: 1 of 10 feature rows are not finite"):
        knn(data, broken)
    with pytest.raises(ValueError, match="same N"):
        Features(data.h, data.labels[:3])
    with pytest.raises(ValueError, match="must be integers"):
        Features(data.h, data.labels.astype(np.float32))
