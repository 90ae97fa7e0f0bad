"""Similarity of features against known similarity: scipy, scikit-learn and loops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import pearsonr, rankdata, spearmanr
from sklearn.metrics import ndcg_score, roc_auc_score

from jaxcl.data import PairTable
from jaxcl.evaluators import (
    Features,
    NothingToScore,
    Subject,
    higher_is_better,
    table_similarity,
    tree_similarity,
)
from jaxcl.evaluators import similarity as evaluator
from jaxcl.losses import ScorerSpec, Scoring

DEPTHS = 3


def labelled(seed=0, count=24):
    """Features that follow a tree of three levels, with noise; two examples have missing labels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(3, size=count)
    middle = 2 * coarse + rng.integers(2, size=count)
    labels = np.stack([coarse, middle, 2 * middle + rng.integers(2, size=count)], 1).astype(
        np.int32
    )
    labels[3, 1:], labels[4] = -1, -1
    centres = [rng.normal(size=(12, 6)) for _ in range(DEPTHS)]
    h = sum(c[labels[:, level]] for level, c in enumerate(centres)) + rng.normal(size=(count, 6))
    return Features(h.astype(np.float32), labels)


def known(features):
    """(cosines, depths) f64[n, n] of those with a label."""
    rows = features.labels[:, 0] >= 0
    x, labels = features.h[rows].astype(np.float64), features.labels[rows]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    depth = np.zeros((len(x), len(x)))
    for i, j in itertools.product(range(len(x)), repeat=2):
        while depth[i, j] < DEPTHS:
            a, b = labels[i, int(depth[i, j])], labels[j, int(depth[i, j])]
            if a != b or a < 0:
                break
            depth[i, j] += 1
    return x @ x.T, depth


def test_a_tree_equals_scipy_and_scikit_learn():
    features = labelled()
    found = tree_similarity(features, ks=(3, 10, 500))
    s, depth = known(features)
    n = len(s)
    upper = np.triu_indices(n, 1)
    np.testing.assert_allclose(
        found.spearman, spearmanr(s[upper], depth[upper]).statistic, rtol=1e-4
    )
    np.testing.assert_allclose(found.pearson, pearsonr(s[upper], depth[upper]).statistic, rtol=1e-5)
    for level in range(DEPTHS):
        auc = roc_auc_score(depth[upper] > level, s[upper])
        np.testing.assert_allclose(found.auc[level], auc, rtol=1e-4)
    assert found.pairs == found.known == n * (n - 1) // 2
    assert (found.examples, found.unlabelled, found.lists) == (23, 1, 23)
    gains = {0: [], 3: [], 10: []}
    shares = []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        truth, scores = depth[i, others], s[i, others]
        for k, values in gains.items():
            if truth.any():
                values.append(ndcg_score([truth], [scores], k=k or None))
        right = [
            scores[a] > scores[b]
            for a, b in itertools.product(range(n - 1), repeat=2)
            if truth[a] > truth[b]
        ]
        if right:
            shares.append(np.mean(right))
    assert set(found.ndcg) == set(gains)
    for k, values in gains.items():
        np.testing.assert_allclose(found.ndcg[k], np.mean(values), rtol=1e-5)
    np.testing.assert_allclose(found.triplet_accuracy, np.mean(shares), rtol=1e-5)


def test_of_many_pairs_some_are_drawn():
    features = labelled(1, 300)
    whole = tree_similarity(features)
    some = tree_similarity(features, limit=8000, queries=100)
    assert (whole.pairs, whole.lists) == (whole.known, whole.examples)
    assert (some.pairs, some.known, some.lists) == (8000, whole.known, 100)
    assert some.spearman != whole.spearman
    np.testing.assert_allclose(some.spearman, whole.spearman, atol=0.04)
    np.testing.assert_allclose(some.pearson, whole.pearson, atol=0.04)
    np.testing.assert_allclose(some.auc, whole.auc, atol=0.04)
    np.testing.assert_allclose(some.ndcg[0], whole.ndcg[0], atol=0.04)
    assert tree_similarity(features, limit=8000, queries=100) == some


