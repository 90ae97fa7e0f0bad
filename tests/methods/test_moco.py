"""MoCo step by step against NumPy: look-up, queue, key encoder, and the mechanisms that it is compared with."""

import collections
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from moco_network import EXAMPLES, MODES, Run, batches, moco
from moco_network import model as network_of

from jaxcl import checkpoint, losses
from jaxcl import config as config_lib
from jaxcl.methods import SupConMoCo
from jaxcl.methods.base import remarks as method_remarks
from jaxcl.methods.memory import Bank
from jaxcl.models import HeadSpec
from jaxcl.views import Views, presets

WIDE = HeadSpec(layers=(3,))
FEATURES = 2 * 2 * 3


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def apply(params, stats, images, train, key, heads=None):
    """A linear network that counts its passes in the place of statistics."""
    h = images.reshape(len(images), -1) @ params["backbone"]["w"]
    out = {"projection": (h,)}
    if heads is None and "head_prediction" in params:
        out["prediction"] = (h @ params["head_prediction"]["w"],)
    return (h, out), {"backbone": {"passes": stats["backbone"]["passes"] + train}}


def network(rng, prediction=False):
    params = {"backbone": {"w": jnp.asarray(rng.normal(size=(FEATURES, 3)))}, "head_projection": {}}
    if prediction:
        params["head_prediction"] = {"w": jnp.asarray(rng.normal(size=(3, 3)))}
    return params


def info_nce(q, k, negatives, temperature):
    """The mean over queries; negatives[i] are those of query i."""
    losses = []
    for i, own in enumerate(np.sum(q * k, axis=1)):
        s = np.array([own, *(n @ q[i] for n in negatives[i])]) / temperature
        losses.append(np.log(np.exp(s - s.max()).sum()) + s.max() - s[0])
    return np.mean(losses)


def others(k):
    """For each query the keys of the other queries."""
    return [np.delete(k, i, axis=0) for i in range(len(k))]


def replay(method, steps=3, prediction=False):
    """For each step: (LossOut, extra before it, images[B,V,F], batch, params, key of the loss)."""

    @jax.jit
    def loss(params, stats, extra, batch, images, key):
        return method.loss(apply, params, stats, extra, batch, Views(images, {}), key)

    @jax.jit
    def update(extra, params, carry, step):
        return method.after_update(extra, params, carry, step)

    rng = np.random.default_rng(5)
    params = network(rng, prediction)
    stats = {"backbone": {"passes": jnp.zeros((), jnp.int32)}}
    extra = method.init_extra({"params": params, "batch_stats": stats}, jax.random.key(0))
    views = len(method.views.views)
    for step in range(steps):
        images = rng.normal(size=(4, views, 2, 2, 3))
        batch = {
            "label": rng.integers(0, 4, (4, 2)).astype(np.int32),
            "index": (np.arange(4, dtype=np.int32) + 3 * step) % 8,
        }
        key = jax.random.key(step)
        out = loss(params, stats, extra, batch, images, key)
        yield out, extra, images.reshape(4, views, -1), batch, params, key
        params, stats = network(rng, prediction), out.batch_stats
        extra = update(extra, params, out.carry, np.int32(step + 1))


@pytest.mark.parametrize("symmetric", [False, True])
def test_three_steps_with_a_queue(symmetric):
    """Look-up before the step's keys enter; the key encoder moves before it is used, by what the queries use."""
    m, tau, size = 0.75, 0.3, 11
    with jax.enable_x64(True):
        method = moco(
            projection=WIDE,
            symmetric=symmetric,
            queue_size=size,
            momentum=m,
            temperature=tau,
            bn_groups=2,
        )
        w_k, queue = None, collections.deque(maxlen=size)
        for step, (out, extra, x, batch, params, _) in enumerate(replay(method)):
            w_q = np.asarray(params["backbone"]["w"])
            w_k = w_q if step == 0 else m * w_k + (1 - m) * w_q
            np.testing.assert_allclose(extra["key_params"]["backbone"]["w"], w_k, rtol=1e-12)
            order = (int(extra["queue"].pointer) + np.arange(size)) % size
            held = order[np.asarray(extra["queue"].valid)[order]]
            assert len(held) == len(queue)
            if queue:
                keys, labels, born = zip(*queue, strict=True)
                np.testing.assert_allclose(extra["queue"].keys[held], keys, rtol=1e-12)
                np.testing.assert_array_equal(extra["queue"].labels[held], labels)
                np.testing.assert_array_equal(extra["queue"].age[held], step - np.array(born))
                np.testing.assert_allclose(out.metrics["key_age"], step - np.mean(born), rtol=1e-6)
                same = batch["label"][:, 1:] == np.array(labels)[:, 1]
                np.testing.assert_allclose(out.metrics["same_class_negatives"], same.mean())
            np.testing.assert_allclose(out.metrics["dictionary_filled"], len(queue) / size)
            q, k = unit(x @ w_q), unit(x @ w_k)
            held_keys = [key for key, *_ in queue]
            expected = info_nce(q[:, 0], k[:, 1], [held_keys] * 4, tau)
            if symmetric:
                expected += info_nce(q[:, 1], k[:, 0], [held_keys] * 4, tau)
            np.testing.assert_allclose(out.loss, expected, rtol=1e-10, atol=1e-12)
            for image, label in zip(k, batch["label"], strict=True):
                queue.extend((key, label, step) for key in image[0 if symmetric else 1 :])
            # Each encoder has statistics of its own passes.
            passes = (2 if symmetric else 1) * (step + 1)
            assert out.batch_stats["backbone"]["passes"] == passes
            assert out.carry["stats"]["backbone"]["passes"] == passes


