"""131,072 views and 32,768 rows of triplets, really run: within a gibibyte, and right in the rows that are looked at."""

import subprocess
import sys

import metric_oracle
import numpy as np
import pair_oracles as oracle
import pytest

VIEWS, TEMPERATURE = 131072, 0.1

# Loss and gradient of arrays, the first of which is differentiated: in a process of its own, whose growth is theirs alone.
RUN = """
import functools
import sys

import jax
import numpy as np

from jaxcl import losses


def resident_kib(entry):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(entry))


given = [jax.numpy.asarray(x) for x in np.load(f"{sys.argv[1]}/given.npz").values()]
run = jax.jit(jax.value_and_grad(LOSS)).lower(*given).compile()
before = resident_kib("VmRSS")
value, gradient = jax.block_until_ready(run(*given))
growth = resident_kib("VmHWM") - before
np.savez(f"{sys.argv[1]}/out.npz", value=value, gradient=gradient, growth=growth)
"""


def run_alone(directory, loss, *given):
    """value, gradient and growth, in KiB, of a loss that is given as Python text."""
    np.savez(directory / "given.npz", *given)
    run = [sys.executable, "-c", RUN.replace("LOSS", loss), str(directory)]
    subprocess.run(run, check=True, timeout=3600)
    return np.load(directory / "out.npz")


def log_sum_exps(unit, temperature, size=1024):
    """Of each row over all others, float64 [N], which exp(1 / temperature) suits; a product of two rows is made once."""
    total = np.zeros(len(unit))
    blocks = [slice(start, start + size) for start in range(0, len(unit), size)]
    for number, mine in enumerate(blocks):
        scaled = unit[mine] / temperature
        for theirs in blocks[number:]:
            s = scaled @ unit[theirs].T
            np.exp(s, out=s)
            if mine == theirs:
                np.fill_diagonal(s, 0)
            else:
                total[theirs] += s.sum(axis=0)
            total[mine] += s.sum(axis=1)
    return np.log(total)


def test_the_oracles_sums_are_right():
    z = np.random.default_rng(0).normal(size=(10, 2, 3))
    rows, gradient = oracle.nt_xent_by_rows(z, TEMPERATURE)
    lse = log_sum_exps(oracle.unit_rows(z), TEMPERATURE, size=8)
    some, part = oracle.nt_xent_by_rows(z, TEMPERATURE, [3, 17], lse)
    np.testing.assert_allclose(some, rows[[3, 17]], rtol=1e-12)
    np.testing.assert_allclose(part, gradient[[3, 17]], rtol=1e-12)


@pytest.mark.optimised
@pytest.mark.slow
def test_131072_views_run_within_a_gigabyte_and_agree_with_float64(tmp_path):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(VIEWS // 2, 2, 128)).astype(np.float32)
    out = run_alone(tmp_path, "losses.nt_xent", z)
    assert out["growth"] <= 2**20

    unit = oracle.unit_rows(z)
    lse = log_sum_exps(unit, TEMPERATURE)
    pull = np.sum(unit[0::2] * unit[1::2], axis=1) / TEMPERATURE
    np.testing.assert_allclose(out["value"], lse.mean() - pull.mean(), rtol=1e-6)
    # One of each tile of 512.
    rows = np.arange(0, VIEWS, 512) + rng.integers(0, 512, VIEWS // 512)
    _, gradient = oracle.nt_xent_by_rows(z, TEMPERATURE, rows, lse)
    error = np.linalg.norm(out["gradient"].reshape(VIEWS, 128)[rows] - gradient, axis=1)
    assert np.all(error <= 2e-6 * np.linalg.norm(gradient, axis=1))


def batch_hard(unit, labels, size=1024):
    """Each row's farthest of its label and nearest of another, -1 for none; products of some rows at a time."""
    rows, near, far = np.arange(len(unit)), [], []
    for start in range(0, len(unit), size):
        mine = rows[start : start + size]
        s = unit[mine] @ unit.T
        same = labels[mine, None] == labels
        positive = np.where(same & (mine[:, None] != rows), s, np.inf)
        negative = np.where(same, -np.inf, s)
        far.append(np.where(np.isfinite(positive).any(1), positive.argmin(1), -1))
        near.append(np.where(np.isfinite(negative).any(1), negative.argmax(1), -1))
    return np.concatenate(far), np.concatenate(near)


def batch_hard_triplets(z, labels, margin, looked_at):
    """The mean over the triplets that cost something, and its gradient in some rows."""
    lengths = np.linalg.norm(z, axis=1, keepdims=True)
    unit = z / lengths
    p, n = batch_hard(unit, labels)
    a = np.flatnonzero((p >= 0) & (n >= 0))
    gaps = {"p": unit[a] - unit[p[a]], "n": unit[a] - unit[n[a]]}
    d = {side: np.linalg.norm(gap, axis=1) for side, gap in gaps.items()}
    cost = np.maximum(d["p"] - d["n"] + margin, 0)
    active = np.flatnonzero(cost > 0)
    by_row = {row: np.zeros(z.shape[1]) for row in looked_at}
    for t in active:
        pull, push = gaps["p"][t] / d["p"][t], gaps["n"][t] / d["n"][t]
        for row, slope in ((a[t], pull - push), (p[a[t]], -pull), (n[a[t]], push)):
            if row in by_row:
                by_row[row] += slope / len(active)
    gradient = np.stack([by_row[row] for row in looked_at])
    unit, lengths = unit[looked_at], lengths[looked_at]
    gradient = (gradient - unit * np.sum(unit * gradient, axis=1, keepdims=True)) / lengths
    return cost.sum() / len(active), gradient


def test_the_oracles_triplets_are_right():
    rng = np.random.default_rng(1)
    z, labels = rng.normal(size=(12, 3)), np.array([0, 0, 0, 1, 1, 2, 2, 2, 3, 4, 4, 4])
    value, gradient = batch_hard_triplets(z, labels, 0.5, np.arange(12))
    world = metric_oracle.World(z, labels)
    np.testing.assert_allclose(value, metric_oracle.triplet(world, 0.5, "batch_hard"), rtol=1e-12)

    def loss(z):
        return metric_oracle.triplet(metric_oracle.World(z, labels), 0.5, "batch_hard")

    np.testing.assert_allclose(gradient, metric_oracle.gradient(loss, z), atol=1e-6)


@pytest.mark.optimised
@pytest.mark.slow
def test_batch_hard_triplets_of_32768_rows_run_within_a_gibibyte_and_agree_with_float64(tmp_path):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(32768, 128)).astype(np.float32)
    labels = rng.integers(0, 8192, len(z)).astype(np.int32)
    loss = "functools.partial(losses.triplet, margin=0.6, mining='batch_hard')"
    out = run_alone(tmp_path, loss, z, labels)
    assert out["growth"] <= 2**20
    rows = rng.choice(len(z), 64, replace=False)
    value, gradient = batch_hard_triplets(z.astype(np.float64), labels, 0.6, rows)
    np.testing.assert_allclose(out["value"], value, rtol=1e-6)
    error = np.linalg.norm(out["gradient"][rows] - gradient, axis=1)
    assert np.all(error <= 1e-4 * np.linalg.norm(gradient, axis=1) + 1e-9)
    assert np.count_nonzero(np.any(gradient, axis=1)) > 60
