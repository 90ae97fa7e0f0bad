"""The train step is the same computation on any number of devices, and nothing but embeddings travels."""

import collectives
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl import config as config_lib
from jaxcl import mesh as mesh_lib
from jaxcl import models, optim
from jaxcl.state import make_init, make_train_step
from jaxcl.views import presets

DEVICES = (1, 2, 4, 8)


def tiny(dtype="float32", **changes):
    c = config_lib.base("simclr", presets.simclr(8, strength=0.5))
    c.name, c.steps, c.batch_size = "tiny", 40, 16
    c.model.width, c.model.stem, c.model.dtype = 0.0625, "cifar", dtype
    c.method.projection.layers = (16, 8)
    c.optim.base_lr, c.optim.warmup_epochs = 0.1, 0.5
    c.update_from_flattened_dict(changes)
    return config_lib.from_dict(c)


def batches(config, steps, size=10):
    rng = np.random.default_rng(0)
    for _ in range(steps):
        yield {
            "image": rng.integers(0, 256, (config.batch_size, size, size, 3), np.uint8),
            "label": np.zeros((config.batch_size, 1), np.int32),
            "index": np.arange(config.batch_size, dtype=np.int32),
        }


def build(config, count):
    """(initial state, jitted step, mesh) on the first `count` devices."""
    mesh = mesh_lib.make_mesh(jax.devices()[:count])
    method = config.build_method()
    model = models.build(config.model, method.heads)
    schedule = optim.make_schedule(config.optim, config.steps, 10, config.batch_size)
    shape = method.views.output_shape((10, 10, 3))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), shape))["params"] | {"method": {}}
    tx = optim.make_optimizer(config.optim, params, schedule)
    state = jax.jit(make_init(method, model, tx, shape))(jax.random.key(config.seed))
    shardings = mesh_lib.state_shardings(mesh, state)
    step = jax.jit(
        make_train_step(method, model, tx, schedule),
        in_shardings=(shardings, mesh_lib.batch_sharding(mesh)),
        out_shardings=(shardings, mesh_lib.replicated(mesh)),
    )
    return jax.device_put(state, shardings), step, mesh


def run(config, count, steps):
    """The losses, the change of the parameters, and the statistics after `steps` steps."""
    state, step, mesh = build(config, count)
    start = state.params
    losses = []
    for batch in batches(config, steps):
        state, metrics = step(state, mesh_lib.to_global(mesh, batch))
        losses.append(np.asarray(metrics["loss"]))
    change = jax.tree.map(np.subtract, jax.device_get(start), jax.device_get(state.params))
    return np.stack(losses), change, jax.device_get(state.batch_stats)


def relative(tree, reference):
    flat, ref = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (tree, reference)
    )
    return np.linalg.norm(flat - ref) / np.linalg.norm(ref)


def test_one_float32_step_is_the_same_on_any_number_of_devices():
    # Plain gradient descent with rate 1 and no decay: the change of the parameters is the gradient.
    plain = {
        "optim.name": "sgd",
        "optim.momentum": 0.0,
        "optim.weight_decay": 0.0,
        "optim.base_lr": 1.0,
        "optim.scaling": "none",
        "optim.schedule": "constant",
        "optim.warmup_epochs": 0.0,
    }
    config = tiny(**plain)
    loss, gradient, stats = run(config, 1, 1)
    assert np.isfinite(loss)
    for count in DEVICES[1:]:
        other, other_gradient, other_stats = run(config, count, 1)
        np.testing.assert_allclose(other, loss, rtol=1e-6)
        assert relative(other_gradient, gradient) <= 1e-5
        assert relative(other_stats, stats) <= 1e-5


@pytest.mark.slow
def test_twenty_float64_steps_are_the_same_on_any_number_of_devices():
    with jax.enable_x64(True):
        config = tiny("float64")
        loss, change, stats = run(config, 1, 20)
        assert loss.dtype == np.float64
        assert len(set(loss.tolist())) == 20
        for count in DEVICES[1:]:
            other, other_change, other_stats = run(config, count, 20)
            np.testing.assert_allclose(other, loss, rtol=1e-10)
            assert relative(other_change, change) <= 1e-10
            assert relative(other_stats, stats) <= 1e-10


