"""Methods that learn from labels, on networks of a few thousand multiplications and on ten digits of 8x8 pixels."""

import dataclasses
import struct

import jax
import jax.numpy as jnp
import numpy as np
import tiny_network
from sklearn.datasets import load_digits

from jaxcl import checkpoint, optim
from jaxcl import config as config_lib
from jaxcl import mesh as mesh_lib
from jaxcl.data import LabelTree
from jaxcl.experiment import in_sight_of
from jaxcl.methods.base import method_columns
from jaxcl.state import make_init, make_train_step
from jaxcl.views import Views, presets

SHAPE = (8, 8, 1)
TREE = LabelTree(("coarse", "fine"), (("a", "b"), ("c", "d", "e")))
BATCH, VIEWS, FEATURES = 6, 2, 5


def config(method, **changes):
    """A config on the digits; `changes` are flattened keys."""
    views = 1 if method == "supervised" else 2
    c = config_lib.base(method, presets.crop_flip(8, views=views, smallest_crop=0.6))
    c.name, c.steps, c.batch_size, c.seed = method, 6, 16, 3
    c.data.name, c.data.image_size, c.data.channels, c.data.threads = "idx", 8, 1, 1
    c.data.path = "unknown"
    c.model.width, c.model.stem = 1 / 32, "cifar"
    if "projection" in c.method:
        c.method.projection.layers = (12, 6)
    c.optim.name, c.optim.base_lr, c.optim.scaling = "sgd", 0.1, "none"
    c.optim.warmup_epochs, c.optim.weight_decay = 0.0, 1e-4
    c.run.log_every, c.run.checkpoint_every, c.run.report = 1, 2, False
    c.mesh.compile_cache = ""
    c.update_from_flattened_dict(changes)
    return config_lib.from_dict(c)


def write_digits(directory, train=200, test=80):
    """scikit-learn's digits as IDX files."""
    x, y = load_digits(return_X_y=True)
    images = (x.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    for prefix, rows in (("train", slice(0, train)), ("t10k", slice(train, train + test))):
        count = len(images[rows])
        header = struct.pack(">BBBBIII", 0, 0, 8, 3, count, 8, 8)
        (directory / f"{prefix}-images-idx3-ubyte").write_bytes(header + images[rows].tobytes())
        header = struct.pack(">BBBBI", 0, 0, 8, 1, count)
        labels = y[rows].astype(np.uint8).tobytes()
        (directory / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels)
    return directory


def linear(params, batch_stats, images, train, key):
    """A network without activation: h = x W, z = h P, logits = h C + c."""
    h = images.reshape(len(images), -1) @ params["w"]
    outputs = {"projection": (h @ params["p"],), "classifier": (h @ params["c"] + params["b"],)}
    return (h, outputs), batch_stats


def linear_params(seed, classes=3):
    rng = np.random.default_rng(seed)
    shapes = {"w": (12, FEATURES), "p": (FEATURES, 4), "c": (FEATURES, classes), "b": (classes,)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    params["method"] = {
        "kernel": rng.normal(size=(FEATURES, classes)).astype(np.float32),
        "bias": rng.normal(size=classes).astype(np.float32),
    }
    return params


def linear_views(seed, views=VIEWS):
    images = np.random.default_rng(seed).normal(size=(BATCH, views, 2, 2, 3)).astype(np.float32)
    return Views(images, {})


def loss_of(method, params, labels, seed=0, views=VIEWS):
    """`method.loss` on the linear network; labels [B,2], or [B] for the same at both levels."""
    labels = jnp.asarray(labels, jnp.int32)
    labels = labels if labels.ndim == 2 else jnp.stack([labels, labels], axis=1)
    batch = {"label": labels, "index": jnp.arange(BATCH)}
    args = (linear, params, {}, {}, batch, linear_views(seed, views), jax.random.key(0))
    return method.loss(*args)


def started(config, devices, network=tiny_network.build, dtype=jnp.float32):
    """(the state before the first step, the step, the mesh); float64 is for float64 mode."""
    mesh = mesh_lib.make_mesh(jax.devices()[:devices])
    method = config.build_method()
    model = network(config.model, method.heads)
    heads = tuple((name, head.clone(dtype=dtype)) for name, head in model.heads)
    model = dataclasses.replace(model, heads=heads)
    schedule = optim.make_schedule(config.optim, config.steps, 10, config.batch_size)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), SHAPE))["params"]
    params["method"] = jax.eval_shape(method.init_params, jax.random.key(0))
    tx = optim.make_optimizer(config.optim, params, schedule)
    new = make_init(method, model, tx, SHAPE)

    def init(key):
        return jax.tree.map(
            lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, new(key)
        )

    shardings = mesh_lib.state_shardings(mesh, jax.eval_shape(init, jax.random.key(0)))
    step = jax.jit(
        in_sight_of(mesh, make_train_step(method, model, tx, schedule)),
        in_shardings=(shardings, mesh_lib.batch_sharding(mesh)),
        out_shardings=(shardings, mesh_lib.replicated(mesh)),
    )
    return jax.jit(init, out_shardings=shardings)(jax.random.key(config.seed)), step, mesh