def test_drawn_pairs_are_even():
    rng = np.random.default_rng(0)
    a, b = evaluator._drawn_pairs(5, 20_000, rng)
    counts = np.zeros((5, 5))
    np.add.at(counts, (a, b), 1)
    assert (np.diag(counts) == 0).all()
    assert (abs(counts[~np.eye(5, dtype=bool)] - 1000) < 150).all()
    number = np.array([7, 3, 7, 3, 7, 9])
    a, b = evaluator._pairs_of_a_class(number, 8000, rng)
    counts = np.zeros((6, 6))
    np.add.at(counts, (a, b), 1)
    alike = (number[:, None] == number) & ~np.eye(6, dtype=bool)
    assert (counts[~alike] == 0).all()
    assert (abs(counts[alike] - 1000) < 150).all()
    assert len(evaluator._pairs_of_a_class(np.arange(4), 5, rng)[0]) == 0


def test_ranks_and_curves_with_ties():
    rng = np.random.default_rng(2)
    for _ in range(20):
        x = rng.integers(4, size=9).astype(np.float64)
        y = rng.integers(3, size=9).astype(np.float64)
        np.testing.assert_array_equal(evaluator.average_ranks(x), rankdata(x))
        if np.ptp(x) and np.ptp(y):
            np.testing.assert_allclose(evaluator.spearman(x, y), spearmanr(x, y).statistic)
            truth = y > y.min()
            found = evaluator.area_under_curve(x[truth], x[~truth])
            np.testing.assert_allclose(found, roc_auc_score(truth, x))
    assert np.isnan(evaluator.pearson(np.ones(4), np.arange(4)))
    assert np.isnan(evaluator.area_under_curve(np.ones(0), np.ones(2)))


def pairs(rows, similarity, images=8):
    return PairTable(np.asarray(rows), np.asarray(similarity, np.float32), images, "")


def test_a_table_of_pairs():
    rng = np.random.default_rng(3)
    features = Features(rng.normal(size=(8, 5)).astype(np.float32), np.zeros((8, 0), np.int32))
    rows = [pair[:: rng.choice((-1, 1))] for pair in itertools.combinations(range(8), 2)]
    truth = rng.integers(-1, 3, len(rows))
    found = table_similarity(features, pairs(rows, truth), ks=(2,))
    x = features.h / np.linalg.norm(features.h, axis=1, keepdims=True)
    s = np.array([x[a] @ x[b] for a, b in rows])
    np.testing.assert_allclose(found.spearman, spearmanr(s, truth).statistic, rtol=1e-5)
    np.testing.assert_allclose(found.pearson, pearsonr(s, truth).statistic, rtol=1e-5)
    assert np.isnan(found.auc[0])  # four values are no two classes
    gains, gains2, shares = [], [], []
    for anchor in range(8):
        own = [i for i, pair in enumerate(rows) if anchor in pair]
        if len(set(truth[own])) > 1:
            gains.append(ndcg_score([truth[own] + 1], [s[own]]))
            gains2.append(ndcg_score([truth[own] + 1], [s[own]], k=2))
            shares.append(np.mean([s[i] > s[j] for i in own for j in own if truth[i] > truth[j]]))
    np.testing.assert_allclose(found.ndcg[0], np.mean(gains), rtol=1e-6)
    np.testing.assert_allclose(found.ndcg[2], np.mean(gains2), rtol=1e-6)
    np.testing.assert_allclose(found.triplet_accuracy, np.mean(shares), rtol=1e-6)
    assert (found.pairs, found.lists) == (len(rows), len(shares))
    two = table_similarity(features, pairs(rows, truth > 0))
    np.testing.assert_allclose(two.auc[0], roc_auc_score(truth > 0, s), rtol=1e-6)
    near = table_similarity(features, pairs(rows, truth), metric="euclidean")
    far = [-np.sum((features.h[a] - features.h[b]) ** 2) for a, b in rows]
    np.testing.assert_allclose(near.spearman, spearmanr(far, truth).statistic, rtol=1e-5)


