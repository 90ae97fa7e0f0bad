"""Losses on the scores of pairs against loops, in little memory, and planted similarities that are found again."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import ndcg_score, roc_auc_score

from jaxcl.losses import anchors, similarity
from jaxcl.losses.scorers import ScorerSpec, mahalanobis_matrix

LABELS = np.array(
    [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [0, -1, -1], [-1, -1, -1], [0, 0, 0]]
)
NAN = float("nan")


def softplus(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0)


def random_scores(seed, shape=(3, 6)):
    """Scores, and targets of a few values some of which are not known."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 4, shape) / 3
    target[rng.random(shape) < 0.2] = NAN
    return rng.normal(size=shape).astype(np.float32), target.astype(np.float32)


def test_target_similarity_is_the_depth_of_the_common_ancestor():
    found = np.asarray(similarity.target_similarity(LABELS, LABELS))
    by_depth = np.asarray(similarity.target_similarity(LABELS, LABELS, (0, 0.1, 0.7, 1)))
    for i, j in itertools.product(range(len(LABELS)), repeat=2):
        a, b = LABELS[i], LABELS[j]
        depth = 0
        while depth < 3 and a[depth] == b[depth] >= 0:
            depth += 1
        if min(a[0], b[0]) < 0:
            assert np.isnan(found[i, j])
            assert np.isnan(by_depth[i, j])
        else:
            np.testing.assert_allclose(found[i, j], depth / 3, rtol=1e-6)
            np.testing.assert_allclose(by_depth[i, j], (0, 0.1, 0.7, 1)[depth])
    with pytest.raises(ValueError, match=r"3 level\(s\); expected 4 similarities"):
        similarity.target_similarity(LABELS, LABELS, (0, 1))
    with pytest.raises(ValueError, match="no labels"):
        similarity.target_similarity(LABELS[:, :0], LABELS[:, :0])


def test_grades():
    target = jnp.asarray([0.0, 1 / 3, 2 / 3, 1.0, NAN, 0.5])
    edges = similarity.edges_between((0, 1 / 3, 2 / 3, 1, 1))
    np.testing.assert_allclose(edges, (1 / 6, 1 / 2, 5 / 6))
    np.testing.assert_array_equal(similarity.grade(target, edges), [0, 1, 2, 3, -1, 2])
    for edges in ((), (0.5, 0.5)):
        with pytest.raises(ValueError, match="that ascend"):
            similarity.grade(target, edges)


def test_regression_equals_optax():
    scores, target = random_scores(0)
    known = ~np.isnan(target)
    filled = np.where(known, target, scores)
    for kind, expected in (
        ("mse", optax.squared_error(scores, filled)),
        ("huber", optax.huber_loss(scores, filled, delta=0.3)),
    ):
        found = similarity.regression(scores, target, kind, 0.3)
        np.testing.assert_allclose(found, np.where(known, expected, 0), rtol=1e-6)
        # Without a kink, or a gradient, where nothing is known.
        slope = jax.grad(lambda s, k=kind: similarity.regression(s, target, k).sum())(scores)
        assert np.isfinite(slope).all()
        assert (slope[~known] == 0).all()
    with pytest.raises(
        ValueError, match=r'regression: kind must be one of "mse", "huber", got .mae.'
    ):
        similarity.regression(scores, target, "mae")


def test_classification_equals_loops():
    rng = np.random.default_rng(1)
    logits = 3 * rng.normal(size=(5, 3)).astype(np.float32)
    similar = np.array([[1, 0, 0.3], [NAN, 1, 1], [NAN] * 3, [0, 0, 0], [1, NAN, 0]], np.float32)

    def price(x, y):
        return 0 if np.isnan(y) else y * softplus(-x) + (1 - y) * softplus(x)

    prices = [
        [price(x, y) for x, y in zip(*pair, strict=True)]
        for pair in zip(logits, similar, strict=True)
    ]
    np.testing.assert_allclose(similarity.binary(logits, similar), prices, rtol=1e-5)
    counts = np.maximum((~np.isnan(similar)).sum(1), 1)
    expected = np.sum(prices, 1) / counts
    np.testing.assert_allclose(similarity.multi_label(logits, similar), expected, rtol=1e-5)

    grades = np.array([0, 3, 1, -1, 2])
    found = similarity.ordinal(logits, grades)
    for row, grade, value in zip(logits, grades, found, strict=True):
        expected = sum(price(x, float(grade > k)) for k, x in enumerate(row)) if grade >= 0 else 0
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    grades = np.array([0, 2, 1, -1, 2])
    found = similarity.multi_class(logits, grades)
    for row, grade, value in zip(logits, grades, found, strict=True):
        wide = np.exp(row.astype(np.float64))
        expected = -math.log(wide[grade] / wide.sum()) if grade >= 0 else 0
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    # Logits without bounds have a gradient all the same.
    far = jnp.asarray([[1e4, -1e4, 0.0]])
    slope = jax.grad(lambda x: similarity.binary(x, jnp.asarray([[0.0, 1.0, NAN]])).sum())(far)
    np.testing.assert_allclose(slope, [[1, -1, 0]])


