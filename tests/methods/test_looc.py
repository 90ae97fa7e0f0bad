"""LooC step by step against NumPy: views, heads, queues and the key encoder; MoCo where there is no factor; and its probes."""

import collections
import dataclasses
import io
import json
import math
import pathlib
import re
import sys

import collectives
import jax
import jax.numpy as jnp
import moco_network
import numpy as np
import optax
import pytest
import tiny_network
from moco_network import Run, moco
from PIL import Image
from scipy.io import savemat

from jaxcl import checkpoint, data, evaluators, metrics, models, optim, probe, report, train
from jaxcl import config as config_lib
from jaxcl.methods import LooC
from jaxcl.methods.base import remarks as method_remarks
from jaxcl.models import HeadSpec
from jaxcl.state import make_init, make_train_step
from jaxcl.views import EvalView, Views, ViewsConfig, build_program, presets

OPS = {"flip": {}, "rotate": {}, "gray": {"prob": 0.5}}
FACTORS = {"turn": ("rotate",), "colour": ("gray",)}
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
WIDE = HeadSpec(layers=(3,))
FEATURES = 2 * 2 * 3
PROBES = ("rotation", "factor", "fewshot", "corruption", "knn")
HEADS = ("projection_0", "projection_1", "projection_2")


def program(factors=FACTORS):
    return build_program(
        ViewsConfig(**presets.leave_one_out({"order": tuple(OPS), "ops": OPS}, factors))
    )


def looc(views=None, **changes):
    settings = {
        "bn_groups": 4,
        "levels": moco_network.LEVELS,
        "projection": moco_network.PROJECTION,
        "queue_size": 37,
        "momentum": 0.9,
    }
    return LooC(program() if views is None else views, **(settings | changes))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# ---------------------------------------------------------------------------------------------
# On a linear network, by hand
# ---------------------------------------------------------------------------------------------


class Linear:
    """A linear network with three heads, which notes its passes."""

    def __init__(self):
        self.passes = []

    def __call__(self, params, stats, images, train, key, heads=None):
        self.passes.append(("mine" in params, train, heads))
        h = images.reshape(len(images), -1) @ params["backbone"]["w"]
        out = {name: (h @ params[f"head_{name}"]["w"],) for name in HEADS}
        return (h, out), {"backbone": {"passes": stats["backbone"]["passes"] + 1}}


def network(rng):
    heads = {f"head_projection_{n}": {"w": jnp.asarray(rng.normal(size=(4, 3)))} for n in range(3)}
    return {"backbone": {"w": jnp.asarray(rng.normal(size=(FEATURES, 4)))}, **heads, "mine": {}}


def embed(params, x):
    """z[B, V, H, D] of images[B, V, F], normalised."""
    h = x @ np.asarray(params["backbone"]["w"])
    z = [h @ np.asarray(params[f"head_projection_{n}"]["w"]) for n in range(3)]
    return unit(np.stack(z, 2))


def expected_loss(q, k, queues, tau, head0, same_image):
    total = []
    for h in range(3):
        for b in range(len(q)):
            own, queue = k[b, :, h] @ q[b, h] / tau, [x @ q[b, h] / tau for x in queues[h]]
            if h == 0:
                ps = range(3) if head0 == "all" else [0]
                rows = [np.array([own[p], *queue]) for p in ps]
            else:
                others = np.delete(own, h) if same_image else []
                rows = [np.array([own[h], *others, *queue])]
            total.append(np.mean([np.log(np.exp(row - row[0]).sum()) for row in rows]))
    return np.mean(total)


