"""MoCo is the same computation on any number of devices, and its images stay where they are."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from moco_network import MODES, Run, batches, moco

STEPS = 3


def floats(tree):
    leaves = [np.ravel(x) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return np.concatenate([np.zeros(1), *leaves])


def outcome(method, devices, dtype):
    rows, state = Run.of(method, devices, dtype).go(STEPS)
    kept = (state.params, state.batch_stats, state.extra)
    others = [
        np.asarray(x) for x in jax.tree.leaves(kept) if not jnp.issubdtype(x.dtype, jnp.floating)
    ]
    return np.array([row["loss"] for row in rows]), floats(kept), others


def check(name, counts):
    method = moco(**MODES[name])
    with jax.enable_x64(True):
        loss, kept, others = outcome(method, 1, jnp.float64)
        assert loss.dtype == np.float64
        assert len(np.unique(loss)) >= STEPS - 1
        assert np.linalg.norm(kept) > 0
        for count in counts:
            again = outcome(method, count, jnp.float64)
            np.testing.assert_allclose(again[0], loss, rtol=1e-10, atol=1e-12)
            assert np.linalg.norm(again[1] - kept) <= 1e-10 * np.linalg.norm(kept)
            for ours, theirs in zip(again[2], others, strict=True):
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODES)
def test_float64_steps_on_any_number_of_devices(name):
    check(name, (2, 4, 8))


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
    text = run.step.lower(run.state, batch).compile().as_text()
    sent = {}
    for result, kind in re.findall(
        r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(",
        text,
    ):
        shapes = re.findall(r"\w+\[([\d,]*)\]", result)
        size = sum(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes)
        sent[kind] = max(sent.get(kind, 0), size)
    image = 6 * 6 * 3
    embeddings = rows * len(method.directions) * 5
    assert sent["all-gather"] <= embeddings
    assert sent.get("collective-permute", 0) <= embeddings
    assert "reduce-scatter" not in sent
    # Gradients and sums, but neither images nor the queue.
    assert sent["all-reduce"] < min(rows * image, 5000) / 2
    own = rows // 8 * image  # what a device has, and sends once in each direction
    if method.bn == "shuffle" and method.mechanism != "memory_bank":
        assert sent["all-to-all"] in (own, own * len(method.directions))
    else:
        assert sent.get("all-to-all", 0) <= embeddings
