"""Distances against loops of NumPy, and their gradients where the formulas have none."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.losses import distances
from jaxcl.losses.distances import Distance, distance

CASES = [
    ("l1", 2.0),
    ("l2", 2.0),
    ("squared_l2", 2.0),
    ("lp", 1.0),
    ("lp", 1.5),
    ("lp", 3.0),
    ("lp", math.inf),
    ("cosine", 2.0),
    ("dot", 2.0),
    ("snr", 2.0),
]
ids = [f"{name}-{p:g}" if name == "lp" else name for name, p in CASES]
every = pytest.mark.parametrize(("name", "p"), CASES, ids=ids)


def oracle(name, p, x, y):
    """One distance in float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    gap = [abs(a - b) for a, b in zip(x, y, strict=True)]
    if name == "l1":
        return sum(gap)
    if name == "squared_l2":
        return sum(g * g for g in gap)
    if name == "l2":
        return math.sqrt(sum(g * g for g in gap))
    if name == "lp":
        return max(gap) if p == math.inf else sum(g**p for g in gap) ** (1 / p)
    inner = sum(a * b for a, b in zip(x, y, strict=True))
    if name == "dot":
        return -inner
    if name == "cosine":
        lengths = math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y))
        return 1 - (inner / lengths if lengths else 0)
    noise, signal = np.var(x - y), np.var(x)
    return noise / signal if signal else noise * len(x)


def rows(seed, n, d=7):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@every
def test_pairs_and_rows_equal_loops(name, p):
    x, y = rows(0, 5), rows(1, 4)
    x[2] = y[1]  # a duplicate
    x[3] = 0
    expected = [[oracle(name, p, a, b) for b in y] for a in x]
    made = distance(name, p)
    np.testing.assert_allclose(made.of_pairs(x, y), expected, rtol=2e-5, atol=2e-6)
    one_by_one = made.of_rows(x[:, None], y[None])
    np.testing.assert_allclose(one_by_one, expected, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(made.of_rows(x[:4], y), np.diag(expected), rtol=2e-5, atol=2e-6)
    assert made.of_pairs(x, y).dtype == jnp.float32
    assert made.of_pairs(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.float32


@every
def test_symmetry_and_the_diagonal(name, p):
    x = np.concatenate([rows(2, 6), 100 * rows(3, 2), 1e-3 * rows(4, 2)])
    x = np.concatenate([x, x[:3]])
    made = distance(name, p)
    d = np.asarray(made.of_pairs(x))
    same = np.arange(3), np.arange(10, 13)
    if made.symmetric:
        np.testing.assert_allclose(d, d.T, rtol=1e-5, atol=1e-6)
    else:
        assert np.abs(d - d.T).max() > 0.1
    if made.zero_on_diagonal:
        assert np.abs(np.diag(d)).max() == 0
        assert np.abs(d[same]).max() == 0
        assert d.min() == 0
        off = d[~np.eye(len(x), dtype=bool)]
        assert np.mean(off > 0) > 0.9
    else:
        assert np.diag(d).max() < 0
    np.testing.assert_array_equal(made.of_pairs(x), made.of_pairs(x, x))


@every
def test_gradients_are_finite_everywhere(name, p):
    """Of duplicates, zero rows, constant rows; and right where there is a derivative."""
    x = rows(5, 6)
    x[1], x[2], x[3], x[4] = x[0], 0, 0, 1
    made = distance(name, p)

    def total(x, form):
        d = made.of_pairs(x) if form == "pairs" else made.of_rows(x[:, None], x[None])
        return jnp.sum(jnp.sin(d))

    slope = jax.jit(jax.grad(total), static_argnums=1)
    for form in ("pairs", "rows"):
        assert np.isfinite(slope(x, form)).all()
    with jax.enable_x64(True):
        wide = np.random.default_rng(6).normal(size=(6, 7))
        total = jax.jit(total, static_argnums=1)
        gradient = slope(wide, "pairs")
        assert gradient.dtype == jnp.float64
        for place in ((0, 0), (2, 3), (3, 4)):
            step = np.zeros_like(wide)
            step[place] = 1e-6
            rise = total(wide + step, "pairs") - total(wide - step, "pairs")
            np.testing.assert_allclose(gradient[place], rise / 2e-6, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(gradient, slope(wide, "rows"), rtol=1e-8)


def test_equal_directions_are_at_distance_0_of_each_other():
    """Of any length and width, by products and row by row."""
    for width in (3, 64, 512):
        x = rows(11, 40, width)
        x = np.concatenate([x, 100 * x])
        d = np.asarray(distance("cosine").of_pairs(x))
        assert np.abs(d[np.arange(80), np.arange(80) % 40]).max() == 0
        assert d[0, 1] > 0.05
        np.testing.assert_array_equal(distance("cosine").of_rows(x, x), 0)


def test_equal_rows_have_no_gradient_under_a_root():
    x = rows(7, 2)
    x[1] = x[0]
    for name in ("l2", "lp", "l1", "squared_l2", "cosine"):
        gradient = jax.grad(lambda x, name=name: distance(name).of_pairs(x)[0, 1])(x)
        np.testing.assert_array_equal(gradient, 0)


def test_powers_neither_overflow_nor_vanish():
    x = np.array([[1e30, 0, 0], [1e-30, 0, 0]], np.float32)
    d, pull = jax.value_and_grad(lambda x: distance("lp", 3.0).of_rows(x, 0 * x).sum())(x)
    np.testing.assert_allclose(d, 1e30, rtol=1e-6)
    np.testing.assert_allclose(pull[:, 0], 1, rtol=1e-6)


@pytest.mark.parametrize(("name", "p"), [("l1", 2.0), ("lp", 3.0)])
def test_blocks_change_nothing(name, p, monkeypatch):
    """Of 5 rows of which two fit at a time, forward and backward."""
    x, y = rows(8, 5), rows(9, 3)
    made = distance(name, p)

    def loss(x, y):
        d = made.of_pairs(x, y)
        return jnp.sum(d * d * jnp.arange(15.0).reshape(5, 3)), d

    whole = jax.grad(loss, argnums=(0, 1), has_aux=True)(x, y)
    monkeypatch.setattr(distances, "_BLOCK", 2 * y.size)
    blocks = jax.grad(loss, argnums=(0, 1), has_aux=True)(x, y)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(blocks), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_differences_of_many_pairs_are_never_all_there():
    x = jax.ShapeDtypeStruct((4096, 256), jnp.float32)
    made = jax.jit(jax.grad(lambda x: distance("l1").of_pairs(x).sum())).lower(x).compile()
    all_differences = 4096 * 4096 * 256 * 4
    assert made.memory_analysis().temp_size_in_bytes < all_differences / 50


def test_what_is_not_a_number_stays_so():
    """A network that has diverged does not look like one that maps all to one point."""
    x = rows(10, 3)
    x[1] = np.nan
    for name, p in CASES:
        d = distance(name, p).of_pairs(x)
        assert np.isnan(d[1, 0]), name
        assert np.isnan(d[0, 1]), name
        assert np.isfinite(d[0, 2]), name


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="distance='euclid': expected one of l1, l2"):
        distance("euclid")
    with pytest.raises(ValueError, match=r"p=0\.5: expected a number from 1 on"):
        distance("lp", 0.5)
    with pytest.raises(ValueError, match=r"got \[3, 7\] and \[3, 6\]"):
        Distance("l1").of_pairs(rows(0, 3), rows(0, 3, 6))