@pytest.mark.parametrize(
    ("head0", "enqueue", "same_image"),
    [("k0", "k0", True), ("all", "own", False)],
)
def test_three_steps(head0, enqueue, same_image):
    """Look-up before the step's keys enter; each head has its own queue; all heads of the key encoder move."""
    m, tau, size = 0.75, 0.3, 7
    method = looc(
        projection=WIDE,
        queue_size=size,
        momentum=m,
        temperature=tau,
        bn="global",
        bn_groups=1,
        head0=head0,
        enqueue=enqueue,
        same_image_negatives=same_image,
    )
    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        params, stats = network(rng), {"backbone": {"passes": jnp.zeros((), jnp.int32)}}
        extra = method.init_extra({"params": params, "batch_stats": stats}, jax.random.key(0))
        average = {name: params[name] for name in params if name != "mine"}
        queues = [collections.deque(maxlen=size) for _ in range(3)]
        apply = Linear()

        @jax.jit
        def loss(params, stats, extra, batch, images, key):
            return method.loss(apply, params, stats, extra, batch, Views(images, {}), key)

        update = jax.jit(method.after_update)
        for step in range(3):
            x = rng.normal(size=(4, 4, FEATURES))
            batch = {"label": jnp.asarray(rng.integers(0, 4, (4, 2)), jnp.int32)}
            images = jnp.asarray(x.reshape(4, 4, 2, 2, 3))
            out = loss(params, stats, extra, batch, images, jax.random.key(step))
            # One pass of the trained network, n + 1 of the key encoder, through all its heads.
            assert apply.passes == [(True, True, None)] + [(False, True, HEADS)] * 3
            for name, tree in average.items():
                np.testing.assert_allclose(extra["key_params"][name]["w"], tree["w"], rtol=1e-12)
            assert set(extra["key_params"]) == set(average)

            z, keys = embed(params, x), embed(average, x)
            q, k = z[:, 0], keys[:, 1:]
            expected = expected_loss(q, k, queues, tau, head0, same_image)
            np.testing.assert_allclose(out.loss, expected, rtol=1e-10)
            assert out.batch_stats["backbone"]["passes"] == step + 1
            assert out.carry["stats"]["backbone"]["passes"] == 3 * (step + 1)
            for h in range(3):
                queues[h].extend(k[:, 0 if enqueue == "k0" else h, h])

            stats, before, params = out.batch_stats, params, network(rng)
            extra = update(extra, params, out.carry, jnp.asarray(step + 1))
            average = {
                name: {"w": m * np.asarray(tree["w"]) + (1 - m) * np.asarray(params[name]["w"])}
                for name, tree in average.items()
            }
            assert not np.array_equal(before["backbone"]["w"], params["backbone"]["w"])
            held = extra["queues"]
            assert held.keys.shape == (3, size, 3)
            for h in range(3):
                order = (int(held.pointer[h]) + np.arange(size)) % size
                order = order[np.asarray(held.valid[h])[order]]
                np.testing.assert_allclose(held.keys[h][order], list(queues[h]), rtol=1e-12)
        # What the spaces hold of the same images differs.
        assert np.abs(held.keys[0] - held.keys[1]).max() > 0.1
        assert np.abs(held.keys[1] - held.keys[2]).max() > 0.1


def test_no_gradient_reaches_keys_or_queues():
    method = looc(projection=WIDE, bn="global", bn_groups=1, fill="noise", queue_size=5)
    params, stats = network(np.random.default_rng(0)), {"backbone": {"passes": jnp.zeros(())}}
    extra = method.init_extra({"params": params, "batch_stats": stats}, jax.random.key(0))
    assert np.abs(extra["queues"].keys[0] - extra["queues"].keys[1]).max() > 0.1
    batch = {"label": jnp.zeros((4, 2), jnp.int32)}

    def loss(images, encoder, keys):
        held = extra | {
            "key_params": encoder,
            "queues": dataclasses.replace(extra["queues"], keys=keys),
        }
        views, key = Views(images, {}), jax.random.key(0)
        return method.loss(Linear(), params, stats, held, batch, views, key).loss

    images = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4, 2, 2, 3)))
    given = images, extra["key_params"], extra["queues"].keys
    of_images, of_encoder, of_queues = jax.jit(jax.grad(loss, (0, 1, 2)))(*given)
    assert np.abs(of_images[:, 0]).max() > 1e-3
    assert not np.any(of_images[:, 1:])
    assert not any(np.any(x) for x in jax.tree.leaves((of_encoder, of_queues)))


# ---------------------------------------------------------------------------------------------
# In the train step
# ---------------------------------------------------------------------------------------------


