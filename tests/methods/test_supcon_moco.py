"""SupCon with MoCo's queue: the loss on a linear network, the labels in the queue, and whole steps."""

import dataclasses

import jax
import jax.numpy as jnp
import moco_network
import numpy as np
import pytest
from labelled_run import BATCH, TREE, config, linear_views

from jaxcl import checkpoint
from jaxcl import config as config_lib
from jaxcl.methods import MoCo, SupConMoCo
from jaxcl.methods.labels import LabelLevels
from jaxcl.views import Views

LABELS = np.array([[0, 0], [0, 1], [0, 0], [1, 2], [1, -1], [1, 2]])


def supcon_moco(**changes):
    settings = {
        "bn": "global",
        "bn_groups": 1,
        "levels": 2,
        "features": 5,
        "labels": LabelLevels(TREE.levels, (2, 3)),
        "projection": moco_network.PROJECTION,
        "queue_size": 10,
        "momentum": 0.5,
        "temperature": 0.3,
    }
    return SupConMoCo(config("supcon").build_method().views, **(settings | changes))


def apply(params, stats, images, train, key, heads=None):
    h = images.reshape(len(images), -1) @ params["backbone"]
    return (h, {"projection": (h @ params["head_projection"],)}), stats


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_loops(q, k, labels, queue, queue_labels, tau, variant="out", in_batch=True):
    """The mean over queries, in float64: the own key is always a positive, others of the same known label are, too."""
    q, k, queue = (np.asarray(x, np.float64) for x in (q, k, queue))
    total = 0.0
    for i, row in enumerate(q):
        candidates = [(row @ k[i] / tau, True)]
        if in_batch:
            candidates += [
                (row @ k[j] / tau, labels[j] == labels[i] >= 0) for j in range(len(k)) if j != i
            ]
        candidates += [
            (row @ key / tau, label == labels[i] >= 0)
            for key, label in zip(queue, queue_labels, strict=True)
        ]
        push = np.log(sum(np.exp(s) for s, _ in candidates))
        positives = [s - push for s, positive in candidates if positive]
        if variant == "out":
            total -= np.mean(positives)
        else:
            total -= np.log(np.mean(np.exp(positives)))
    return total / len(q)


@pytest.mark.parametrize(
    ("settings", "symmetric", "scale"),
    [
        ({"variant": "in", "base_temperature": 0.1, "queue_size": 4}, False, 3.0),
        ({"in_batch": False, "level": "coarse"}, True, 1.0),
    ],
)
def test_the_settings_of_the_loss_arrive(settings, symmetric, scale):
    """After a step has filled the queue, against loops."""
    method = supcon_moco(symmetric=symmetric, probe=False, **settings)
    rng = np.random.default_rng(3)
    params = {
        "backbone": jnp.asarray(rng.normal(size=(12, 5)), jnp.float32),
        "head_projection": jnp.asarray(rng.normal(size=(5, 5)), jnp.float32),
    }
    extra = method.init_extra({"params": params, "batch_stats": {}}, jax.random.key(0))
    column = 0 if "level" in settings else 1
    batch = {"label": jnp.asarray(LABELS, jnp.int32), "index": jnp.arange(BATCH)}
    keys, key_labels = [], []
    for step in range(2):
        views = linear_views(step)
        out = method.loss(apply, params, {}, extra, batch, views, jax.random.key(step))
        x = np.asarray(views.images, np.float64).reshape(BATCH, 2, -1)
        z = unit(x @ np.asarray(params["backbone"]) @ np.asarray(params["head_projection"]))
        expected = sum(
            by_loops(
                z[:, a],
                z[:, b],
                LABELS[:, column],
                keys,
                key_labels,
                0.3,
                settings.get("variant", "out"),
                settings.get("in_batch", True),
            )
            for a, b in ((0, 1), (1, 0))[: 1 + symmetric]
        )
        np.testing.assert_allclose(out.loss, scale * expected, rtol=1e-5, atol=1e-6)
        for image, label in zip(z, LABELS[:, column], strict=True):
            keys += list(image if symmetric else image[1:])
            key_labels += [label] * (1 + symmetric)
        keys, key_labels = keys[-method.queue_size :], key_labels[-method.queue_size :]
        extra = method.after_update(extra, params, out.carry, jnp.asarray(step + 1))


def test_four_steps_with_labels_in_the_queue():
    """Keys enter with their labels and are looked up with them; the key encoder follows."""
    method = supcon_moco()
    rng = np.random.default_rng(0)

    def params():
        return {
            "backbone": rng.normal(size=(12, 5)).astype(np.float32),
            "head_projection": rng.normal(size=(5, 5)).astype(np.float32),
            "method": {"kernel": np.zeros((5, 3), np.float32), "bias": np.zeros(3, np.float32)},
        }

    now = params()
    average = {name: now[name] for name in ("backbone", "head_projection")}
    extra = method.init_extra(
        {"params": jax.tree.map(jnp.asarray, now), "batch_stats": {}}, jax.random.key(0)
    )
    keys, key_labels = np.zeros((0, 5), np.float32), np.zeros(0, int)
    for step in range(4):
        labels = np.roll(LABELS, step, axis=0)
        batch = {"label": jnp.asarray(labels, jnp.int32), "index": jnp.arange(BATCH)}
        views = linear_views(step)
        out = method.loss(apply, now, {}, extra, batch, views, jax.random.key(step))
        x = views.images.reshape(BATCH, 2, -1)
        q = x[:, 0] @ now["backbone"] @ now["head_projection"]
        k = x[:, 1] @ average["backbone"] @ average["head_projection"]
        expected = by_loops(unit(q), unit(k), labels[:, 1], keys, key_labels, 0.3)
        np.testing.assert_allclose(out.loss, expected, rtol=1e-5)
        keys = np.concatenate([keys, unit(k)])[-10:]
        key_labels = np.concatenate([key_labels, labels[:, 1]])[-10:]
        now = params()
        extra = method.after_update(extra, now, out.carry, jnp.asarray(step + 1))
        average = {name: 0.5 * average[name] + 0.5 * now[name] for name in average}
        held = extra["queue"]
        order = (np.arange(10) + int(held.pointer)) % 10
        order = order[np.asarray(held.valid)[order]]
        np.testing.assert_allclose(np.asarray(held.keys)[order], keys, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(held.labels)[order, 1], key_labels)


