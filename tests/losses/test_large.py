"""131,072 views, really run: within a gigabyte, and right."""

import subprocess
import sys

import numpy as np
import pytest

VIEWS, FEATURES = 131072, 128

RUN = """
import resource
import sys

import jax
import numpy as np

from jaxcl import losses

z = jax.numpy.asarray(np.load(f"{sys.argv[1]}/z.npy"))
run = jax.jit(jax.value_and_grad(losses.nt_xent)).lower(z).compile()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
value, gradient = jax.block_until_ready(run(z))
growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
np.savez(f"{sys.argv[1]}/out.npz", value=value, gradient=gradient, growth=growth)
"""


def oracle(z, temperature, sampled):
    """Mean loss, and the gradient of the sampled rows, in float64, a block of rows at a time."""
    raw = z.reshape(-1, z.shape[-1]).astype(np.float64)
    norm = np.linalg.norm(raw, axis=1, keepdims=True)
    unit = raw / norm
    count = len(unit)
    partner = np.arange(count) ^ 1
    lse = np.empty(count)
    for start in range(0, count, 512):
        block = np.arange(start, start + 512)
        s = unit[block] @ unit.T / temperature
        s[np.arange(512), block] = -np.inf
        # Cosines are at most 1: no exponent is above 0.
        lse[block] = 1 / temperature + np.log(np.sum(np.exp(s - 1 / temperature), axis=1))
    positive = np.sum(unit * unit[partner], axis=1) / temperature
    s = unit[sampled] @ unit.T / temperature
    weight = np.exp(s - lse[sampled, None]) + np.exp(s - lse)
    here = np.arange(len(sampled))
    weight[here, sampled] = 0
    weight[here, partner[sampled]] -= 2
    step = weight @ unit / (count * temperature)
    along = np.sum(step * unit[sampled], axis=1, keepdims=True)
    return np.mean(lse - positive), (step - along * unit[sampled]) / norm[sampled]


@pytest.mark.slow
def test_131072_views_run_within_a_gigabyte_and_agree_with_float64(tmp_path):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(VIEWS // 2, 2, FEATURES)).astype(np.float32)
    z[:, 1] = z[:, 0] + z[:, 1]
    np.save(tmp_path / "z.npy", z)
    subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], check=True, timeout=3600)
    out = np.load(tmp_path / "out.npz")
    assert out["growth"] / 1024 <= 1024  # ru_maxrss is in KiB on Linux
    sampled = np.sort(rng.choice(VIEWS, 512, replace=False))
    value, gradient = oracle(z, 0.1, sampled)
    np.testing.assert_allclose(out["value"], value, rtol=1e-6)
    got = out["gradient"].reshape(VIEWS, FEATURES)[sampled]
    assert np.linalg.norm(got - gradient) <= 2e-6 * np.linalg.norm(gradient)