def renamed(tree):
    """Parameters of LooC's one head under the name of MoCo's."""
    return {name.replace("projection_0", "projection"): x for name, x in tree.items()}


def equal(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def test_without_factors_it_is_moco():
    """The same losses and, through gradients, optimizer, averages and queue, the same state after three steps."""
    views = program({})
    assert len(views.views) == 2
    rows, state = Run.of(looc(views, temperature=0.2)).go(3)
    reference = type(moco())(
        views,
        bn_groups=4,
        levels=moco_network.LEVELS,
        projection=moco_network.PROJECTION,
        temperature=0.2,
        queue_size=37,
        momentum=0.9,
    )
    expected_rows, expected = Run.of(reference).go(3)
    losses = [[float(row["loss"]) for row in of] for of in (rows, expected_rows)]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    assert losses[0][2] > 1
    np.testing.assert_allclose(
        [row["grad_norm"] for row in rows], [row["grad_norm"] for row in expected_rows], rtol=1e-5
    )
    for ours, theirs in (
        (state.params, expected.params),
        (state.batch_stats, expected.batch_stats),
        (state.extra["key_params"], expected.extra["key_params"]),
        (state.extra["key_stats"], expected.extra["key_stats"]),
    ):
        equal(renamed(ours), theirs, rtol=1e-5, atol=1e-6)
    queue = jax.tree.map(lambda x: x[0], state.extra["queues"])
    equal(queue, expected.extra["queue"], rtol=1e-5, atol=1e-6)
    assert looc(views).trivial_loss(8) == pytest.approx(math.log(38))


def test_one_pass_has_a_gradient_and_one_for_each_key_has_none():
    """Read in the compiled program of the whole step: a network of one convolution has n + 2 of them, and one gradient."""
    method = looc(bn="global", bn_groups=1)
    model, tx = tiny_network.build(heads=method.heads), optax.sgd(0.1)
    init = make_init(method, model, tx, (6, 6, 3))
    step = make_train_step(method, model, tx, optax.constant_schedule(0.1))
    state = jax.eval_shape(init, jax.random.key(0))
    batch = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, next(moco_network.batches(1))))
    text = jax.jit(step).lower(state, batch).compile().as_text()
    assert len(re.findall(r"= \S+ convolution\(", text)) == 4 + 1
    assert set(state.extra["key_params"]) == {"backbone", *(f"head_{h}" for h in method.heads)}