def test_without_labels_it_is_moco():
    shared = {"in_batch": False, "probe": False, "variant": "in"}
    method = supcon_moco(**shared)
    fields = {f.name for f in dataclasses.fields(MoCo)}
    moco = MoCo(**{name: getattr(method, name) for name in fields})
    rng = np.random.default_rng(1)
    params = {"backbone": rng.normal(size=(12, 5)), "head_projection": rng.normal(size=(5, 5))}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    extra = moco.init_extra({"params": params, "batch_stats": {}}, jax.random.key(0))
    unknown = jnp.full((BATCH, 2), -1)
    batch = {"label": unknown, "index": jnp.arange(BATCH)}
    for step in range(2):
        key, views = jax.random.key(step), linear_views(step)
        first = method.loss(apply, params, {}, extra, batch, views, key)
        second = moco.loss(apply, params, {}, extra, batch, views, key)
        np.testing.assert_allclose(first.loss, second.loss, rtol=1e-6, atol=1e-7)
        extra = method.after_update(extra, params, first.carry, jnp.asarray(step + 1))
    assert first.loss > 0


SHUFFLED = {
    "bn": "shuffle",
    "bn_groups": 4,
    "features": 16,
    "queue_size": 37,
    "symmetric": True,
    "base_temperature": 1.0,
}


@pytest.mark.parametrize("counts", [(8,), pytest.param((2, 4), marks=pytest.mark.slow)])
def test_any_number_of_devices_gives_the_same_as_one(counts):
    moco_network.same_on_devices(supcon_moco(**SHUFFLED), counts)


def test_a_run_that_is_resumed_in_mid_queue_is_bit_equal(tmp_path):
    method = supcon_moco(**SHUFFLED)
    _, last = moco_network.Run.of(method).go(4)
    assert np.any(last.params["method"]["kernel"])
    run = moco_network.Run.of(method)
    _, half = run.go(2)
    with checkpoint.Checkpoints(
        tmp_path, config={}, content_id="x", log=lambda line: None
    ) as saved:
        saved.save(2, half)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), half
        )
        restored, step = saved.restore(abstract)
    assert step == 2
    _, again = dataclasses.replace(run, state=restored).go(2, first=2)
    for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(last), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("in_batch", [True, False])
def test_the_trivial_loss_is_that_of_embeddings_that_are_all_equal(in_batch):
    """With a queue full of the one direction; whichever of its keys are positives."""
    method = supcon_moco(probe=False, in_batch=in_batch, symmetric=True, base_temperature=0.1)
    rng = np.random.default_rng(0)
    params = {
        "backbone": jnp.asarray(rng.normal(size=(12, 5)), jnp.float32),
        "head_projection": jnp.asarray(rng.normal(size=(5, 5)), jnp.float32),
    }
    extra = method.init_extra({"params": params, "batch_stats": {}}, jax.random.key(0))
    image = rng.normal(size=(2, 2, 3)).astype(np.float32)
    z = unit(image.ravel() @ np.asarray(params["backbone"]) @ np.asarray(params["head_projection"]))
    full = dataclasses.replace(
        extra["queue"],
        keys=jnp.tile(z, (10, 1)),
        labels=jnp.asarray(rng.integers(-1, 3, (10, 2)), jnp.int32),
        valid=jnp.ones(10, bool),
    )
    batch = {"label": jnp.asarray(LABELS, jnp.int32), "index": jnp.arange(BATCH)}
    views = Views(jnp.tile(image, (BATCH, 2, 1, 1, 1)), {})
    out = method.loss(apply, params, {}, {**extra, "queue": full}, batch, views, jax.random.key(0))
    assert out.loss > 1
    np.testing.assert_allclose(method.trivial_loss(BATCH), out.loss, rtol=1e-5)


def test_what_does_not_fit_is_named():
    made = config("supcon_moco", **{"model.bn_groups": 8})
    bound = made.for_labels(TREE).for_run(100, 2).build_method()
    assert bound.labels.classes == (2, 3)
    assert (bound.levels, bound.features) == (2, 16)
    np.testing.assert_allclose(
        supcon_moco(base_temperature=0.1).trivial_loss(6), 3 * np.log(16), rtol=1e-6
    )
    for changes, message in (
        ({"method.mechanism": "batch"}, "labels are kept beside the keys of a 'queue'"),
        ({"method.variant": "mean"}, "method.variant='mean': expected out or in"),
        ({"method.level": "genus"}, "the data have the levels"),
        ({"method.base_temperature": -1.0}, "expected a number above 0, or 0"),
    ):
        with pytest.raises(config_lib.ConfigError, match=message):
            config("supcon_moco", **{"model.bn_groups": 8, **changes}).for_labels(TREE)
