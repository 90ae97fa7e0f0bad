"""Hierarchy figures against loops over pairs, triples and orders."""

import itertools
import sys

import numpy as np
import pytest

from jaxcl.evaluators import Features, NothingToScore, hierarchy
from jaxcl.evaluators import retrieval as retrieval_function

retrieval = sys.modules[retrieval_function.__module__]


def tree_features(n=40, seed=0, noise=0.6, missing=0.1):
    """Names repeat under different parents, and some paths end early."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (n, 3)).astype(np.int32)
    directions = np.random.default_rng(9).normal(size=(2, 2, 2, 6))
    h = np.zeros((n, 6))
    for i, (a, b, c) in enumerate(labels):
        h[i] = (
            directions[a].mean((0, 1)) + 0.6 * directions[a, b].mean(0) + 0.3 * directions[a, b, c]
        )
    h += noise * rng.normal(size=h.shape)
    labels[rng.random(n) < missing, 2] = -1
    labels[:2, 0] = -1
    return Features(h.astype(np.float32), labels)


def depth_of(a, b):
    depth = 0
    for x, y in zip(a, b, strict=True):
        if x != y or x < 0:
            break
        depth += 1
    return depth


def oracle(features, ks):
    rows = [i for i in range(len(features)) if features.labels[i, 0] >= 0]
    x = features.h.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    levels = features.levels
    far = {(i, j): 1 - x[i] @ x[j] for i in rows for j in rows if i != j}
    depth = {(i, j): depth_of(features.labels[i], features.labels[j]) for i, j in far}
    distance, pairs = [], []
    for d in range(levels + 1):
        found = [far[i, j] for i, j in itertools.combinations(rows, 2) if depth[i, j] == d]
        distance.append(np.mean(found) if found else np.nan)
        pairs.append(len(found))
    violations, every, precision = [[] for _ in range(levels + 1)], [], {k: [] for k in ks}
    for i in rows:
        others = [j for j in rows if j != i]
        all_wrong, all_pairs = 0, 0
        for d in range(1, levels + 1):
            deeper = [j for j in others if depth[i, j] == d]
            above = [j for j in others if depth[i, j] == d - 1]
            wrong = [far[i, j] >= far[i, k] for j in deeper for k in above]
            if wrong:
                violations[d].append(np.mean(wrong))
            below = [far[i, j] >= far[i, k] for j in deeper for k in others if depth[i, k] < d]
            all_wrong, all_pairs = all_wrong + sum(below), all_pairs + len(below)
        if all_pairs:
            every.append(all_wrong / all_pairs)
        order = sorted(others, key=lambda j: far[i, j])
        for k in ks:
            best = sum(sorted((depth[i, j] for j in others), reverse=True)[:k])
            if best:
                precision[k].append(sum(depth[i, j] for j in order[:k]) / best)
    return (
        distance,
        pairs,
        [np.nan, *(np.mean(v) for v in violations[1:])],
        np.mean(every),
        {k: np.mean(v) for k, v in precision.items()},
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_loops_over_pairs_and_triples(seed, monkeypatch):
    monkeypatch.setattr(retrieval, "QUERIES", 16)  # several parts
    features, ks = tree_features(seed=seed), (1, 5, 20)
    result = hierarchy(features, ks)
    distance, pairs, violations, violation, precision = oracle(features, ks)
    np.testing.assert_allclose(result.distance, distance, atol=1e-6)
    assert list(result.pairs) == pairs
    np.testing.assert_allclose(result.violations, violations, atol=1e-5)
    assert result.violation == pytest.approx(violation, abs=1e-5)
    for k in ks:
        assert result.precision[k] == pytest.approx(precision[k], abs=1e-5)
    assert (result.queries, result.examples, result.unlabelled) == (38, 38, 2)
    assert 0.05 < result.violation < 0.45


def toy(*angles):
    """Four images: two of one leaf, their cousin, and a stranger."""
    radians = np.deg2rad(angles)
    h = np.stack([np.cos(radians), np.sin(radians)], 1).astype(np.float32)
    return Features(h, np.array([[0, 0], [0, 0], [0, 1], [1, 0]], np.int32))


def test_a_tree_that_is_kept_and_one_that_is_not():
    kept = hierarchy(toy(0, 5, 30, 120), (1, 2))
    assert kept.kept
    assert kept.violation == 0
    assert kept.precision == {1: 1.0, 2: 1.0}
    assert kept.distance[2] < kept.distance[1] < kept.distance[0]
    assert kept.distance[2] == pytest.approx(1 - np.cos(np.deg2rad(5)), abs=1e-6)
    assert kept.pairs == (3, 2, 1)
    assert kept.relative(0) == 1
    assert kept.relative(2) == pytest.approx(kept.distance[2] / kept.distance[0])
    # The cousin lies nearer than the sister, the stranger nearer than the cousin.
    turned = hierarchy(toy(0, 120, 30, 5), (1, 2))
    assert not turned.kept
    assert turned.violation > 0.5
    assert turned.precision[1] < 1
    # Two leaves of one parent and no strangers: the deepest level alone can be violated.
    only = hierarchy(toy(0, 5, 30, 120).take(np.arange(3)))
    assert np.isnan(only.distance[0])
    assert np.isnan(only.violations[1])
    assert only.violations[2] == 0
    assert only.relative(1) == 1


def test_equal_distances_violate_the_hierarchy():
    same = hierarchy(toy(10, 10, 10, 10), (1,))
    assert same.violation == 1
    assert same.violations[1:] == (1, 1)
    np.testing.assert_allclose(same.distance, 0, atol=1e-6)


def test_chance_is_one_half():
    rng = np.random.default_rng(0)
    noise = Features(rng.normal(size=(300, 8)), rng.integers(0, 3, (300, 2)))
    assert hierarchy(noise).violation == pytest.approx(0.5, abs=0.03)


def test_limits_and_errors():
    features = tree_features()
    whole, some = hierarchy(features), hierarchy(features, limit=25)
    assert (some.queries, whole.queries) == (25, 38)
    assert some.distance == whole.distance
    assert some.violation != whole.violation
    assert some.violation == pytest.approx(whole.violation, abs=0.1)
    assert set(whole.precision) == set(some.precision) == {1, 10}  # of 1, 10 and 50
    flat = Features(np.eye(3), np.zeros((3, 1), int))
    with pytest.raises(NothingToScore, match="all at one depth"):
        hierarchy(flat)
    with pytest.raises(NothingToScore, match="0 labelled examples make no pair"):
        hierarchy(Features(np.eye(3), np.full((3, 1), -1)))
    with pytest.raises(ValueError, match="euclidean"):
        hierarchy(features, metric="euclidean")
    with pytest.raises(ValueError, match="limit=0"):
        hierarchy(features, limit=0)


def test_renamed_labels_give_the_same_figures():
    features = tree_features()
    other = np.where(features.labels >= 0, 1 - features.labels, -1)
    a, b = hierarchy(features), hierarchy(Features(features.h, other))
    np.testing.assert_allclose(a.distance, b.distance)
    assert a.violation == pytest.approx(b.violation)