def test_ordered_triples_equal_triple_loops():
    scores, target = random_scores(2, (4, 7))
    target[3] = 0.5  # no order
    for kind in ("hinge", "softplus"):
        found = similarity.ordered_triples(scores, target, kind, 0.4)
        for s, t, value in zip(scores, target, found, strict=True):
            prices = [
                max(0, 0.4 - (s[j] - s[k])) if kind == "hinge" else softplus(s[k] - s[j])
                for j, k in itertools.product(range(7), repeat=2)
                if t[j] > t[k]
            ]
            np.testing.assert_allclose(value, np.mean(prices) if prices else 0, rtol=1e-5)
    assert found[3] == 0
    with pytest.raises(ValueError, match=r"ordered_triples: kind must be one of .*got 'logistic'"):
        similarity.ordered_triples(scores, target, "logistic")


def test_list_net_is_a_divergence():
    scores, target = random_scores(3)
    found = similarity.list_net(scores, target, 4.0)
    for s, t, value in zip(scores.astype(np.float64), target, found, strict=True):
        known = [i for i in range(len(t)) if not np.isnan(t[i])]
        p = np.exp([4 * t[i] for i in known])
        q = np.exp([s[i] for i in known])
        p, q = p / p.sum(), q / q.sum()
        np.testing.assert_allclose(value, np.sum(p * np.log(p / q)), rtol=1e-4)
    perfect = 4 * np.nan_to_num(target) + 7
    np.testing.assert_allclose(similarity.list_net(perfect, target, 4.0), 0, atol=1e-6)
    shifted = similarity.list_net(scores + 300, target, 4.0)
    np.testing.assert_allclose(shifted, found, rtol=1e-3)


def test_smooth_ndcg_equals_loops_and_becomes_ndcg():
    scores, target = random_scores(4, (4, 8))
    found = similarity.smooth_ndcg(scores, target)
    sharp = similarity.smooth_ndcg(1e4 * scores, target)
    for s, t, value, limit in zip(scores.astype(np.float64), target, found, sharp, strict=True):
        known = [i for i in range(len(t)) if not np.isnan(t[i])]
        gain = [t[i] - min(t[k] for k in known) for i in known]
        total = 0
        for g, i in zip(gain, known, strict=True):
            rank = 1 + sum(1 / (1 + math.exp(s[i] - s[k])) for k in known if k != i)
            total += g / math.log2(1 + rank)
        best = sum(g / math.log2(2 + n) for n, g in enumerate(sorted(gain, reverse=True)))
        np.testing.assert_allclose(value, 1 - total / best, rtol=1e-4)
        expected = 1 - ndcg_score([gain], [s[known]])
        np.testing.assert_allclose(limit, expected, atol=1e-5)


@pytest.mark.parametrize("loss", ["softplus", "hinge", "list_net", "ndcg"])
def test_rows_without_order_have_no_price_and_no_gradient(loss):
    function = {
        "softplus": similarity.ordered_triples,
        "hinge": lambda s, t: similarity.ordered_triples(s, t, "hinge"),
        "list_net": similarity.list_net,
        "ndcg": similarity.smooth_ndcg,
    }[loss]
    target = jnp.asarray([[NAN] * 4, [0.5, NAN, 0.5, 0.5], [1, NAN, 0, 0.5]])
    np.testing.assert_array_equal(similarity.ranked(target), [False, False, True])

    @jax.jit
    def both(scores):
        def total(scores):
            prices = function(scores, target)
            return prices.sum(), prices

        return jax.value_and_grad(total, has_aux=True)(scores)

    for scores in (1e4 * np.eye(3, 4), np.zeros((3, 4))):
        (value, prices), slope = both(scores)
        assert np.isfinite(value)
        assert np.isfinite(slope).all()
        np.testing.assert_array_equal(slope[:2], 0)
        assert slope[2, 1] == 0  # not known
        np.testing.assert_array_equal(prices[:2], 0)
    assert np.any(slope)


# Memory


def test_memory_is_linear_in_the_rows():
    """The matrix of the scores of 16,384 rows would take a gigabyte."""
    rows = jax.ShapeDtypeStruct((16384, 16), jnp.float32)

    def some(part, whole):
        s = part @ whole.T
        return similarity.list_net(s, jnp.round(jnp.abs(s)))

    def loss(x):
        return jnp.sum(anchors.over_anchors(some, x, x, len(x)))

    made = jax.jit(jax.grad(loss)).lower(rows).compile()
    assert made.memory_analysis().temp_size_in_bytes < 2**27


# What was planted


def learn(scorer, prices, width, steps=300, rate=0.05):
    """Adam on the parameters {"scorer", "slope", "offset"}; prices(params, key) -> scalar."""
    params = {
        "scorer": scorer.init(jax.random.key(0), width),
        "slope": jnp.zeros(()),
        "offset": jnp.zeros(()),
    }
    tx = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def step(carry, key):
        params, state = carry
        updates, state = tx.update(jax.grad(prices)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), steps)
    start = params, tx.init(params)
    return jax.jit(lambda start, keys: jax.lax.scan(step, start, keys)[0][0])(start, keys)