def test_a_table_of_triples():
    rng = np.random.default_rng(4)
    features = Features(rng.normal(size=(8, 5)).astype(np.float32), np.zeros((8, 0), np.int32))
    rows = np.array([rng.permutation(8)[:3] for _ in range(40)])
    found = table_similarity(features, PairTable(rows, None, 8, ""))
    x = features.h / np.linalg.norm(features.h, axis=1, keepdims=True)
    expected = np.mean([x[a] @ x[p] > x[a] @ x[n] for a, p, n in rows])
    np.testing.assert_allclose(found.triplet_accuracy, expected)
    assert found.lists == 40
    assert np.isnan(found.spearman)
    assert found.ndcg == {}


def test_recall_of_a_table_equals_loops(monkeypatch):
    """Of every image with a positive, among all images that the table names; who scores all alike finds nothing."""
    rng = np.random.default_rng(5)
    features = Features(rng.normal(size=(30, 3)).astype(np.float32), np.zeros((30, 0), np.int32))
    x = features.h / np.linalg.norm(features.h, axis=1, keepdims=True)

    def by_loops(positives, named, k):
        found = []
        for query in sorted({a for a, _ in positives}):
            order = sorted((i for i in named if i != query), key=lambda i: -x[query] @ x[i])
            found.append(any((query, i) in positives for i in order[:k]))
        return np.mean(found)

    rows = np.array([rng.permutation(30)[:2] for _ in range(20)])
    similar = rng.integers(2, size=20)
    both = {tuple(p) for row in rows[similar > 0].tolist() for p in (row, row[::-1])}
    triples = np.array([rng.permutation(30)[:3] for _ in range(12)])
    asked = {(a, p) for a, p, _ in triples.tolist()}
    for size in (1024, 3):  # all queries at once, and a few at a time
        monkeypatch.setattr(evaluator, "rows_at_once", lambda items, size=size: size)
        found = table_similarity(features, pairs(rows, similar, 30), recall_ks=(1, 5, 400)).recall
        assert found == {
            k: pytest.approx(by_loops(both, set(rows.ravel().tolist()), k)) for k in (1, 5)
        }
        found = table_similarity(features, PairTable(triples, None, 30, ""), recall_ks=(3,)).recall
        assert found == {3: pytest.approx(by_loops(asked, set(triples.ravel().tolist()), 3))}
    assert table_similarity(features, pairs(rows, rng.normal(size=20), 30)).recall == {}
    same = Features(np.ones_like(features.h), features.labels)
    assert table_similarity(same, pairs(rows, similar, 30)).recall[1] == 0


def planted(count=40, seed=11):
    """Features of which the first alone tells what is similar, its sign too; and (labels, pairs, similarities) of that."""
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(count, 6)).astype(np.float32)
    h[:, 1:] *= 3
    coarse = (h[:, 0] > 0).astype(np.int32)
    fine = 2 * coarse + (np.abs(h[:, 0]) > 0.7)
    rows = np.array(list(itertools.combinations(range(count), 2)))
    truth = -np.square(h[rows[:, 0], 0] - h[rows[:, 1], 0])
    return Features(h, np.stack([coarse, fine], 1).astype(np.int32)), rows, truth


OWN = {"map": np.eye(1, 6, dtype=np.float32)}  # A, of -|A x - A y|^2


