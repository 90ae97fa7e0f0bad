"""InfoNCE of a dictionary, against its golden values and loops in float64."""

import math

import jax
import numpy as np
import pytest

from jaxcl import losses


def e(n, d, s):
    """Deterministic unit rows."""
    i, j = np.arange(n)[:, None], np.arange(d)[None, :]
    x = np.sin(s + 3 * i + 7 * j + i * j)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def oracle(q, k, others, temperature):
    """The mean of -log p(own key); others(i) are the negatives of query i."""
    total = 0.0
    for i in range(len(q)):
        own = np.dot(q[i], k[i]) / temperature
        terms = [own] + [np.dot(q[i], other) / temperature for other in others(i)]
        top = max(terms)
        total += top + math.log(sum(math.exp(t - top) for t in terms)) - own
    return total / len(q)


Q, K, QUEUE = e(4, 8, 0.1), e(4, 8, 0.2), e(16, 8, 0.9)

info_nce = jax.jit(losses.info_nce, static_argnums=3)
info_nce_metrics = jax.jit(losses.info_nce_metrics, static_argnums=3, static_argnames="anchors")


@pytest.mark.parametrize(
    ("temperature", "value"), [(0.07, 0.01833675397863166), (0.2, 0.4494393316354346)]
)
def test_golden_values_with_a_queue(temperature, value):
    loss = info_nce(*(x.astype(np.float32) for x in (Q, K, QUEUE)), temperature)
    assert loss.dtype == np.float32
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    with jax.enable_x64(True):
        np.testing.assert_allclose(info_nce(Q, K, QUEUE, temperature), value, rtol=1e-12)


@pytest.mark.parametrize(
    ("temperature", "value"), [(1.0, 1.706116766196991), (0.2, 0.09335799118313864)]
)
def test_golden_values_of_version_3(temperature, value):
    loss = info_nce(Q.astype(np.float32), K.astype(np.float32), None, temperature)
    np.testing.assert_allclose(2 * temperature * loss, value, rtol=1e-5)


def test_slots_that_hold_nothing_do_not_count():
    rng = np.random.default_rng(0)
    valid = rng.random(16) < 0.5
    expected = oracle(Q, K, lambda i: QUEUE[valid], 0.2)
    rubbish = np.where(valid[:, None], QUEUE, 0)
    gradient = jax.jit(jax.value_and_grad(losses.info_nce), static_argnums=3)
    np.testing.assert_allclose(gradient(Q, K, rubbish, 0.2, valid)[0], expected, rtol=1e-5)
    loss, of_queries = gradient(Q, K, rubbish, 0.2, np.zeros(16, bool))
    assert loss == 0
    np.testing.assert_array_equal(of_queries, 0)


@pytest.mark.parametrize("queue", [True, False], ids=["queue", "batch"])
def test_gradients_against_differences_of_the_oracle(queue):
    rng = np.random.default_rng(1)
    q, k, held = rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), rng.normal(size=(5, 4))

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    def value(q, k):
        keys = unit(k)
        return oracle(
            unit(q), keys, lambda i: unit(held) if queue else np.delete(keys, i, axis=0), 0.3
        )

    with jax.enable_x64(True):
        gradient = jax.grad(losses.info_nce, argnums=(0, 1, 2) if queue else (0, 1))
        gradients = jax.jit(gradient, static_argnums=3)(q, k, held if queue else None, 0.3)
        gradients = [np.asarray(g) for g in gradients]
    for number, gradient in enumerate(gradients[:2]):
        for place in np.ndindex(3, 4):
            step = np.zeros((3, 4))
            step[place] = 1e-6
            ends = [
                value(*(x + s * step if n == number else x for n, x in enumerate((q, k))))
                for s in (1, -1)
            ]
            np.testing.assert_allclose(gradient[place], (ends[0] - ends[1]) / 2e-6, atol=1e-8)
    if queue:
        np.testing.assert_array_equal(gradients[2], 0)


def test_metrics_against_loops():
    rng = np.random.default_rng(3)
    q = rng.normal(size=(12, 4))
    k = q + 0.8 * rng.normal(size=(12, 4))
    queue, valid = rng.normal(size=(20, 4)), rng.random(20) < 0.7
    q, k, queue = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, k, queue))
    for others, given in (
        (lambda i: queue[valid], (queue, 0.5, valid)),
        (lambda i: np.delete(k, i, axis=0), (None, 0.5)),
    ):
        ranks, entropies = [], []
        for i in range(12):
            s = np.array([q[i] @ k[i], *(others(i) @ q[i])]) / 0.5
            ranks.append(np.sum(s[1:] >= s[0]))
            p = np.exp(s) / np.exp(s).sum()
            entropies.append(-np.sum(p * np.log(p)))
        metrics = info_nce_metrics(q, k, *given)
        top1, top5 = np.mean(np.array(ranks) < 1), np.mean(np.array(ranks) < 5)
        assert 0 < top1 < top5 < 1
        np.testing.assert_allclose(metrics["contrastive_top1"], top1, rtol=1e-6)
        np.testing.assert_allclose(metrics["contrastive_top5"], top5, rtol=1e-6)
        np.testing.assert_allclose(metrics["contrastive_entropy"], np.mean(entropies), rtol=1e-5)
        few = info_nce_metrics(q, k, *given, anchors=3)
        np.testing.assert_allclose(
            few["contrastive_top1"], np.mean(np.array(ranks)[::4] < 1), rtol=1e-6
        )


def test_a_key_is_not_found_where_there_is_no_other():
    q = np.eye(3, 4, dtype=np.float32)
    empty = info_nce_metrics(q, q, np.zeros((5, 4), np.float32), 0.1, np.zeros(5, bool))
    alone = info_nce_metrics(q[:1], q[:1])
    for metrics in (empty, alone):
        assert {name: float(value) for name, value in metrics.items()} == {
            "contrastive_top1": 0,
            "contrastive_top5": 0,
            "contrastive_entropy": 0,
        }
    one = np.arange(5) == 3
    metrics = info_nce_metrics(q, q, np.zeros((5, 4), np.float32), 0.1, one)
    assert metrics["contrastive_top1"] == metrics["contrastive_top5"] == 1


def test_metrics_of_a_collapsed_encoder_are_no_success():
    same = np.ones((6, 3), np.float32)
    metrics = info_nce_metrics(same, same, np.ones((9, 3), np.float32), 0.1)
    assert metrics["contrastive_top1"] == metrics["contrastive_top5"] == 0
    np.testing.assert_allclose(metrics["contrastive_entropy"], math.log(10), rtol=1e-5)