WEIGHTS = np.array([4.0, 2.0, 1.0, 0.5, 0.0, 0.0], np.float32)


def planted(x, y):
    """A similarity by features that count differently."""
    return -jnp.sum(WEIGHTS * (x - y) ** 2, axis=-1)


def draw(key, *shape):
    return jax.random.normal(key, (*shape, len(WEIGHTS)))


def held_out(images):
    return [draw(jax.random.key(100 + i), 500) for i in range(images)]


def check_scaling(params):
    """The metric is the planted one, up to its scale; and positive semi-definite."""
    metric = np.asarray(mahalanobis_matrix(params["scorer"]), np.float64)
    assert np.linalg.eigvalsh(metric).min() > -1e-5
    metric /= np.trace(metric) / WEIGHTS.sum()
    np.testing.assert_allclose(np.diag(metric), WEIGHTS, atol=0.3)
    assert np.abs(metric - np.diag(np.diag(metric))).max() < 0.3


def test_regression_recovers_a_planted_similarity():
    scorer = ScorerSpec("mahalanobis")

    def prices(params, key):
        x, y = draw(key, 2, 64)
        noise = 0.3 * jax.random.normal(jax.random.fold_in(key, 1), (64,))
        scores = scorer.of_rows(params["scorer"], x, y) + params["offset"]
        return similarity.regression(scores, planted(x, y) + noise, "huber", 1.0).mean()

    params = learn(scorer, prices, len(WEIGHTS))
    x, y = held_out(2)
    before = spearmanr(ScorerSpec("l2").of_rows({}, x, y), planted(x, y)).statistic
    after = spearmanr(scorer.of_rows(params["scorer"], x, y), planted(x, y)).statistic
    assert after > 0.99
    assert before < 0.85
    check_scaling(params)


def test_classification_recovers_planted_pairs():
    scorer, threshold = ScorerSpec("mahalanobis"), -8.0

    def prices(params, key):
        x, y = draw(key, 2, 128)
        scores = (
            jnp.exp(params["slope"]) * scorer.of_rows(params["scorer"], x, y) + params["offset"]
        )
        return similarity.binary(scores, (planted(x, y) > threshold).astype(jnp.float32)).mean()

    params = learn(scorer, prices, len(WEIGHTS))
    x, y = held_out(2)
    similar = np.asarray(planted(x, y) > threshold)
    assert 0.2 < similar.mean() < 0.8
    assert roc_auc_score(similar, scorer.of_rows(params["scorer"], x, y)) > 0.98
    assert roc_auc_score(similar, ScorerSpec("l2").of_rows({}, x, y)) < 0.93


@pytest.mark.parametrize("kind", ["hinge", "softplus"])
def test_ranking_recovers_planted_triples(kind):
    scorer = ScorerSpec("mahalanobis")

    def prices(params, key):
        x = draw(key, 3, 128)
        scores = scorer.of_rows(params["scorer"], x[0], x[1:]).T
        target = planted(x[0], x[1:]).T
        return similarity.ordered_triples(scores, target, kind, 1.0).mean()

    params = learn(scorer, prices, len(WEIGHTS))
    x, y, z = held_out(3)

    def right(score):
        return np.mean((score(x, y) > score(x, z)) == (planted(x, y) > planted(x, z)))

    assert right(lambda a, b: scorer.of_rows(params["scorer"], a, b)) > 0.95
    assert right(lambda a, b: ScorerSpec("l2").of_rows({}, a, b)) < 0.85
    check_scaling(params)


def test_a_perceptron_learns_what_is_no_distance():
    """Images are similar by how much both have of the first feature, whatever lies between them."""
    scorer = ScorerSpec("mlp", hidden=16)

    def truth(x, y):
        return x[..., 0] * y[..., 0] - jnp.abs(x[..., 1] - y[..., 1])

    def prices(params, key):
        x, y = draw(key, 2, 128)
        return similarity.regression(scorer.of_rows(params["scorer"], x, y), truth(x, y)).mean()

    params = learn(scorer, prices, len(WEIGHTS))
    x, y = held_out(2)
    assert spearmanr(scorer.of_rows(params["scorer"], x, y), truth(x, y)).statistic > 0.9
    assert spearmanr(ScorerSpec("l2").of_rows({}, x, y), truth(x, y)).statistic < 0.6


def test_a_bilinear_scorer_learns_a_product():
    scorer, sign = ScorerSpec("bilinear"), np.array([1, -1, 1, 0, 0, 2], np.float32)

    def prices(params, key):
        x, y = draw(key, 2, 64)
        return similarity.regression(
            scorer.of_rows(params["scorer"], x, y), (x * sign * y).sum(-1)
        ).mean()

    params = learn(scorer, prices, len(WEIGHTS))
    x, y = held_out(2)
    assert (
        spearmanr(scorer.of_rows(params["scorer"], x, y), (x * sign * y).sum(-1)).statistic > 0.99
    )