def test_three_steps_of_version_3():
    tau, m0 = 0.4, 0.6
    with jax.enable_x64(True):
        changes = MODES["version 3"] | {"total_steps": 3, "momentum": m0, "temperature": tau}
        method = moco(**changes)
        w_k = None
        for step, (out, extra, x, _, params, _) in enumerate(replay(method, prediction=True)):
            w_q = np.asarray(params["backbone"]["w"])
            m = 1 - 0.5 * (1 + math.cos(math.pi * step / 3)) * (1 - m0)
            w_k = w_q if step == 0 else m * w_k + (1 - m) * w_q
            np.testing.assert_allclose(extra["key_params"]["backbone"]["w"], w_k, rtol=1e-12)
            assert set(extra) == {"key_params", "key_stats"}
            assert "head_prediction" not in extra["key_params"]
            q, k = unit(x @ w_q @ np.asarray(params["head_prediction"]["w"])), unit(x @ w_k)
            expected = sum(
                2 * tau * info_nce(q[:, a], k[:, b], others(k[:, b]), tau)
                for a, b in ((0, 1), (1, 0))
            )
            np.testing.assert_allclose(out.loss, expected, rtol=1e-10)


def test_three_steps_with_a_memory_bank(monkeypatch):
    """The own row is the positive, the drawn ones are the negatives; only then the row is changed.

    What was drawn is told by what the loss was given, which has to be rows of the replay's own bank.
    """
    m, tau, real = 0.5, 0.3, losses.info_nce
    given = []

    def watched(q, k, queue, temperature, valid):
        given.append((np.asarray(queue), np.asarray(valid)))
        return real(q, k, queue, temperature, valid)

    monkeypatch.setattr(losses, "info_nce", watched)
    with jax.enable_x64(True), jax.disable_jit():
        method = moco(
            projection=WIDE,
            mechanism="memory_bank",
            examples=8,
            queue_size=6,
            bank_momentum=m,
            temperature=tau,
        )
        rows, valid = np.zeros((8, 3)), np.zeros(8, bool)
        found = set()
        for out, extra, x, batch, params, _ in replay(method, 5):
            np.testing.assert_allclose(extra["bank"].rows, rows, rtol=1e-10)
            np.testing.assert_array_equal(extra["bank"].valid, valid)
            q = unit(x[:, 0] @ np.asarray(params["backbone"]["w"]))
            (((queue, counted),), given[:]) = (given[:], ())
            assert queue.shape == (6, 3)
            distance = np.linalg.norm(queue[:, None] - rows, axis=2)
            drawn = distance.argmin(1)
            assert distance.min(1).max() < 1e-10
            np.testing.assert_array_equal(counted, valid[drawn])
            negatives = rows[drawn[counted]]
            found |= set(drawn[counted].tolist())
            index = batch["index"]
            positives = np.where(valid[index, None], rows[index], q)
            expected = info_nce(q, positives, [negatives] * 4, tau)
            np.testing.assert_allclose(out.loss, expected, rtol=1e-10, atol=1e-12)
            rows[index] = np.where(valid[index, None], unit(m * rows[index] + (1 - m) * q), q)
            valid[index] = True
        assert valid.all()
        assert len(found) > 4


def test_end_to_end_takes_the_other_keys_of_the_batch():
    with jax.enable_x64(True):
        method = moco(projection=WIDE, mechanism="end_to_end", bn_groups=2)
        for out, extra, x, _, params, _ in replay(method, 1):
            z = unit(x @ np.asarray(params["backbone"]["w"]))
            expected = info_nce(z[:, 0], z[:, 1], others(z[:, 1]), 0.2)
            np.testing.assert_allclose(out.loss, expected, rtol=1e-10)
            assert extra == {}
            assert out.batch_stats["backbone"]["passes"] == 2


