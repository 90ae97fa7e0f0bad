"""131,072 views, really run: within a gigabyte, and right in a row of every tile."""

import subprocess
import sys

import numpy as np
import pair_oracles as oracle
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


@pytest.mark.slow
def test_131072_views_run_within_a_gigabyte_and_agree_with_float64(tmp_path):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(VIEWS // 2, 2, 128)).astype(np.float32)
    np.save(tmp_path / "z.npy", z)
    subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], check=True, timeout=3600)
    out = np.load(tmp_path / "out.npz")
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