def test_a_trained_scorer_is_what_is_scored():
    """It finds what was planted, and the cosine does not; what it predicts is held against the truth."""
    features, rows, truth = planted()
    spec = ScorerSpec("mahalanobis", rank=1)
    own = Scoring(spec, OWN, lambda s: s + 0.25)
    table = pairs(rows, truth, len(features))
    found, cosine = (
        table_similarity(features, table, scoring=own),
        table_similarity(features, table),
    )
    assert found.spearman > 0.9999
    assert found.triplet_accuracy > 0.999
    assert found.metric == "mahalanobis"
    np.testing.assert_allclose(found.predicted["error"], 0.25, rtol=1e-4)
    assert abs(cosine.spearman) < 0.4
    assert cosine.predicted == {}
    edges = (-4.0, -0.5)
    grades = Scoring(spec, OWN, lambda s: jnp.where(s < -0.5, 0, 2), edges)
    found = table_similarity(features, table, scoring=grades).predicted
    wrong = (truth >= -4) & (truth < -0.5)
    lowest = truth < -4
    np.testing.assert_allclose(found["accuracy"], 1 - wrong.mean())
    np.testing.assert_allclose(
        found["balanced_accuracy"], 2 / 3
    )  # one grade in three is never told
    assert lowest.any()
    two = pairs(rows, truth > -0.5, len(features))
    assert table_similarity(features, two, scoring=own).auc[0] == 1
    assert table_similarity(features, two, scoring=own).recall[1] == 1
    triples = np.array([[a, *((b, c) if abs(h[a] - h[b]) < abs(h[a] - h[c]) else (c, b))]
                        for h in [features.h[:, 0]] for a, b, c in itertools.combinations(range(12), 3)])  # fmt: skip
    of_triples = PairTable(triples, None, len(features), "")
    assert table_similarity(features, of_triples, scoring=own).triplet_accuracy == 1
    assert table_similarity(features, of_triples).triplet_accuracy < 0.8


def test_a_tree_is_scored_by_a_trained_scorer(monkeypatch):
    """As by the Euclidean distance of what it maps to; a scorer that makes many numbers of a pair takes fewer at once."""
    features, _, _ = planted()
    own = Scoring(ScorerSpec("mahalanobis", rank=1), OWN, lambda s: (s > -0.3) * 2, (0.25, 0.75))
    found = tree_similarity(features, scoring=own)
    s = -np.square(features.h[:, :1] - features.h[:, 0])
    depth = (features.labels[:, None] == features.labels[None]).sum(-1)
    upper = np.triu_indices(len(s), 1)
    np.testing.assert_allclose(
        found.spearman, spearmanr(s[upper], depth[upper]).statistic, rtol=1e-5
    )
    np.testing.assert_allclose(found.auc[0], roc_auc_score(depth[upper] > 0, s[upper]), rtol=1e-6)
    shares, gains = [], []
    for i in range(len(s)):
        others = np.delete(np.arange(len(s)), i)
        score, known_depth = s[i, others], depth[i, others]
        above = known_depth[:, None] > known_depth[None]
        shares.append((score[:, None] > score[None])[above].mean())
        gains.append(ndcg_score([known_depth], [score]))
    np.testing.assert_allclose(found.triplet_accuracy, np.mean(shares), rtol=1e-5)
    np.testing.assert_allclose(found.ndcg[0], np.mean(gains), rtol=1e-5)
    grade = np.where(s[upper] > -0.3, 2, 0)
    np.testing.assert_allclose(found.predicted["accuracy"], np.mean(grade == depth[upper]))
    assert tree_similarity(features).auc[0] < found.auc[0] - 0.2
    asked = []
    monkeypatch.setattr(evaluator, "rows_at_once", lambda items: asked.append(items) or 8)
    wide = ScorerSpec("mlp", hidden=4)
    params = wide.init(jax.random.key(0), 6)
    tree_similarity(features, scoring=Scoring(wide, params))
    assert asked == [40 * 16]