def go(config, state, step, mesh, numbers):
    """(losses, state, last metrics) after the steps of these numbers, on random images, labels and what a table says of them."""
    columns, found = method_columns(config.build_method()), []
    for number in numbers:
        rng = np.random.default_rng(number)
        batch = {
            "image": rng.integers(0, 256, (config.batch_size, *SHAPE), np.uint8),
            "label": rng.integers(-1, 3, (config.batch_size, 2), np.int32),
            # Half of each batch are images of the one before.
            "index": np.arange(config.batch_size, dtype=np.int32) + number * config.batch_size // 2,
        }
        for name in columns:
            # An image in six cannot be read, and its row of the table says nothing then.
            size = 3 if name.startswith("triple") else 2
            known = rng.random(config.batch_size // size).astype(np.float32).repeat(size)
            batch[name] = np.where(rng.random(config.batch_size) < 1 / 6, np.nan, known)
        state, metrics = step(state, mesh_lib.to_global(mesh, batch))
        found.append(float(metrics["loss"]))
    return found, state, metrics


def run(config, devices, steps, network=tiny_network.build, dtype=jnp.float32):
    """(losses, change of the parameters, last metrics) after `steps` steps; see `started` and `go`."""
    state, step, mesh = started(config, devices, network, dtype)
    start = jax.device_get(state.params)
    found, state, metrics = go(config, state, step, mesh, range(steps))
    return found, jax.tree.map(np.subtract, jax.device_get(state.params), start), metrics


def same_when_resumed(config, directory, saved_well=lambda state: True):
    """Five steps, and three of them, saved, restored and continued: the same bits in every array and every loss."""
    state, step, mesh = started(config, 8)
    losses, whole, _ = go(config, state, step, mesh, range(5))
    _, half, _ = go(config, state, step, mesh, range(3))
    assert saved_well(half)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), half
    )
    identity = {"config": {}, "content_id": "noise", "log": print}
    with checkpoint.Checkpoints(directory, keep=1, **identity) as checkpoints:
        checkpoints.save(3, half)
    with checkpoint.Checkpoints(directory, keep=1, **identity) as checkpoints:
        restored, number = checkpoints.restore(abstract)
    assert number == 3
    again, end, _ = go(config, restored, step, mesh, range(3, 5))
    assert again == losses[3:]
    assert np.all(np.isfinite(again))
    for (path, a), b in zip(jax.tree.leaves_with_path(end), jax.tree.leaves(whole), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def same_on_devices(config, counts, steps=2):
    """The steps in float64 on so many devices are those on one: what it learned there, and its last metrics."""
    with jax.enable_x64(True):
        alone = run(config, 1, steps, dtype=jnp.float64)
        assert np.all(np.isfinite(alone[0]))
        for count in counts:
            spread = run(config, count, steps, dtype=jnp.float64)
            np.testing.assert_allclose(spread[0], alone[0], rtol=1e-10)
            assert distance(spread[1], alone[1]) <= 1e-10
    return alone[1:]


def same_on_eight_devices(config, steps=2):
    """`same_on_devices` for eight."""
    return same_on_devices(config, (8,), steps)


def distance(tree, reference):
    """|tree - reference| / |reference| over all leaves."""
    flat, ref = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (tree, reference)
    )
    return np.linalg.norm(flat - ref) / np.linalg.norm(ref)