@pytest.mark.parametrize("name", MODES)
def test_only_end_to_end_has_a_gradient_through_keys(name):
    prediction = name == "version 3"
    changes = MODES[name] | ({} if prediction else {"projection": WIDE})
    method = moco(**changes | {"symmetric": False, "fill": "noise"})
    params = network(np.random.default_rng(0), prediction)
    stats = {"backbone": {"passes": jnp.zeros((), jnp.int32)}}
    extra = method.init_extra({"params": params, "batch_stats": stats}, jax.random.key(0))
    batch = {"label": np.zeros((4, 2), np.int32), "index": np.arange(4, dtype=np.int32)}

    leaves, structure = jax.tree.flatten(extra)
    fixed = {n: x for n, x in enumerate(leaves) if not jnp.issubdtype(x.dtype, jnp.floating)}
    moving = {n: x for n, x in enumerate(leaves) if n not in fixed}

    @jax.jit
    def gradient(images, moving):
        def loss(images, moving):
            held = moving | fixed
            extra = jax.tree.unflatten(structure, [held[n] for n in range(len(leaves))])
            views, key = Views(images, {}), jax.random.key(0)
            return method.loss(apply, params, stats, extra, batch, views, key).loss

        return jax.grad(loss, argnums=(0, 1))(images, moving)

    images = np.random.default_rng(1).normal(size=(4, len(method.views.views), 2, 2, 3))
    of_images, of_extra = gradient(jnp.asarray(images), moving)
    assert np.abs(of_images[:, 0]).max() > 1e-3
    of_keys = np.abs(of_images[:, 1:]).max(initial=0)
    assert of_keys > 1e-3 if name == "end to end" else of_keys == 0
    assert bool(moving) == (name != "end to end")
    assert not any(np.any(x) for x in of_extra.values())


def test_statistics_of_the_keys_are_averaged_in_the_setting_ema_alone():
    for bn in ("ema", "groups"):
        method = moco(projection=WIDE, bn=bn, momentum=0.5, bn_groups=2)
        new = {"backbone": {"mean": jnp.asarray(4.0)}, "head_prediction": {"mean": jnp.ones(1)}}
        old = {"backbone": {"mean": jnp.asarray(2.0)}}
        if bn == "groups":
            new = {"backbone": new["backbone"]}
        extra = {
            "key_params": {},
            "key_stats": old,
            "queue": method.init_extra(
                {"params": network(np.random.default_rng(0)), "batch_stats": old},
                jax.random.key(0),
            )["queue"],
        }
        carry = {"stats": new, "keys": jnp.ones((1, 3)), "labels": jnp.zeros((1, 2), jnp.int32)}
        after = method.after_update(extra, {}, carry, jnp.asarray(1))
        expected = {"ema": 3.0, "groups": 4.0}[bn]
        assert jax.tree.map(float, after["key_stats"]) == {"backbone": {"mean": expected}}


@pytest.mark.parametrize("bn", ["groups", "ema"])
def test_keys_are_made_by_running_statistics_in_the_setting_ema_alone(bn):
    """A key does not depend on the other rows then, and its encoder's statistics stay as they are."""
    method = moco(bn=bn)
    network = network_of(method)
    variables = network.init(jax.random.key(0), (6, 6, 3))
    params, stats = variables["params"], variables["batch_stats"]
    images = np.random.default_rng(0).uniform(size=(2, 8, 6, 6, 3)).astype(np.float32)
    images[1, 0] = images[0, 0]

    @jax.jit
    def encode(images):
        return method.encode_keys(network.apply, params, stats, images, jax.random.key(1))

    (k, after), (other, _) = map(encode, images)
    unmoved = all(map(np.array_equal, jax.tree.leaves(after), jax.tree.leaves(stats)))
    assert unmoved == (bn == "ema")
    assert np.array_equal(k[0], other[0]) == (bn == "ema")
    assert not np.array_equal(k[1], other[1])