def test_what_was_planted_is_found():
    """Features whose cosines are the known similarities: everything is perfect, and random ones are at chance."""
    rng = np.random.default_rng(5)
    angle = np.linspace(0, np.pi / 2, 60)
    h = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    rows = rng.integers(60, size=(400, 2))
    truth = -abs(rows[:, 0] - rows[:, 1])
    labels = np.zeros((60, 0), np.int32)
    found = table_similarity(Features(h, labels), pairs(rows, truth, 60))
    assert found.spearman > 0.999
    assert found.triplet_accuracy > 0.999
    assert found.ndcg[0] > 0.999
    noise = Features(rng.normal(size=(60, 30)).astype(np.float32), labels)
    found = table_similarity(noise, pairs(rows, truth, 60))
    assert abs(found.spearman) < 0.2
    assert abs(found.triplet_accuracy - 0.5) < 0.1


def test_long_lists_are_cut(monkeypatch):
    monkeypatch.setattr(evaluator, "ITEMS", 5)
    rng = np.random.default_rng(6)
    features = Features(rng.normal(size=(30, 4)).astype(np.float32), np.zeros((30, 0), np.int32))
    star = [(0, i) for i in range(1, 30)]
    lengths = []
    real = evaluator.order_accuracy
    monkeypatch.setattr(
        evaluator, "order_accuracy", lambda s, t: lengths.append(len(s)) or real(s, t)
    )
    table_similarity(features, pairs(star, rng.normal(size=29), 30))
    assert lengths == [5]  # the other lists have one item


def test_what_cannot_be_scored_is_said():
    features = labelled()
    with pytest.raises(NothingToScore, match="all at one depth"):
        tree_similarity(features.take(np.array([4, 4, 4, 0, 0])))
    with pytest.raises(ValueError, match="the table is of 8 images, and there are features of 24"):
        table_similarity(features, pairs([(0, 1)], [1]))
    for call in (tree_similarity, lambda f, ks: table_similarity(f, pairs([(0, 1)], [1]), ks)):
        with pytest.raises(ValueError, match=r"ks=\(0,\): expected numbers >= 1"):
            call(features, ks=(0,))
    with pytest.raises(ValueError, match="limit=1"):
        tree_similarity(features, limit=1)


def test_the_similarity_of_each_depth_is_that_of_the_training():
    """Codes that count as their parent, which counts for less than half: two steps, of different size."""
    features, steps = labelled(), (0.1, 0.3, 1.0, 1.0)
    found = tree_similarity(features, ks=(3,), by_depth=steps)
    s, depth = known(features)
    truth, n = np.asarray(steps)[depth.astype(int)], len(s)
    upper = np.triu_indices(n, 1)
    np.testing.assert_allclose(
        found.spearman, spearmanr(s[upper], truth[upper]).statistic, rtol=1e-4
    )
    np.testing.assert_allclose(found.pearson, pearsonr(s[upper], truth[upper]).statistic, rtol=1e-5)
    right, total, gains = 0.0, 0, {0: [], 3: []}
    accuracies = []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        right = total = 0
        for j, k in itertools.permutations(others, 2):
            if truth[i, j] > truth[i, k]:
                right, total = right + (s[i, j] > s[i, k]), total + 1
        if total:
            accuracies.append(right / total)
        gain = truth[i, others] - steps[0]
        for k, values in gains.items():
            if gain.any():
                values.append(ndcg_score(gain[None], s[i, others][None], k=k or None))
    np.testing.assert_allclose(found.triplet_accuracy, np.mean(accuracies), rtol=1e-4)
    for k, values in gains.items():
        np.testing.assert_allclose(found.ndcg[k], np.mean(values), rtol=1e-4)
    plain = tree_similarity(features, ks=(3,))
    assert plain.auc == found.auc
    assert abs(plain.pearson - found.pearson) > 1e-3
    with pytest.raises(ValueError, match=r"by_depth=\(0, 1\): the labels have 3 level"):
        tree_similarity(features, by_depth=(0, 1))


