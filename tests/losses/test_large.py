"""131,072 views, really run: within a gigabyte, and right in every row."""

import subprocess
import sys

import numpy as np
import pytest

VIEWS, TEMPERATURE = 131072, 0.1

RUN = """
import sys

import jax
import numpy as np

from jaxcl import losses


def resident_kib(entry):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(entry))


z = jax.numpy.asarray(np.load(f"{sys.argv[1]}/z.npy"))
run = jax.jit(jax.value_and_grad(losses.nt_xent)).lower(z).compile()
before = resident_kib("VmRSS")
value, gradient = jax.block_until_ready(run(z))
growth = resident_kib("VmHWM") - before
np.savez(f"{sys.argv[1]}/out.npz", value=value, gradient=gradient, growth=growth)
"""


def grid(rng):
    """Rows [A_i, B_j] of 256 times 512 sign vectors, unit up to a factor, and which i and j each has.

    All differ, and no product of two entries is rounded. A similarity is one of A plus one of B, so
    its exponential is a product, and a sum over all rows is a product of sums: float64 in no time.
    """
    a, b = rng.choice([-0.125, 0.125], (256, 64)), rng.choice([-0.125, 0.125], (512, 64))
    # The two views of an image share their A.
    j = np.argsort(rng.uniform(size=(256, 512)), axis=1).reshape(-1, 2)
    i = np.repeat(np.arange(256), 256)[:, None] + np.zeros_like(j)
    images = rng.permutation(len(i))
    return a, b, i[images].reshape(-1), j[images].reshape(-1)


def oracle(a, b, i, j):
    """The loss, and its gradient with respect to the rows [A_i, B_j], in float64."""
    unit = np.concatenate([a[i], b[j]], axis=1) / np.sqrt(2)
    partner = np.arange(len(i)) ^ 1
    across_a, across_b = (np.exp(x @ x.T / (2 * TEMPERATURE)) for x in (a, b))
    own = np.exp(1 / TEMPERATURE)
    # [256, 512], entry (i, j) for the row that has these two.
    total = across_a.sum(1)[:, None] * across_b.sum(1)[None, :] - own
    pull = np.sum(unit * unit[partner], axis=1) / TEMPERATURE
    loss = np.mean(np.log(total[i, j]) - pull)

    def spread(weight):
        """For every (i, j): the sum of weight[i', j'] exp(similarity) times the row (i', j')."""
        over_b = across_a @ (weight @ across_b)  # the weights' sum, [i, j]
        first = np.einsum("ik,kf,kj->ijf", across_a, a, weight @ across_b, optimize=True)
        second = np.einsum("il,lf,jl->ijf", across_a @ weight, b, across_b, optimize=True)
        return over_b, np.concatenate([first, second], axis=2) / np.sqrt(2)

    mine = spread(np.ones_like(total))[1] / total[:, :, None]
    theirs = spread(1 / total)[1]
    step = (mine + theirs)[i, j] - 2 * own / total[i, j][:, None] * unit - 2 * unit[partner]
    step /= len(i) * TEMPERATURE
    along = np.sum(step * unit, axis=1, keepdims=True)
    return loss, (step - along * unit) / np.sqrt(2)


@pytest.mark.slow
def test_131072_views_run_within_a_gigabyte_and_agree_with_float64(tmp_path):
    a, b, i, j = grid(np.random.default_rng(0))
    z = np.concatenate([a[i], b[j]], axis=1).astype(np.float32)
    assert len(z) == VIEWS == len(np.unique(i * 512 + j))
    np.save(tmp_path / "z.npy", z.reshape(-1, 2, 128))
    subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], check=True, timeout=3600)
    out = np.load(tmp_path / "out.npz")
    assert out["growth"] <= 2**20
    value, gradient = oracle(a, b, i, j)
    np.testing.assert_allclose(out["value"], value, rtol=1e-6)
    error = np.linalg.norm(out["gradient"].reshape(VIEWS, 128) - gradient, axis=1)
    size = np.linalg.norm(gradient, axis=1)
    assert np.linalg.norm(error) <= 2e-6 * np.linalg.norm(size)
    assert np.all(error <= 1e-5 * size)