def test_a_run_that_is_resumed_in_mid_queue_is_bit_equal(tmp_path):
    """37 slots, 32 keys a step: the queue has wrapped around when it is saved."""
    method = moco(symmetric=True)
    rows, whole = Run.of(method).go(5)
    run = Run.of(method)
    _, half = run.go(3)
    assert 0 < int(half.extra["queue"].pointer) < 37
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), half
    )
    identity = {"config": {}, "content_id": "noise", "log": print}
    with checkpoint.Checkpoints(tmp_path, keep=1, **identity) as checkpoints:
        checkpoints.save(3, half)
    with checkpoint.Checkpoints(tmp_path, keep=1, **identity) as checkpoints:
        restored, step = checkpoints.restore(abstract)
    assert step == 3
    again, end = Run(restored, run.step, run.mesh).go(2, first=3)
    for ours, theirs in zip(again, rows[3:], strict=True):
        assert ours["loss"] == theirs["loss"]
        assert ours["contrastive_top1"] == theirs["contrastive_top1"]
    for (path, a), b in zip(jax.tree.leaves_with_path(end), jax.tree.leaves(whole), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def test_what_is_logged():
    rows, state = Run.of(moco(symmetric=True)).go(3)
    assert {"contrastive_top1", "contrastive_top5", "contrastive_entropy"} < set(rows[0])
    # 37 slots, 32 keys a step: 32 of age 1 and then 5 of age 2.
    np.testing.assert_allclose([row["key_age"] for row in rows], [0, 1, (32 + 10) / 37], rtol=1e-6)
    filled = [row["dictionary_filled"] for row in rows]
    np.testing.assert_allclose(filled, [0, 32 / 37, 1], rtol=1e-6)
    assert rows[0]["loss"] == rows[0]["contrastive_top1"] == rows[0]["contrastive_top5"] == 0
    assert rows[2]["loss"] > 0
    assert {"positive_cosine", "negative_cosine", "same_class_negatives"} < set(rows[2])
    labels = np.concatenate([np.repeat(batch["label"], 2, axis=0) for batch in batches(3)])[-37:]
    order = (int(state.extra["queue"].pointer) + np.arange(37)) % 37
    np.testing.assert_array_equal(np.asarray(state.extra["queue"].labels)[order], labels)


def test_noise_is_no_key_in_what_is_logged():
    """Of 37 slots a step fills 16: random directions are negatives from the first step on, but neither filled nor of any age."""
    rows, _ = Run.of(moco(fill="noise")).go(4)
    assert rows[0]["loss"] > 0
    ages = [0, 1, (16 + 32) / 32, (16 + 32 + 5 * 3) / 37]
    np.testing.assert_allclose([row["key_age"] for row in rows], ages, rtol=1e-6)
    filled = [row["dictionary_filled"] for row in rows]
    np.testing.assert_allclose(filled, [0, 16 / 37, 32 / 37, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("queue, groups", {}),
        ("queue, groups", {"symmetric": True, "scale": 3.0}),
        ("end to end", {"bn": "groups"}),
        ("memory bank", {}),
        ("version 3", {"prediction": HeadSpec(layers=())}),
    ],
)
def test_the_trivial_loss_is_that_of_embeddings_that_are_all_equal(name, changes):
    """As a collapsed network has it, whose dictionary is full of its one direction."""
    method = moco(**MODES[name] | {"projection": WIDE} | changes)
    rng = np.random.default_rng(0)
    params = network(rng)
    stats = {"backbone": {"passes": jnp.zeros((), jnp.int32)}}
    extra = method.init_extra({"params": params, "batch_stats": stats}, jax.random.key(0))
    image = rng.normal(size=(2, 2, 3))
    z = unit(image.ravel() @ np.asarray(params["backbone"]["w"]))

    def full(held, rows):
        filled = {
            rows: jnp.broadcast_to(jnp.asarray(z, jnp.float32), getattr(held, rows).shape),
            "valid": jnp.ones_like(held.valid),
        }
        return dataclasses.replace(held, **filled)

    if "queue" in extra:
        extra = {**extra, "queue": full(extra["queue"], "keys")}
    if "bank" in extra:
        extra = {"bank": full(extra["bank"], "rows")}
    images = jnp.broadcast_to(jnp.asarray(image), (6, len(method.views.views), 2, 2, 3))
    batch = {"label": np.zeros((6, 2), np.int32), "index": np.arange(6, dtype=np.int32)}
    out = method.loss(apply, params, stats, extra, batch, Views(images, {}), jax.random.key(0))
    assert out.loss > 1
    np.testing.assert_allclose(method.trivial_loss(6), out.loss, rtol=1e-5)
    assert out.metrics["contrastive_top1"] == 0


def test_the_momentum_rises_along_a_cosine():
    method = moco(momentum_schedule="cosine", momentum=0.9, total_steps=100)
    m = [float(method.key_momentum(jnp.asarray(step))) for step in (0, 50, 100, 120)]
    np.testing.assert_allclose(m, [0.9, 0.95, 1, 1], rtol=1e-6)
    with pytest.raises(ValueError, match="the length of the training is not known"):
        moco(momentum_schedule="cosine").key_momentum(jnp.asarray(0))


def test_a_run_tells_the_method_its_size():
    c = config_lib.base("moco", presets.moco_cifar(8), mechanism="memory_bank", bn="global")
    c.views.views, c.batch_size, c.epochs = ({},), 10, 3.0
    config = config_lib.from_dict(c)
    with pytest.raises(ValueError, match="the number of images is not known"):
        config.build_method().init_extra(
            {"params": {"backbone": {"w": jnp.ones(1)}}, "batch_stats": {}}, jax.random.key(0)
        )
    method = config.for_run(EXAMPLES, 2).build_method()
    assert (method.examples, method.levels, method.total_steps) == (EXAMPLES, 2, 12)
    assert method.bn_groups == 1
    stored = config_lib.to_dict(config.for_run(EXAMPLES, 2))
    assert config_lib.from_dict(stored).build_method() == method


@pytest.mark.parametrize(
    ("changes", "remarks"),
    [
        ({}, []),
        ({"bank_momentum": 0.9}, ["bank_momentum=0.9 does nothing with mechanism='queue'"]),
        ({**MODES["memory bank"], "momentum": 0.5}, ["momentum=0.5 does", "queue_size=37: 61% of"]),
        ({**MODES["memory bank"], "momentum": 0.999, "queue_size": 10}, []),
        (
            {**MODES["end to end"], "momentum": 0.999, "fill": "noise"},
            ["queue_size=37 does", "fill='noise' does"],
        ),
        ({**MODES["version 3"], "queue_size": 65536}, []),
        ({"examples": 149}, []),
        ({"examples": 148}, ["queue_size=37: the queue holds keys of 25% of the 148 images"]),
        (
            {"examples": 74, "symmetric": True},
            ["queue_size=37: the queue holds keys of 25% of the 74"],
        ),
        ({"examples": 10}, ["queue_size=37: the queue holds keys of 100% of the 10 images"]),
    ],
)
def test_what_does_nothing_and_what_is_too_large_is_remarked(changes, remarks):
    found = method_remarks(moco(**changes))
    assert len(found) == len(remarks)
    for line, start in zip(found, remarks, strict=True):
        assert line.startswith(f"method.{start}")


def test_the_queue_of_supcon_may_be_large():
    """Older keys of an image are positives there; the settings of a bank do nothing."""
    views = moco().views
    method = SupConMoCo(views, examples=10, bn_groups=4, projection=WIDE, bank_momentum=0.1)
    assert method_remarks(method) == (
        "method.bank_momentum=0.1 does nothing with mechanism='queue'",
    )


def test_a_bank_draws_the_own_row_as_often_as_is_said():
    """1 - (1 - 1/M)^K, as in the code of Wu et al.: all rows can be drawn."""
    bank = Bank.empty(40, 3, jax.random.key(0))
    drawn = jax.vmap(lambda key: bank.draw(key, 37))(jax.random.split(jax.random.key(1), 2000))
    own = np.mean([(np.asarray(drawn) == row).any(1).mean() for row in range(40)])
    np.testing.assert_allclose(own, 1 - (39 / 40) ** 37, atol=0.005)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mechanism": "magic"}, r"method\.mechanism='magic': expected one of queue, batch"),
        ({"bn": "none"}, r"method\.bn='none': expected one of shuffle"),
        ({"fill": "zeros"}, r"method\.fill='zeros': expected one of mask, noise"),
        ({"momentum": 1.5}, r"method\.momentum=1\.5: expected a number from 0 to 1"),
        ({"temperature": 0.0}, r"method\.temperature=0\.0"),
        ({"queue_size": 0}, r"method\.queue_size=0"),
        ({"bn_groups": 1}, r"bn='shuffle' with model\.bn_groups=1, which is global"),
        ({"bn": "global"}, r"bn='global' with model\.bn_groups=4"),
        ({"mechanism": "end_to_end", "bn": "ema"}, "there is no key encoder"),
        ({"mechanism": "memory_bank", "symmetric": True}, "whose keys are no view"),
        ({"projection": HeadSpec(layers=())}, "expected its width as the last number"),
        ({"projection": HeadSpec(layers=(8, -1))}, "expected its width as the last number"),
    ],
)
def test_bad_values(changes, message):
    with pytest.raises(ValueError, match=message):
        moco(**changes)


def test_the_number_of_views_is_checked():
    two = moco().views
    with pytest.raises(ValueError, match=r"'memory_bank' with 2 view\(s\).*expected 1"):
        type(moco())(two, mechanism="memory_bank")
    assert len(moco(mechanism="memory_bank").views.views) == 1