def test_rows_of_images_that_cannot_be_read_are_left_out():
    """What is left is scored as if the table had no other rows, and the others are counted."""

    def same(found, expected):
        a, b = (list(result.scalars().values()) for result in (found, expected))
        np.testing.assert_allclose(a, b, rtol=1e-6)
        assert np.all(np.isfinite(a))

    rng = np.random.default_rng(2)
    every = rng.normal(size=(8, 4)).astype(np.float32)
    rows = list(itertools.combinations(range(8), 2))
    similarity = rng.normal(size=len(rows))
    # The lowest one stays: gains count from it.
    similarity[0] = -9
    table = pairs(rows, similarity)
    index = np.array([0, 1, 2, 4, 5, 7])
    some = Features(every[index], np.zeros((6, 0), int), index)
    found = table_similarity(some, table)
    kept = [n for n, row in enumerate(rows) if not {3, 6} & set(row)]
    expected = table_similarity(
        Features(every, np.zeros((8, 0), int)), pairs([rows[n] for n in kept], similarity[kept])
    )
    assert found.missing == len(rows) - len(kept)
    assert (found.pairs, found.lists, found.examples) == (len(kept), expected.lists, 6)
    same(found, expected)
    in_turn = np.array([5, 7, 0, 2, 1, 4])
    again = Features(every[in_turn], np.zeros((6, 0), int), in_turn)
    same(table_similarity(again, table), found)
    with pytest.raises(NothingToScore, match="none of the 1 pairs of the table"):
        table_similarity(some, pairs([[3, 6]], [1.0]))
    with pytest.raises(ValueError, match="there are features of the images 0 to 8"):
        table_similarity(Features(every[:3], np.zeros((3, 0), int), np.array([0, 2, 8])), table)