def test_only_embeddings_gradients_and_sums_travel():
    """An image has more numbers than all embeddings together, so that not even one can be among what is sent."""
    config = tiny(**{"method.projection.layers": (16, 2)})
    state, step, _ = build(config, 8)
    batch = jax.eval_shape(lambda: {k: jnp.asarray(v) for k, v in next(batches(config, 1)).items()})
    text = step.lower(state, batch).compile().as_text()
    embeddings = 16 * 2 * 2  # B * V * D
    assert embeddings < 8 * 8 * 3
    params = jax.tree.leaves(state.params)
    assert not collectives.strangers(text, params, embeddings)
    found = collectives.sent(text)
    gathered = [array.size for array in found if array.kind == "all-gather"]
    assert max(gathered) == embeddings, "NT-Xent over the global batch has to gather the embeddings"
    reduced = [collectives.sides(array.shape) for array in found if array.kind == "all-reduce"]
    assert all(collectives.sides(p.shape) in reduced for p in params if p.size > embeddings)


@pytest.mark.parametrize("combined", [False, True])
@pytest.mark.parametrize("way", ["gathered", "masked and added", "turned"])
def test_an_image_that_travels_is_found(way, combined):
    """Moved whole, in a tuple with something small, or as zeros everywhere but on its own device."""
    mesh = mesh_lib.make_mesh(jax.devices())
    (axis,) = mesh.axis_names

    def moved(images):
        small = images.mean(axis=(1, 2, 3))
        if way == "gathered":
            sent = jax.lax.all_gather((images, small) if combined else images, axis)
        elif way == "turned":
            sent = jax.lax.ppermute((images, small) if combined else images, axis, [(0, 1)])
        else:
            mine = jax.lax.axis_index(axis) == 3
            own = jnp.where(mine, images, 0), jnp.where(mine, small, 0)
            sent = jax.lax.psum(own if combined else own[0], axis)
        return jax.tree.map(lambda x: jnp.sin(x).sum()[None], sent)

    rows = jax.sharding.PartitionSpec(axis)
    step = jax.jit(jax.shard_map(moved, mesh=mesh, in_specs=rows, out_specs=rows))
    images = jax.ShapeDtypeStruct((8, 8, 8, 3), jnp.float32)
    text = step.lower(images).compile().as_text()
    assert collectives.strangers(text, [np.zeros((3, 3, 8, 3))], 8 * 8 * 3 - 1)


def test_an_update_that_is_not_finite_is_left_out_and_counted():
    config = tiny()
    state, step, mesh = build(config, 1)
    broken = jax.tree.map(lambda x: x, state.params)
    kernel = broken["head_projection"]
    leaf = next(iter(jax.tree.leaves(kernel)))
    broken["head_projection"] = jax.tree.map(
        lambda x: jnp.full_like(x, jnp.nan) if x is leaf else x, kernel
    )
    bad = state.__class__(**{**vars(state), "params": broken})
    after, metrics = step(bad, mesh_lib.to_global(mesh, next(batches(config, 1))))
    assert int(after.step) == 1
    assert int(metrics["rejected"]) == int(after.rejected) == 1
    jax.tree.map(np.testing.assert_array_equal, after.params, bad.params)
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats, bad.batch_stats)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, bad.opt_state)


def test_compute_in_bfloat16_keeps_parameters_and_loss_wide():
    config = tiny("bfloat16")
    state, step, _ = build(config, 1)
    after, metrics = jax.eval_shape(step, state, next(batches(config, 1)))
    floats = [x.dtype for x in jax.tree.leaves(after) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert set(floats) == {jnp.dtype("float32")}
    assert metrics["loss"].dtype == jnp.float32
    assert "bf16" in step.lower(state, next(batches(config, 1))).as_text()
