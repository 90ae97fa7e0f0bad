"""What MoCo remembers, against a deque and loops in NumPy."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.methods.memory import Bank, Queue, ema


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def follow(size, pushes, rng):
    """A queue of that size against a deque, with so many keys in each push."""
    queue = Queue.empty(size, 3, 2, jax.random.key(0))
    push = jax.jit(Queue.push)
    oracle = collections.deque(maxlen=size)
    for step, rows in enumerate(pushes):
        keys = unit(rng.normal(size=(rows, 3))).astype(np.float32)
        labels = rng.integers(-1, 5, (rows, 2))
        queue = push(queue, jnp.asarray(keys), jnp.asarray(labels, jnp.int32))
        oracle.extend((key, label, step) for key, label in zip(keys, labels, strict=True))
        # From the pointer on, slot after slot, it holds what the deque holds, oldest first.
        order = (int(queue.pointer) + np.arange(size)) % size
        held = order[np.asarray(queue.valid)[order]]
        assert len(held) == len(oracle)
        np.testing.assert_array_equal(np.asarray(queue.keys)[held], [o[0] for o in oracle])
        np.testing.assert_array_equal(np.asarray(queue.labels)[held], [o[1] for o in oracle])
        age = [step + 1 - o[2] for o in oracle]
        np.testing.assert_array_equal(np.asarray(queue.age)[held], age)
        empty = ~np.asarray(queue.valid)
        assert not np.asarray(queue.keys)[empty].any()
        assert not np.asarray(queue.age)[empty].any()


@pytest.mark.parametrize(("size", "rows"), [(12, 4), (7, 7), (5, 12), (1, 4), (16, 1)])
def test_the_queue_is_a_deque(size, rows):
    follow(size, [rows] * (2 * size // rows + 3), np.random.default_rng(size * 100 + rows))


@pytest.mark.parametrize("seed", range(3))
def test_the_queue_is_a_deque_for_random_sizes_that_vary(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 40))
    sizes = rng.integers(1, 2 * size, 3)
    follow(size, rng.choice(sizes, 12).tolist(), rng)


def test_noise_counts_from_the_start():
    queue = jax.jit(lambda key: Queue.empty(9, 4, 1, key, fill="noise"))(jax.random.key(1))
    assert queue.valid.all()
    np.testing.assert_allclose(np.linalg.norm(queue.keys, axis=1), 1, rtol=1e-6)
    assert len(np.unique(np.asarray(queue.keys).round(4), axis=0)) == 9
    after = jax.jit(Queue.push)(queue, jnp.ones((2, 4)), jnp.zeros((2, 1), jnp.int32))
    np.testing.assert_array_equal(after.keys[2:], queue.keys[2:])
    np.testing.assert_array_equal(after.age, [1, 1] + [0] * 7)
    np.testing.assert_array_equal(after.labels[:, 0], [0, 0] + [-1] * 7)


@pytest.mark.parametrize("m", [0.0, 0.9, 0.999])
def test_the_average_has_its_closed_form(m):
    rng = np.random.default_rng(0)
    start, *steps = rng.normal(size=(4, 5)).astype(np.float32)
    average = {"backbone": {"w": jnp.asarray(start)}}
    for w in steps:
        average = ema(average, {"backbone": {"w": jnp.asarray(w)}, "head": jnp.ones(2)}, m)
    assert list(average) == ["backbone"]
    t1, t2, t3 = (s.astype(np.float64) for s in steps)
    expected = m**3 * start.astype(np.float64) + (1 - m) * (m**2 * t1 + m * t2 + t3)
    np.testing.assert_allclose(average["backbone"]["w"], expected, rtol=1e-6, atol=1e-7)


def test_the_average_keeps_the_type_of_its_leaves():
    with jax.enable_x64(True):
        tree = {"a": jnp.ones(2, jnp.float32)}
        assert ema(tree, tree, jnp.asarray(0.9, jnp.float64))["a"].dtype == jnp.float32


def test_three_updates_of_a_bank():
    rng = np.random.default_rng(3)
    bank, update = Bank.empty(8, 4, jax.random.key(0)), jax.jit(Bank.update)
    rows, age, valid = np.zeros((8, 4)), np.zeros(8, int), np.zeros(8, bool)
    for index in ([0, 3, 5], [3, 7, 3], [5, 0, 1]):  # 3 is seen again, and comes twice
        z = unit(rng.normal(size=(3, 4)))
        bank = update(bank, np.asarray(index, np.int32), np.asarray(z, np.float32), 0.25)
        before = rows.copy(), valid.copy()
        age[valid] += 1
        for i, new in zip(index, z, strict=True):
            rows[i] = unit(0.25 * before[0][i] + 0.75 * new) if before[1][i] else new
            valid[i], age[i] = True, 1
        np.testing.assert_allclose(bank.rows, rows, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(bank.valid, valid)
        np.testing.assert_array_equal(bank.age, age)


def test_draws_of_a_bank_are_even():
    bank = Bank.empty(5, 2, jax.random.key(0))
    drawn = np.asarray(bank.draw(jax.random.key(1), 20_000))
    count = np.bincount(drawn, minlength=5)
    assert count.sum() == 20_000
    assert len(count) == 5
    # Chi-square with 4 degrees of freedom: above 23.5 once in 10,000.
    assert ((count - 4000) ** 2 / 4000).sum() < 23.5
    assert (np.asarray(bank.draw(jax.random.key(2), 20_000)) != drawn).any()
