"""Few-shot against scikit-learn's logistic regression on the same draws."""

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from jaxcl.evaluators import Features, NothingToScore, few_shot
from jaxcl.evaluators.fewshot import interval


def clouds(n, seed, classes=3, noise=1.0):
    rng = np.random.default_rng(seed)
    leaf = np.arange(n) % classes
    centres = np.random.default_rng(5).normal(size=(classes, 6)) + 1
    h = centres[leaf] + noise * rng.normal(size=(n, 6))
    return Features(h.astype(np.float32), leaf[:, None].astype(np.int32))


def draws(monkeypatch):
    """Notes the rows that each trial learns from."""
    from jaxcl import data

    noted = []
    real = data.class_balanced_subset

    def subset(labels, **settings):
        rows = real(labels, **settings)
        noted.append(rows)
        return rows

    monkeypatch.setattr(data, "class_balanced_subset", subset)
    return noted


def unit(h):
    h = h.astype(np.float64)
    return h / np.linalg.norm(h, axis=1, keepdims=True)


@pytest.mark.parametrize("own", [False, True])
def test_every_trial_is_scikit_learns_classifier(own, monkeypatch):
    noted = draws(monkeypatch)
    pool, queries = clouds(60, 0), None if own else clouds(90, 1)
    result = few_shot(pool, queries, shots=4, trials=3, seed=2)
    assert len(noted) == 3
    expected = []
    for rows in noted:
        assert np.bincount(pool.labels[rows, 0]).tolist() == [4, 4, 4]
        asked = pool.take(np.setdiff1d(np.arange(60), rows)) if own else queries
        model = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000)
        model.fit(unit(pool.h[rows]), pool.labels[rows, 0])
        expected.append(model.score(unit(asked.h), asked.labels[:, 0]))
    # A query on the border may fall to either side.
    np.testing.assert_allclose(result.trials, expected, atol=1.01 / len(asked))
    assert result.accuracy == pytest.approx(np.mean(result.trials))
    low, high = stats.t.interval(0.95, 2, np.mean(result.trials), stats.sem(result.trials))
    assert result.interval == pytest.approx((high - low) / 2)
    assert (result.classes, result.queries) == (3, 48 if own else 90)
    assert result.converged
    assert 0.4 < result.accuracy < 1


def test_draws_differ_by_trial_and_seed_and_stay(monkeypatch):
    noted = draws(monkeypatch)
    pool, queries = clouds(90, 0), clouds(30, 1)
    first = few_shot(pool, queries, shots=4, trials=4)
    again = few_shot(pool, queries, shots=4, trials=2)
    few_shot(pool, queries, shots=4, trials=1, seed=1)
    assert len({tuple(rows) for rows in noted}) == 5
    assert again.trials == first.trials[:2]


def test_more_shots_and_less_noise_are_better():
    pool, queries = clouds(300, 0, noise=1.5), clouds(300, 1, noise=1.5)
    one, many = (few_shot(pool, queries, shots=s, trials=8).accuracy for s in (1, 4))
    assert many > one + 0.03
    shuffled = Features(pool.h, np.random.default_rng(0).permutation(pool.labels))
    chance = few_shot(shuffled, queries, shots=4, trials=8)
    assert chance.accuracy == pytest.approx(1 / 3, abs=0.1)


def test_small_classes_and_strangers_are_left_out_by_count():
    pool = clouds(60, 0, classes=4)
    pool.labels[pool.labels == 3] = -1
    pool.labels[np.flatnonzero(pool.labels == 2)[3:]] = -1  # three examples are left
    queries = clouds(40, 1, classes=4)  # ten each
    queries.labels[:4] = -1
    result = few_shot(pool, queries, shots=4, trials=2)
    assert (result.classes, result.too_small) == (2, 1)
    assert (result.queries, result.left_out, result.unlabelled) == (18, 18, 4)
    with pytest.raises(NothingToScore, match=r"16-shot .* 0 of 3 classes .*the largest has 15"):
        few_shot(pool, queries, shots=16)
    with pytest.raises(NothingToScore, match="no query is of the 2 classes"):
        few_shot(pool, Features(queries.h[:3], np.full((3, 1), 3)))
    with pytest.raises(ValueError, match="shots=0"):
        few_shot(pool, queries, shots=0)


def test_interval_of_one_value():
    assert interval([0.4]) is None
    assert interval([0.4, 0.4]) == 0


def test_a_pool_with_one_possible_draw_has_one_trial_and_no_interval(monkeypatch):
    """Ten of each class, ten asked for: trials would all be the same set, and an interval of 0 a lie."""
    noted = draws(monkeypatch)
    pool, queries = clouds(30, 0), clouds(60, 1)
    only = few_shot(pool, queries, shots=10, trials=5)
    assert (len(only.trials), only.interval, len(noted)) == (1, None, 1)
    assert sorted(noted[0]) == list(range(30))
    several = few_shot(pool, queries, shots=9, trials=5)
    assert len(several.trials) == 5
    assert several.interval > 0
    # One class with something to choose from is enough; and of queries of its own pool one more is always there.
    more = pool.join(clouds(3, 7).take(np.array([0])))
    assert len(few_shot(more, queries, shots=10, trials=5).trials) == 5
    assert len(few_shot(pool, shots=9, trials=5).trials) == 5
