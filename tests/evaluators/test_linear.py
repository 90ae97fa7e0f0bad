"""Logistic regression against scikit-learn's."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, top_k_accuracy_score
from sklearn.preprocessing import StandardScaler

from jaxcl.evaluators import Features, linear_probe, logistic_regression
from jaxcl.evaluators.base import top_score
from jaxcl.evaluators.linear import PAPER_GRID, Scaler, logistic_path


def blobs(n, width, classes, seed, noise=1.0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    y = rng.integers(0, classes, n)
    h = centres[y] + noise * rng.normal(size=(n, width)) * (1 + np.arange(width) % 5) + 3
    return Features(h.astype(np.float32), y[:, None].astype(np.int32))


@pytest.mark.parametrize("l2", [1e-3, 1e-1])
@pytest.mark.parametrize("standardise", [True, False])
def test_same_optimum_as_sklearn(l2, standardise):
    train, test = blobs(300, 12, 5, 0), blobs(200, 12, 5, 1)
    ours = logistic_regression(train, l2=l2, standardise=standardise, max_iterations=2000)
    assert ours.converged
    scale = StandardScaler(with_mean=standardise, with_std=standardise).fit(train.h.astype(float))
    x, y = scale.transform(train.h.astype(float)), train.labels[:, 0]
    theirs = LogisticRegression(C=1 / (l2 * len(train)), tol=1e-10, max_iter=20000).fit(x, y)
    penalty = l2 / 2 * (theirs.coef_**2).sum()
    assert abs(ours.loss - (log_loss(y, theirs.predict_proba(x)) + penalty)) < 1e-5
    accuracy, queries, unlabelled, unseen = ours.accuracy(test)
    expected = theirs.score(scale.transform(test.h.astype(float)), test.labels[:, 0])
    assert abs(accuracy - expected) < 1e-4
    assert (queries, unlabelled, unseen) == (200, 0, 0)
    logits = ours.logits(test.h)
    probability = np.exp(logits - logits.max(1, keepdims=True))
    probability /= probability.sum(1, keepdims=True)
    np.testing.assert_allclose(
        probability, theirs.predict_proba(scale.transform(test.h.astype(float))), atol=2e-3
    )


def test_warm_started_path_reaches_the_same_optima():
    train = blobs(300, 12, 5, 0)
    l2s = (1e-2, 1.0, 1e-3)
    for l2, model in zip(l2s, logistic_path(train, -1, l2s, max_iterations=2000), strict=True):
        alone = logistic_regression(train, l2=l2, max_iterations=2000)
        assert model.converged
        assert abs(model.loss - alone.loss) < 1e-5
        np.testing.assert_allclose(model.weights, alone.weights, atol=5e-3)


def test_rows_of_padding_change_nothing():
    train, some = blobs(300, 12, 5, 0), blobs(170, 12, 5, 1)
    for data in (train, some):
        (padded,) = logistic_path(data, -1, (1e-2,), pad_to=300)
        x, y = StandardScaler().fit_transform(data.h.astype(float)), data.labels[:, 0]
        theirs = LogisticRegression(C=100 / len(data), tol=1e-10, max_iter=20000).fit(x, y)
        np.testing.assert_allclose(padded.weights.T, theirs.coef_, atol=5e-3)


def test_probe_chooses_on_validation_fits_again_and_counts():
    train, validation, test = (blobs(n, 12, 5, i, 3) for i, n in enumerate((150, 150, 200)))
    labels = test.labels.copy()
    labels[:7], labels[7:10] = -1, 11
    test = Features(test.h, labels)
    l2s = (1e-4, 1e-1, 1.0, 10.0)
    result = linear_probe(train, validation, test, l2s=l2s)
    models = logistic_path(train, -1, l2s, tolerance=1e-4, pad_to=300)
    assert result.validation == {
        l2: m.accuracy(validation)[0] for l2, m in zip(l2s, models, strict=True)
    }
    best = max(result.validation.values())
    assert result.l2 == max(l2 for l2, v in result.validation.items() if v == best)
    assert len(set(result.validation.values())) > 1  # there was something to choose
    assert (result.queries, result.unlabelled, result.unseen) == (193, 7, 3)
    assert result.trained_on == 300
    again = logistic_regression(train.join(validation), l2=result.l2, tolerance=1e-4)
    assert result.accuracy == again.accuracy(test)[0]
    assert result.scalars("p/")["p/accuracy"] == result.accuracy
    other = linear_probe(train, validation, test, l2s=(result.l2,), refit=train)
    assert other.trained_on == 150
    assert other.accuracy != result.accuracy


def test_top5_is_sklearns_and_is_of_many_classes_only():
    train, test = blobs(300, 6, 12, 0, 3), blobs(200, 6, 12, 1, 3)
    result = linear_probe(train, train, test, l2s=(1.0,), refit=train)
    model = logistic_regression(train, l2=1.0, tolerance=1e-4)
    expected = top_k_accuracy_score(test.labels[:, -1], model.logits(test.h), k=5, labels=range(12))
    assert result.accuracy < expected < 1
    assert result.top5 == pytest.approx(expected)
    assert linear_probe(*(blobs(100, 6, 9, i, 3) for i in range(3))).top5 is None


def test_what_is_not_a_number_is_not_among_the_highest():
    assert top_score(np.full((12, 12), np.nan), np.arange(12)) == 0.0


def test_top_score_leaves_out_and_counts_as_wrong_what_score_does():
    scores = np.random.default_rng(0).normal(size=(40, 10)).astype(np.float32)
    truth = np.arange(40) % 10
    expected = top_k_accuracy_score(truth, scores, k=5)
    assert 0.2 < expected < 0.8
    assert top_score(scores, truth) == pytest.approx(expected)
    other = np.concatenate([truth, [-1] * 3, [-2] * 10])
    more = np.concatenate([scores, np.ones((13, 10), np.float32)])
    assert top_score(more, other) == pytest.approx(expected * 40 / 50)
    # Equal scores: the first five are the highest.
    assert top_score(np.zeros((10, 10)), np.arange(10)) == 0.5
    assert top_score(scores, np.full(40, -1)) is None
    assert top_score(scores[:, :9], truth % 9) is None


def test_preconditioning_saves_iterations_on_collinear_features():
    train = blobs(300, 12, 5, 0)
    mix = np.random.default_rng(0).normal(size=(12, 12)) * np.logspace(0, -2, 12)
    mixed = Features((train.h @ mix.astype(np.float32)).astype(np.float32), train.labels)
    model = logistic_regression(mixed, l2=1e-4, tolerance=1e-4)
    assert model.converged
    assert model.iterations < 60


def test_biases_of_rare_classes_take_few_iterations():
    rng = np.random.default_rng(0)
    y = np.concatenate([np.repeat(np.arange(40), 2), rng.integers(0, 3, 2000)])
    h = rng.normal(size=(len(y), 300)) + rng.normal(size=(40, 300))[y]
    train = Features(h.astype(np.float32), y[:, None].astype(np.int32))
    model = logistic_regression(train, l2=3.0, tolerance=1e-5)
    assert model.converged
    assert model.iterations < 18


def test_constant_features_are_left_alone():
    scaler = Scaler.fit(np.array([[1e3, 1.0], [1e3, 3.0]], np.float32))
    assert scaler.std.tolist() == [1.0, 1.0]
    assert scaler(np.array([[1e3, 1.0]], np.float32)).tolist() == [[0.0, -1.0]]


def test_paper_grid():
    assert len(PAPER_GRID) == 45
    np.testing.assert_allclose([PAPER_GRID[0], PAPER_GRID[-1]], [1e-6, 1e5])
    np.testing.assert_allclose(np.diff(np.log10(PAPER_GRID)), 0.25)


def test_errors():
    data = blobs(300, 12, 5, 0)
    with pytest.raises(ValueError, match=r"l2=\(-1,\)"):
        logistic_regression(data, l2=-1)
    with pytest.raises(ValueError, match="1 class"):
        logistic_regression(Features(data.h, np.zeros_like(data.labels)))
    with pytest.raises(ValueError, match="not finite"):
        logistic_regression(Features(data.h + np.inf, data.labels))
    blank = Features(data.h, np.full_like(data.labels, -1))
    with pytest.raises(ValueError, match="no example to score"):
        linear_probe(data, data, blank, l2s=(1.0,), refit=data)