@pytest.mark.slow
def test_no_image_travels_but_for_the_shuffle():
    """Activations have at least side x side numbers a row, embeddings 5: what is sent is told by its size."""
    rows = 64
    method = looc(bn_groups=8, queue_size=5000)
    run = Run.of(method, 8)
    batch = next(moco_network.batches(1, rows))
    batch = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, batch))
    largest = {}
    for array in collectives.sent(run.step.lower(run.state, batch).compile().as_text()):
        largest[array.kind] = max(largest.get(array.kind, 0), array.size)
    image, keys = 6 * 6 * 3, rows * len(HEADS) * 5
    # A key of each image enters each queue; images go to other groups in 8 equal parts, and their embeddings come back.
    assert largest["all-gather"] <= keys
    assert largest.get("collective-permute", 0) <= keys
    assert "reduce-scatter" not in largest
    assert largest["all-reduce"] < 5000 / 2
    own = rows // 8 * (image + -image % 8)  # in one array, or one for each device
    assert largest["all-to-all"] in (own, own // 8)


def floats(tree):
    leaves = [np.ravel(x) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return np.concatenate(leaves)


@pytest.mark.slow
def test_a_step_on_eight_devices_is_that_on_one():
    method = looc(fill="noise")
    results = []
    for count in (1, 8):
        run = Run.of(method, count)
        start = jax.device_get(run.state.params)
        (row,), state = run.go(1)
        moved = jax.tree.map(np.subtract, start, jax.device_get(state.params))
        results.append((row["loss"], floats(moved)))
    (loss, gradient), (other, other_gradient) = results
    np.testing.assert_allclose(other, loss, rtol=1e-6)
    assert np.linalg.norm(gradient) > 1e-3
    assert np.linalg.norm(other_gradient - gradient) <= 1e-5 * np.linalg.norm(gradient)


@pytest.mark.slow
def test_float64_steps_on_any_number_of_devices():
    method = looc(enqueue="own")
    with jax.enable_x64(True):
        found = []
        for devices in (1, 2, 4, 8):
            rows, state = Run.of(method, devices, jnp.float64).go(3)
            kept = floats((state.params, state.batch_stats, state.extra))
            found.append((np.array([row["loss"] for row in rows]), kept))
        (loss, kept), *others = found
        assert loss.dtype == np.float64
        assert loss[2] > 0
        for other, other_kept in others:
            np.testing.assert_allclose(other, loss, rtol=1e-10, atol=1e-12)
            assert np.linalg.norm(other_kept - kept) <= 1e-10 * np.linalg.norm(kept)


def test_a_run_that_is_resumed_in_mid_queue_is_bit_equal(tmp_path):
    """37 slots, 16 keys a step: the queues have wrapped around when they are saved, and differ."""
    method = looc(fill="noise")
    rows, whole = Run.of(method).go(5)
    run = Run.of(method)
    _, half = run.go(3)
    assert 0 < int(half.extra["queues"].pointer[0]) < 37
    held = np.asarray(half.extra["queues"].keys)
    assert min(np.abs(held[a] - held[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 0.1
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
        assert ours == theirs
    for (path, a), b in zip(jax.tree.leaves_with_path(end), jax.tree.leaves(whole), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
    # What is logged: MoCo's of head 0, and of each factor whether its head tells it.
    told = {
        f"own_key_{what}_{factor}" for what in ("top1", "margin") for factor in ("rotate", "gray")
    }
    lost = {"loss_invariant", "loss_rotate", "loss_gray"}
    assert {*told, *lost, "contrastive_top1", "key_age", "same_class_negatives"} <= set(rows[0])
    mean = np.mean([rows[0][name] for name in lost])
    np.testing.assert_allclose(mean, rows[0]["loss"], rtol=1e-6)


# ---------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------


def test_factors_and_heads():
    method = looc(program({"turn": ("rotate",), "rest": ("flip", "gray")}))
    assert method.factors == ("", "rotate", "flip+gray")
    assert list(method.heads) == ["projection_0", "projection_1", "projection_2"]
    assert len(method.views.views) == 4
    expected = (math.log(38) + 2 * math.log(40)) / 3
    assert method.trivial_loss(8) == pytest.approx(expected)
    ablation = looc(same_image_negatives=False)
    assert ablation.trivial_loss(8) == pytest.approx(math.log(38))


def test_a_factor_is_called_the_same_whatever_the_order_of_its_ops():
    """From the file, from what is stored of it with sorted keys, and from ops that were named the other way round."""
    config = config_lib.from_dict(config_lib.load(f"{CONFIGS / 'looc_emoji.py'}:rotate,color"))
    stored = json.loads(json.dumps(config_lib.to_dict(config), sort_keys=True))
    assert list(stored["views"]["views"][3]["share"]) == ["gray", "jitter"]
    for each in (config, config_lib.from_dict(stored)):
        assert each.for_run(100, 3).build_method().factors == ("", "rotate", "jitter+gray")
    assert looc(program({"rest": ("gray", "flip")})).factors == ("", "flip+gray")


def test_queues_that_are_large_for_the_data_are_remarked():
    """Each head's queue has one key of an image; a run tells the method how many images there are."""
    assert method_remarks(looc(examples=149)) == ()
    for examples, share in ((148, "25%"), (10, "100%")):
        (line,) = method_remarks(looc(examples=examples))
        assert line.startswith(
            f"method.queue_size=37: the queue holds keys of {share} of the {examples} images"
        )
    assert method_remarks(looc()) == ()  # not known
    config = config_lib.from_dict(config_lib.load(CONFIGS / "looc_emoji.py"))
    (line,) = method_remarks(config.for_run(2000, 3).build_method())
    assert "queue_size=1024: the queue holds keys of 51% of the 2,000 images" in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head0": "k1"}, r"method\.head0='k1': expected one of k0, all"),
        ({"enqueue": "all"}, r"method\.enqueue='all': expected one of k0, own"),
        ({"fill": "zeros"}, r"method\.fill='zeros'"),
        ({"bn": "none"}, r"method\.bn='none'"),
        ({"bn_groups": 1}, r"bn='shuffle' with model\.bn_groups=1"),
        ({"bn": "global"}, r"bn='global' with model\.bn_groups=4"),
        ({"momentum": -0.1}, r"method\.momentum=-0\.1"),
        ({"momentum_schedule": "linear"}, r"method\.momentum_schedule='linear'"),
        ({"temperature": 0.0}, r"method\.temperature=0\.0"),
        ({"queue_size": 0}, r"method\.queue_size=0"),
        ({"projection": HeadSpec(layers=())}, "expected their width as the last number"),
    ],
)
def test_bad_values(changes, message):
    with pytest.raises(ValueError, match=message):
        looc(**changes)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (({},), r"views\.views has 1 view\(s\): LooC needs a query"),
        (({}, {"share": {"rotate": 0}}), r"views\.views\[1\] shares \['rotate'\]"),
        (({}, {}, {}), r"views\.views\[2\]\.share = \{\}: in LooC each further view"),
        (({}, {}, {"share": {"rotate": 1}}), r"views\.views\[2\]\.share = \{'rotate': 1\}"),
        (
            ({}, {}, {"share": {"rotate": 0}}, {"share": {"gray": 0, "rotate": 0}}),
            r"views\.views\[3\] and views\.views\[2\] share 'rotate'",
        ),
    ],
)
def test_bad_views(views, message):
    with pytest.raises(ValueError, match=message):
        looc(build_program(ViewsConfig(tuple(OPS), OPS, views)))


# ---------------------------------------------------------------------------------------------
# Probes of V and of all heads together
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A run of LooC on the emoji, as it is before its first step."""
    monkeypatch.setattr(models, "build", tiny_network.build)
    views = presets.leave_one_out(
        {
            "order": ("crop", "rotate", "gray"),
            "ops": {"crop": {"size": 16}, "rotate": {}, "gray": {}},
        },
        FACTORS,
    )
    c = config_lib.base("looc", views, queue_size=8, bn="global")
    c.name, c.steps, c.batch_size, c.method.projection.layers = "tiny", 4, 16, (12, 6)
    c.model.width, c.model.stem = 1 / 32, "cifar"
    c.evaluation.gallery, c.evaluation.validation, c.evaluation.test = "val", "val", ""
    c.evaluation.levels, c.evaluation.ks = ("category",), (1, 7)
    c.optim.warmup_epochs, c.mesh.compile_cache = 0.0, ""
    config = config_lib.from_dict(c)
    method = config.build_method()
    model = models.build(config.model, method.heads)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), (16, 16, 3)))["params"]
    schedule = optim.make_schedule(config.optim, 4, 1, 16)
    tx = optim.make_optimizer(config.optim, {**params, "method": {}}, schedule)
    state = jax.jit(make_init(method, model, tx, (16, 16, 3)))(jax.random.key(1))
    with checkpoint.Checkpoints(
        tmp_path / "checkpoints",
        config=config_lib.to_dict(config),
        content_id="x",
        log=lambda line: None,
    ) as saved:
        saved.save(4, state)
    return tmp_path


WIDTHS = {"h": 16, "heads:hidden": 3 * 12, "heads": 3 * 6}


@pytest.mark.parametrize(
    ("layer", "evaluations"),
    [
        ("heads", ("knn",)),
        pytest.param("h", PROBES, marks=pytest.mark.slow),
        pytest.param("heads:hidden", PROBES, marks=pytest.mark.slow),
    ],
)
def test_the_probe_takes_the_backbone_or_all_heads(workdir, monkeypatch, layer, evaluations):
    some = {k: evaluators.CORRUPTIONS[k] for k in ("impulse_noise",)}
    monkeypatch.setattr(sys.modules["jaxcl.evaluators.corruption"], "CORRUPTIONS", some)
    widths, features = set(), probe.Networks.features

    def noting(self, variables, source):
        found = features(self, variables, source)
        widths.add(found.h.shape[1])
        return found

    monkeypatch.setattr(probe.Networks, "features", noting)
    record = probe.probe(
        probe.Options(
            str(workdir),
            layer=layer,
            evaluations=evaluations,
            factors=("gray.on",) if "factor" in evaluations else (),
            train="val",
            test="val",
            levels=("category",),
            baselines=False,
        )
    )
    assert record["layer"] == layer
    assert widths == {WIDTHS[layer]}
    rows = {row["method"]: row for row in record["rows"]}
    if evaluations == PROBES:
        for name in ("rotation/accuracy", "factor/gray.on", "fewshot/5-shot", "corruption/mean"):
            assert 0 < rows[name]["accuracy"] <= 1
        assert rows["fewshot/5-shot"]["settings"]["trials"] == 10
        assert rows["fewshot/5-shot"]["settings"]["interval"] > 0
    assert 0 < rows["knn"]["accuracy"] <= 1


def test_all_spaces_at_once(workdir):
    """h and each head's output, as the probe has them one by one; and a picture of them."""
    spaces = probe.Spaces.open(str(workdir))
    assert list(spaces.networks) == ["h", *(f"z:{head}" for head in HEADS)]
    found = spaces.features(spaces.batches("val"))
    assert {name: f.h.shape[1] for name, f in found.items()} == {
        "h": 16,
        **{f"z:{head}": 6 for head in HEADS},
    }
    source = data.load(spaces.config.data, "val")
    images = EvalView(16)(source.images[:5] / np.float32(255))
    for name, network in spaces.networks.items():
        expected = jax.jit(network.encode)(spaces.variables, images)
        np.testing.assert_allclose(found[name].h[:5], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(found["z:projection_1"].h - found["z:projection_2"].h).max() > 1e-3

    some = {name: f.h[:30] for name, f in found.items()}
    picture = report.spaces_png(report.SpaceSheet(source.images[:30], some, (3, 20), 4), "LooC")
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    # All hidden layers side by side, and the network that the run started from.
    more = probe.Spaces.open(str(workdir), more=("heads:hidden",))
    assert list(more.networks) == [*spaces.networks, "heads:hidden"]
    few = [{"image": source.images[:5], "label": source.labels[:5]}]
    hidden = more.features(few)["heads:hidden"].h
    layer = evaluators.Layer.parse("heads:hidden", HEADS)
    model = models.build(more.config.model, more.config.build_method().heads)
    expected = jax.jit(layer.of(model).encode)(more.variables, images)
    assert hidden.shape == (5, 36)
    np.testing.assert_allclose(hidden, expected, rtol=1e-4, atol=1e-5)
    key = jax.random.split(jax.random.key(spaces.config.seed), 4)[0]
    first = jax.jit(lambda: model.init(key, (16, 16, 3)))()
    before = probe.Spaces.open(str(workdir), trained=False)
    jax.tree.map(np.testing.assert_array_equal, before.variables, first)
    assert np.abs(before.features(few)["h"].h - found["h"].h[:5]).max() > 1e-3

    with pytest.raises(ValueError, match="30 is not one of 30 images"):
        report.SpaceSheet(source.images[:30], some, (30,))
    with pytest.raises(ValueError, match="expected one or more queries"):
        report.SpaceSheet(source.images[:30], some, ())
    with pytest.raises(ValueError, match=r"must be \[29, F\]"):
        report.SpaceSheet(source.images[:29], some, (3,))


# ---------------------------------------------------------------------------------------------
# From a run to few-shot on data as they were published
# ---------------------------------------------------------------------------------------------


def write_flowers(root):
    """Two kinds of 8 x 8 pixels that differ in brightness: 10 images each for training, 2 for validation, 4 to test."""
    kinds = np.repeat([1, 2], 16)
    rng = np.random.default_rng(0)
    (root / "jpg").mkdir()
    for number, kind in enumerate(kinds, 1):
        pixels = rng.integers(0, 100, (8, 8, 3)) + 60 * kind
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
        (root / "jpg" / f"image_{number:05}.jpg").write_bytes(buffer.getvalue())
    savemat(root / "imagelabels.mat", {"labels": kinds[None].astype(np.uint8)})
    parts = {"trnid": slice(0, 10), "valid": slice(10, 12), "tstid": slice(12, 16)}
    numbers = np.arange(1, 33).reshape(2, 16)
    savemat(root / "setid.mat", {name: numbers[:, of].reshape(1, -1) for name, of in parts.items()})


@pytest.mark.parametrize("train_split", ["train", "trainval"])
def test_few_shot_on_flowers_as_published(workdir, tmp_path, capsys, train_split):
    """Ten images of a kind leave one draw of ten, which has no interval; with the validation images there are more."""
    folder = tmp_path / "flowers"
    folder.mkdir()
    write_flowers(folder)
    record = probe.probe(
        probe.parse(
            [
                f"--workdir={workdir}",
                "--eval=fewshot",
                f"--data=flowers:{folder}",
                f"--train={train_split}",
                "--no-baselines",
            ]
        )
    )
    assert record["data"]["name"] == "flowers"
    assert record["splits"]["test"] == "test"
    found = {row["method"]: row for row in record["rows"]}
    five, ten = (found[f"fewshot/{shots}-shot"] for shots in (5, 10))
    assert {row["level"] for row in (five, ten)} == {"flower"}
    assert (five["queries"], five["settings"]["trials"]) == (8, 10)
    assert "interval" in five["settings"]
    text = " ".join(capsys.readouterr().out.split())
    said = "10-shot flower: the classes have 10 examples each, so that there is one draw and no interval"
    if train_split == "train":
        assert (ten["settings"]["trials"], ten["settings"].get("interval")) == (1, None)
        assert said in text
    else:
        assert ten["settings"]["trials"] == 10
        assert ten["settings"]["interval"] >= 0
        assert said not in text


@pytest.mark.optimised
@pytest.mark.slow
@pytest.mark.parametrize("same_image", [True, False])
def test_a_run_learns_to_tell_the_factor_that_it_leaves_out(tmp_path, monkeypatch, same_image):
    """The small config by its file: its rotation head comes to find its own key among an image's two; chance is a half.

    Without the image's other keys as negatives it stays there (the ablation). Not with a long queue: most of its keys have
    another angle, and so it is worth knowing; with 256 instead of 8 both heads reach two thirds.
    """
    monkeypatch.setattr(models, "build", tiny_network.build)
    c = config_lib.load(f"{CONFIGS / 'looc_emoji.py'}:rotate,different")
    c.steps, c.batch_size, c.optim.base_lr, c.optim.warmup_steps = 240, 64, 1e-2, 4
    c.model.width = 1 / 32  # as tiny_network has it
    c.model.bn_groups, c.method.bn, c.method.queue_size = 1, "global", 8
    c.method.projection.layers, c.method.same_image_negatives = (32, 16), same_image
    c.evaluation.every, c.evaluation.test, c.evaluation.test_gallery = 0, "", ""
    c.evaluation.gallery, c.evaluation.validation, c.evaluation.extra = "", "", ()
    c.run.log_every, c.run.checkpoint_every, c.run.report = 1, 240, False
    c.mesh.cpu_devices, c.mesh.compile_cache = 0, ""
    result = train.train(config_lib.from_dict(c), str(tmp_path))
    assert (result["complete"], result["step"]) == (True, 240)
    rows = metrics.read_metrics(tmp_path)
    told = np.array([row["own_key_top1_rotate"] for row in rows if "own_key_top1_rotate" in row])
    assert len(told) == 240
    # A mean of 40 steps of 64 images has a standard error of 0.01.
    if same_image:
        assert told[-40:].mean() > max(told[:40].mean() + 0.05, 0.6)
    else:
        assert 0.45 < told[-40:].mean() < 0.6