def test_rows_of_the_evaluator():
    features = labelled(7)
    rng = np.random.default_rng(7)
    table = pairs(rng.integers(24, size=(30, 2)), rng.integers(2, size=30), 24)
    said = []

    def subject(test, **changes):
        parts = dict.fromkeys(("train", "validation", "last"), test)
        given = {"levels": ("a", "b", "c")[: test.levels], "gallery": None, "take": None}
        given |= {"image_shape": (1, 1, 1), "classify": {}, "say": said.append, **parts, **changes}
        return Subject("pixels", test=test, **given)

    rows, details = subject(features, pairs=table, wanted=("b",)).rows(("similarity",))
    values = {(r.method, r.level): r.accuracy for r in rows}
    tree, of_table = tree_similarity(features), table_similarity(features, table)
    assert values["similarity/spearman", "all"] == tree.spearman
    assert values["similarity/ndcg@10", "all"] == tree.ndcg[10]
    assert values["similarity/auc", "b"] == tree.auc[1]
    assert ("similarity/auc", "a") not in values
    assert values["similarity/auc", "pairs"] == of_table.auc[0]
    assert values["similarity/triplet_accuracy", "pairs"] == of_table.triplet_accuracy
    assert set(details) == {"pixels/similarity/all", "pixels/similarity/pairs"}
    steps = (0.0, 0.0, 0.5, 1.0)
    rows, _ = subject(features, by_depth=steps).rows(("similarity",))
    values = {(r.method, r.level): r.accuracy for r in rows}
    graded = tree_similarity(features, by_depth=steps).pearson
    assert values["similarity/pearson", "all"] == graded != tree.pearson
    read = np.delete(np.arange(24), int(table.rows[0, 0]))
    some = Features(features.h[read], features.labels[read, :0], read)
    rows, details = subject(some, pairs=table, levels=()).rows(("similarity",))
    lost = int(np.any(table.rows == table.rows[0, 0], axis=1).sum())
    assert rows[0].settings["pairs"] == 30 - lost
    assert f"{lost} of the 30 pairs of the table are left out" in said[-1]
    nothing = PairTable(np.array([[0, 1, table.rows[0, 0]]]), None, 24, "")
    assert subject(some, pairs=nothing).rows(("similarity",)) == ([], {})
    assert "none of the 1 triples" in said[-1]
    unlabelled = Features(features.h, features.labels[:, :0])
    triples = PairTable(np.array([[0, 1, 2]]), None, 24, "")
    rows, _ = subject(unlabelled, pairs=triples).rows(("similarity",))
    assert {(r.method, r.level) for r in rows} == {
        ("similarity/triplet_accuracy", "triples"),
        ("similarity/recall@1", "triples"),
    }
    given = np.stack([table.similarity, np.arange(30)], axis=1).astype(np.float32)
    given[:4, 0], given[20:, 1] = np.nan, np.nan
    graded = PairTable(table.rows, given, 24, "", ("style", "colour"))
    rows, details = subject(unlabelled, pairs=graded).rows(("similarity",))
    values = {(r.method, r.level): r.accuracy for r in rows}
    style, colour = (
        table_similarity(features, PairTable(table.rows[part], given[part, column], 24, ""))
        for column, part in enumerate((slice(4, 30), slice(0, 20)))
    )
    assert values["similarity/auc", "pairs/style"] == style.auc[0]
    assert values["similarity/spearman", "pairs/style"] == style.spearman
    assert values["similarity/spearman", "pairs/colour"] == colour.spearman
    assert ("similarity/auc", "pairs/colour") not in values
    assert set(details) == {f"pixels/similarity/pairs/{name}" for name in ("style", "colour")}
    own = Scoring(ScorerSpec("l2"), {}, respect="style")
    rows, details = subject(features, pairs=graded, scoring=own).rows(("similarity",))
    scorer = {(r.method, r.level): r.accuracy for r in rows if r.method.startswith("scorer/")}
    part = PairTable(table.rows[4:], given[4:, 0], 24, "")
    assert (
        scorer["scorer/auc", "pairs/style"] == table_similarity(features, part, scoring=own).auc[0]
    )
    assert {level for _, level in scorer} == {"pairs/style"}  # neither another respect nor the tree
    assert len(details["pixels/similarity/pairs/style"]) == 2
    assert len(details["pixels/similarity/pairs/colour"]) == 1
    cosine = Scoring(ScorerSpec(), {}, lambda s: s + 1)
    rows, _ = subject(features, pairs=table, scoring=cosine).rows(("similarity",))
    found = {(r.method, r.level) for r in rows if r.method.startswith("scorer/")}
    assert found == {("scorer/error", "all"), ("scorer/error", "pairs")}
    assert not higher_is_better("scorer/error")
    assert subject(unlabelled).rows(("similarity",)) == ([], {})
    assert "data.pairs names no table" in said[-1]
    assert subject(features.take(np.zeros(3, int))).rows(("similarity",)) == ([], {})
    assert "similarity is left out" in said[-1]


def test_a_tree_takes_memory_linear_in_the_images(monkeypatch):
    """Queries are ranked a few at a time, and pairs are scored a few at a time."""
    shapes = []
    real = evaluator._score
    monkeypatch.setattr(
        evaluator, "_score", lambda rows, *a, **k: shapes.append(len(rows)) or real(rows, *a, **k)
    )
    monkeypatch.setattr(evaluator, "rows_at_once", lambda items: 16)
    features = labelled(8, 80)
    found = tree_similarity(features)
    assert shapes == [16] * 5
    monkeypatch.undo()
    np.testing.assert_allclose(tree_similarity(features).ndcg[0], found.ndcg[0], rtol=1e-6)
    x = np.random.default_rng(0).normal(size=(100, 2**16)).astype(np.float32)
    a, b = np.arange(99), np.arange(1, 100)
    scores = evaluator._pair_scores(x, a, b)
    np.testing.assert_allclose(scores, jnp.sum(x[a] * x[b], 1), rtol=1e-3, atol=1)
