"""Clustering: mutual information from its definition, and k-means where the answer is known."""

import sys

import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from jaxcl.evaluators import Features, NothingToScore, clustering
from jaxcl.evaluators import clustering as clustering_function

module = sys.modules[clustering_function.__module__]


def blobs(spread, seed=0, n=120):
    """Four directions, two parents."""
    rng = np.random.default_rng(seed)
    leaf = np.arange(n) % 4
    h = 3 * np.eye(4)[leaf] + spread * rng.normal(size=(n, 4))
    return Features(h.astype(np.float32), np.stack([leaf // 2, leaf % 2], 1).astype(np.int32))


def nmi_by_counting(a, b):
    """I(a; b) / ((H(a) + H(b)) / 2)."""
    pairs = [(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    n = len(pairs)

    def entropy(values):
        return -sum(values.count(v) / n * np.log(values.count(v) / n) for v in set(values))

    ha, hb, hab = entropy(a.tolist()), entropy(b.tolist()), entropy(pairs)
    return (ha + hb - hab) / ((ha + hb) / 2)


def test_separate_blobs_are_found_and_noise_is_not():
    clear = clustering(blobs(0.05), seeds=range(6))
    assert max(clear.nmis.values()) == pytest.approx(1.0)
    assert clear.silhouette > 0.95
    assert (clear.clusters, clear.found, clear.examples) == (4, 4, 120)
    noise = Features(np.random.default_rng(0).normal(size=(120, 4)), blobs(1.0).labels)
    chance = clustering(noise)
    assert abs(chance.ami) < 0.1
    assert chance.nmi > chance.ami  # NMI is not corrected for chance
    assert chance.silhouette < 0.05
    fuzzy = clustering(blobs(0.8))
    assert chance.nmi < fuzzy.nmi < clear.nmi


def test_scores_are_those_of_the_clusters_of_each_seed(monkeypatch):
    """k-means is replaced: the scores are then exactly known."""
    drawn = {seed: np.random.default_rng(seed).integers(0, 3, 30) for seed in (3, 8)}

    class Fixed:
        def __init__(self, clusters, n_init, random_state):
            assert (clusters, n_init) == (4, 1)
            self.seed = random_state

        def fit_predict(self, x):
            np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-6)
            return drawn[self.seed]

    monkeypatch.setattr(module, "KMeans", Fixed)
    found = blobs(0.5, n=30)
    result = clustering(found, seeds=(3, 8))
    truth = found.labels[:, 0] * 2 + found.labels[:, 1]
    for seed, cluster in drawn.items():
        assert result.nmis[seed] == pytest.approx(nmi_by_counting(truth, cluster))
        assert result.nmis[seed] == pytest.approx(normalized_mutual_info_score(truth, cluster))
        assert result.amis[seed] == pytest.approx(adjusted_mutual_info_score(truth, cluster))
    a, b = result.nmis.values()
    assert a != b
    assert result.nmi == pytest.approx((a + b) / 2)
    assert result.nmi_std == pytest.approx(abs(a - b) / np.sqrt(2))
    assert result.found == 3  # of 4


def test_numbers_of_labels_do_not_matter_and_levels_do():
    found = blobs(0.6)
    result = clustering(found, seeds=(0, 1))
    other = np.array([5, 2])[found.labels]
    again = clustering(Features(found.h, other), seeds=(0, 1))
    for name, value in result.scalars().items():
        assert again.scalars()[name] == pytest.approx(value, abs=1e-9)
    assert clustering(found, 0, seeds=(0,)).clusters == 2
    assert clustering(found, seeds=(0,)).nmi_std == 0


def test_silhouette_by_loops():
    found = blobs(0.7, n=24)
    x = found.h.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    leaf = found.labels[:, 0] * 2 + found.labels[:, 1]
    total = 0.0
    for i in range(24):
        far = {c: [1 - x[i] @ x[j] for j in range(24) if leaf[j] == c and j != i] for c in range(4)}
        inside = np.mean(far[leaf[i]])
        outside = min(np.mean(far[c]) for c in range(4) if c != leaf[i])
        total += (outside - inside) / max(inside, outside)
    assert clustering(found, seeds=(0,)).silhouette == pytest.approx(total / 24, abs=1e-5)


def test_features_that_coincide_and_limits():
    same = Features(np.ones((12, 3), np.float32), (np.arange(12) % 3)[:, None].astype(np.int32))
    result = clustering(same)  # no warning either
    assert (result.found, result.nmi) == (1, 0.0)
    few = clustering(blobs(0.3), seeds=(0,), limit=40)
    assert (few.examples, few.left_out) == (40, 80)
    some = blobs(0.3)
    some.labels[:10, 1] = -1
    assert clustering(some, seeds=(0,)).unlabelled == 10
    with pytest.raises(NothingToScore, match=r"4 labelled examples in 4 class\(es\)"):
        clustering(Features(np.eye(4), np.arange(4)[:, None]))
    with pytest.raises(NothingToScore, match=r"in 1 class"):
        clustering(Features(np.eye(4), np.zeros((4, 1), int)))
    with pytest.raises(ValueError, match="seeds"):
        clustering(blobs(0.3), seeds=())
