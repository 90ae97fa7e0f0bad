"""MoCo is the same computation on any number of devices, and its images stay where they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import sent
from moco_network import MODES, Run, batches, moco, same_on_devices


def floats(tree):
    leaves = [np.ravel(x) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return np.concatenate(leaves)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODES)
def test_float64_steps_on_any_number_of_devices(name):
    """All of them for the mode whose keys travel most, two numbers for each of the others."""
    same_on_devices(moco(**MODES[name]), (2, 4, 8) if name == "queue, shuffle" else (2, 8))


def test_a_float32_step_on_eight_devices_is_that_on_one():
    method = moco(fill="noise")
    results = []
    for count in (1, 8):
        run = Run.of(method, count)
        start = jax.device_get(run.state.params)
        (row,), state = run.go(1)
        results.append(
            (row["loss"], floats(jax.tree.map(np.subtract, start, jax.device_get(state.params))))
        )
    (loss, gradient), (other, other_gradient) = results
    np.testing.assert_allclose(other, loss, rtol=1e-6)
    assert np.linalg.norm(gradient) > 1e-3
    assert np.linalg.norm(other_gradient - gradient) <= 1e-5 * np.linalg.norm(gradient)


@pytest.mark.parametrize(
    "name",
    [n if n == "queue, shuffle" else pytest.param(n, marks=pytest.mark.slow) for n in MODES],
)
def test_no_image_travels_but_for_the_shuffle(name):
    """Activations have at least side x side numbers a row, embeddings 5: what is sent is told by its size."""
    rows = 64
    # As many groups as devices: the statistics of a group stay at home, too.
    method = moco(**{"bn_groups": 8, "queue_size": 5000} | MODES[name])
    run = Run.of(method, 8)
    batch = jax.eval_shape(lambda: {k: jnp.asarray(v) for k, v in next(batches(1, rows)).items()})
    largest = {}
    for array in sent(run.step.lower(run.state, batch).compile().as_text()):
        largest[array.kind] = max(largest.get(array.kind, 0), array.size)
    image = 6 * 6 * 3
    embeddings = rows * len(method.directions) * 5
    assert largest["all-gather"] <= embeddings
    assert largest.get("collective-permute", 0) <= embeddings
    assert "reduce-scatter" not in largest
    # Gradients and sums, but neither images nor the queue.
    assert largest["all-reduce"] < min(rows * image, 5000) / 2
    if method.bn == "shuffle" and method.mechanism != "memory_bank":
        # A device's own rows, as a whole or in 8 parts.
        own = rows // 8 * (image + -image % 8)
        assert largest["all-to-all"] in (own, own // 8)
    else:
        assert largest.get("all-to-all", 0) <= embeddings
