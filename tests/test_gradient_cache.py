"""A step in micro-batches is the step in one shot, in less memory."""

import dataclasses
import functools

import collectives
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_train_step as one_shot
from flax import linen

from jaxcl import config as config_lib
from jaxcl import losses, models, optim
from jaxcl import mesh as mesh_lib
from jaxcl.data import LabelTree
from jaxcl.methods import LossOut, SimCLR
from jaxcl.models import BackboneConfig, HeadSpec, gradient_cache, vit
from jaxcl.models.resnet import DEPTHS
from jaxcl.plan import parse
from jaxcl.plan.devices import devices as plan_devices
from jaxcl.state import make_init, make_train_step
from jaxcl.views import presets

DEPTHS[6] = ((1, 0, 0, 1), False)  # two segments, of three and two BatchNorms in a row
TINY = BackboneConfig("resnet6", 1 / 32, "cifar", zero_init_residual=False)


def tiny(dtype="float32", **changes):
    """SimCLR with few operations to compile; a step of plain gradient descent changes the parameters by the gradient."""
    c = config_lib.base("simclr", presets.crop_flip(8, views=2))
    c.name, c.steps, c.batch_size = "tiny", 40, 32
    c.model.name, c.model.width, c.model.stem = TINY.name, TINY.width, TINY.stem
    c.model.zero_init_residual, c.model.dtype = False, dtype
    c.method.projection.layers = (16, 8)
    c.optim.name, c.optim.base_lr, c.optim.momentum, c.optim.weight_decay = "sgd", 1.0, 0.0, 0.0
    c.optim.scaling, c.optim.schedule, c.optim.warmup_epochs = "none", "constant", 0.0
    c.update_from_flattened_dict(changes)
    return config_lib.from_dict(c)


@dataclasses.dataclass(frozen=True)
class Teacher(SimCLR):
    """Embeddings of one view agree with those of the other by a slow copy of the network: two passes, one of them trained."""

    def init_extra(self, variables, key):
        shifted = jax.tree.map(lambda p: 0.9 * p + 0.01, variables["params"])
        return {"params": shifted, "batch_stats": variables["batch_stats"]}

    def loss(self, apply, params, batch_stats, extra, batch, views, key):
        def z(params, stats, view):
            (_, heads), stats = apply(params, stats, views.images[:, view], True, key)
            return heads["projection"][-1], stats

        z_trained, batch_stats = z(params, batch_stats, 0)
        z_slow, slow_stats = z(extra["params"], extra["batch_stats"], 1)
        pairs = jnp.stack([z_trained, jax.lax.stop_gradient(z_slow)], axis=1)
        loss = losses.nt_xent(pairs, 0.5)
        return LossOut(loss, batch_stats, slow_stats, {}, jax.lax.stop_gradient(pairs))

    def after_update(self, extra, params, carry, step):
        old, new = extra["params"], {part: params[part] for part in extra["params"]}
        slow = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, old, new)
        return {"params": slow, "batch_stats": carry}


def compiled_step(config, method, micro_batch, devices):
    """(state, batch, compiled step), for any method and in micro-batches."""
    mesh = mesh_lib.make_mesh(jax.devices()[:devices])
    model = models.build(config.model, method.heads)
    schedule = optim.make_schedule(config.optim, config.steps, 10, config.batch_size)
    shape = method.views.output_shape((10, 10, 3))
    params = {
        **jax.eval_shape(lambda: model.init(jax.random.key(0), shape))["params"],
        "method": jax.eval_shape(method.init_params, jax.random.key(0)),
    }
    tx = optim.make_optimizer(config.optim, params, schedule)
    state = jax.jit(make_init(method, model, tx, shape))(jax.random.key(0))
    shardings = mesh_lib.state_shardings(mesh, state)
    state = jax.device_put(state, shardings)
    batch = next(one_shot.batches(config, 1))
    of_image = np.arange(config.batch_size)[:, None] // 2
    batch["label"] = (of_image % (2, 4)).astype(np.int32)
    batch = mesh_lib.to_global(mesh, batch)
    step = jax.jit(
        make_train_step(method, model, tx, schedule, micro_batch),
        in_shardings=(shardings, mesh_lib.batch_sharding(mesh)),
        out_shardings=(shardings, mesh_lib.replicated(mesh)),
    )
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # as in a run: rows are shuffled by it
        return state, batch, step.lower(state, batch).compile()


def after_one_step(state, batch, step):
    """(loss, change of the parameters, which is the gradient, statistics, extra)."""
    new, metrics = step(state, batch)
    change = jax.tree.map(jnp.subtract, state.params, new.params)
    return jax.device_get((metrics["loss"], change, new.batch_stats, new.extra))


def assert_equal_steps(step, expected, tolerance):
    np.testing.assert_allclose(step[0], expected[0], rtol=tolerance)
    for ours, theirs in zip(step[1:], expected[1:], strict=True):
        if jax.tree.leaves(theirs):
            assert one_shot.relative(ours, theirs) <= tolerance


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 16])
def test_simclr_in_micro_batches_is_simclr_and_only_embeddings_are_gathered(groups):
    """One shot on one device, two micro-batches on eight, in float32."""
    config = tiny(**{"model.bn_groups": groups})
    method = config.build_method()
    state, batch, step = compiled_step(config, method, 16, 8)
    expected = after_one_step(*compiled_step(config, method, 0, 1))
    assert_equal_steps(after_one_step(state, batch, step), expected, 1e-5)

    embeddings = 32 * 2 * 8  # B * V * D
    moved = [array for array in collectives.sent(step.as_text()) if array.kind != "all-reduce"]
    assert moved
    assert all(array.size <= embeddings for array in moved), moved

    # What is not finite is left out as ever.
    broken = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), state.params)
    bad = dataclasses.replace(state, params=jax.device_put(broken, state.step.sharding))
    after, metrics = step(bad, batch)
    assert int(metrics["rejected"]) == int(after.rejected) == 1
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats, bad.batch_stats)


@pytest.mark.slow
def test_a_method_with_several_passes_by_different_parameters():
    """In float64, where an error of a formula cannot hide behind rounding."""
    with jax.enable_x64(True):
        config = tiny("float64")
        simclr = config.build_method()
        method = Teacher(simclr.views, simclr.projection)
        expected = after_one_step(*compiled_step(config, method, 0, 1))
        assert np.isfinite(expected[0])
        assert_equal_steps(after_one_step(*compiled_step(config, method, 8, 1)), expected, 1e-11)


# An empty queue would give MoCo nothing to tell apart.
KEYS = {
    "method.queue_size": 40,
    "method.fill": "noise",
    "method.momentum": 0.9,
    "model.bn_groups": 8,
}
REAL = {
    "simclr": {},
    "simclr, vit": {
        "model.name": "vit_t4",
        "model.stem": "patches",
        "model.width": 1.0,
        "optim.excluded": (),
        "optim.decayed": (".*",),
    },
    "moco": KEYS,
    "looc": KEYS,
    "supcon": {},
    "supcon_moco": KEYS,
    "hierarchical": {"method.form": "paper"},
    "metric": {
        "method.objective": "margin",
        "method.learn_beta": "class",
        "method.memory_size": 40,
    },
    "similarity": {},
    "supervised": {},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "devices"),
    # Over devices those whose keys are shuffled: `split` and `join` deal out rows that lie on other devices.
    [*((name, 1) for name in REAL), ("moco", 2), ("looc", 4)],
)
def test_every_method_in_micro_batches_is_itself(name, devices, monkeypatch):
    """In float64: a loss, its gradients, statistics, and what the method keeps for the next step."""
    monkeypatch.setitem(vit.SIZES, "t", (16, 1, 2))
    method = name.partition(",")[0]
    c = config_lib.base(method, presets.crop_flip(8, views=1 if method == "supervised" else 2))
    if method == "looc":
        views = presets.leave_one_out(presets.crop_flip(8), {"flip": ("flip",)})
        c = config_lib.base(method, views)
    c.name, c.steps, c.batch_size = "tiny", 40, 32
    c.model.name, c.model.width, c.model.stem = TINY.name, TINY.width, TINY.stem
    c.model.zero_init_residual, c.model.dtype = False, "float64"
    if "projection" in c.method:
        c.method.projection.layers = (16, 8)
    c.optim.name, c.optim.base_lr, c.optim.momentum, c.optim.weight_decay = "sgd", 1.0, 0.0, 0.0
    c.optim.scaling, c.optim.schedule, c.optim.warmup_epochs = "none", "constant", 0.0
    c.update_from_flattened_dict(REAL[name])
    if devices > 1:  # groups that fit into the four parts of each device
        c.model.bn_groups = 4 * devices
    tree = LabelTree(("coarse", "fine"), (("a", "b"), ("c", "d", "e", "f")))
    with jax.enable_x64(True):
        config = config_lib.from_dict(c).for_labels(tree).for_run(32, 2)
        method = config.build_method()
        expected = after_one_step(*compiled_step(config, method, 0, 1))
        assert np.isfinite(expected[0])
        assert (
            np.linalg.norm(np.concatenate([x.ravel() for x in jax.tree.leaves(expected[1])])) > 1e-3
        )
        parts = after_one_step(*compiled_step(config, method, 8, devices))
        assert_equal_steps(parts, expected, 1e-10)


@pytest.mark.optimised
@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_in_float32_parts_are_as_far_from_float64_as_one_shot_is(activation, monkeypatch):
    """Far only by ReLUs: rounding decides for those whose input is nearly 0. With a smooth function none is above 1e-5."""
    monkeypatch.setattr(linen, "relu", getattr(linen, activation))
    # A third of such batches has a ReLU of that kind.
    batches = 5 if activation == "relu" else 2
    rows = [np.random.default_rng(i).uniform(size=(64, 32, 32, 3)) for i in range(batches)]
    rows = [x.astype(np.float32) for x in rows]

    def gradients(dtype, pieces, variables):
        config = dataclasses.replace(TINY, width=1 / 8, bn_groups=4, dtype=dtype)
        model = models.build(config, {"z": HeadSpec((8,))})
        variables = variables or jax.device_get(model.init(jax.random.key(0), (32, 32, 3)))
        network = dataclasses.replace(model, pieces=pieces)

        def loss(params, stats, images):
            (_, heads), _ = network.apply(params, stats, images, True)
            return losses.nt_xent(heads["z"][-1].reshape(-1, 2, 8))

        args = (variables["params"], variables["batch_stats"])
        args = jax.tree.map(lambda p: p.astype(dtype), args)
        run = functools.partial(jax.jit(jax.grad(loss)), *args)
        return [jax.device_get(run(x.astype(dtype))) for x in rows], variables

    one, variables = gradients("float32", 1, None)
    parts, _ = gradients("float32", 4, variables)
    with jax.enable_x64(True):
        exact, _ = gradients("float64", 1, variables)
    off = np.array(
        [
            [one_shot.relative(g, e) for g, e in zip(found, exact, strict=True)]
            for found in (one, parts)
        ]
    )
    if activation == "silu":
        assert off.max() <= 1e-5
        return
    assert off[0].max() > 5e-5  # of one shot
    assert 1 / 3 < np.exp(np.log(off[1] / off[0]).mean()) < 3


def test_the_gradient_reaches_the_images():
    """Rematerialised, too."""
    with jax.enable_x64(True):
        config = dataclasses.replace(TINY, dtype="float64")
        model = models.build(config, {"z": HeadSpec((4,))})
        variables = model.init(jax.random.key(0), (4, 4, 3))
        images = np.random.default_rng(0).uniform(size=(16, 4, 4, 3))

        def gradient(model):
            def value(params, images):
                (h, heads), stats = model.apply(params, variables["batch_stats"], images, True)
                return jnp.sin(3 * h).sum() + (heads["z"][-1] ** 3).sum(), stats

            return jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(
                variables["params"], images
            )

        parts = models.build(dataclasses.replace(config, remat=True), {"z": HeadSpec((4,))})
        parts = dataclasses.replace(parts, pieces=4)
        assert one_shot.relative(gradient(parts), gradient(model)) <= 1e-12


@pytest.mark.parametrize("kind", [("resnet6", "cifar", False), ("resnet7", "resnet_d", True)])
def test_statistics_are_found_after_as_many_passes_as_norms_lie_in_a_row(kind, monkeypatch):
    monkeypatch.setitem(DEPTHS, 7, ((1, 0, 0, 1), True))
    name, stem, selective_kernels = kind
    # A residual branch that begins with zero would hide what lies in it.
    config = BackboneConfig(name, 1 / 32, stem, selective_kernels, zero_init_residual=False)
    model = models.build(config, {})
    variables = model.init(jax.random.key(0), (8, 8, 3))
    params, start = (variables[kind]["backbone"] for kind in ("params", "batch_stats"))
    images = np.random.default_rng(0).uniform(size=(8, 8, 8, 3)).astype(np.float32)
    names = tuple(name for segment in model.backbone.segments for name in segment)
    assert set(names) == set(params)

    @jax.jit
    def sweep(statistics):
        return gradient_cache.backbone_segment(model.backbone, names, params, statistics, images)[1]

    history = [start]
    while len(history) < 2 or one_shot.relative(history[-1], history[-2]) > 0:
        history.append(jax.device_get(sweep(history[-1])))
    assert len(history) - 2 == model.backbone.norms_in_a_row(names)


def test_evaluation_mode_in_micro_batches():
    model = models.build(TINY, {})
    variables = model.init(jax.random.key(0), (4, 4, 3))
    images = np.random.default_rng(0).uniform(size=(6, 4, 4, 3)).astype(np.float32)
    args = variables["params"], variables["batch_stats"], images, False
    (h, _), _ = model.apply(*args)
    (parts, _), stats = dataclasses.replace(model, pieces=3).apply(*args)
    np.testing.assert_allclose(parts, h, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])


@pytest.mark.parametrize("block", [1, 2, 3])
def test_rows_are_dealt_out_and_put_back(block):
    x = np.arange(24 * 5).reshape(24, 5)
    parts = gradient_cache.split(jnp.asarray(x), 4, block)
    for piece in range(4):
        rows = [r for r in range(24) if r // block % 4 == piece]
        np.testing.assert_array_equal(parts[piece], x[rows])
    np.testing.assert_array_equal(gradient_cache.join(parts, block), x)


def temporaries(config, images, pieces=1, devices=None):
    """Compiled temporary memory of a network's gradient on the images, in bytes; nothing is run."""
    model = dataclasses.replace(models.build(config, {}), pieces=pieces)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images.shape[1:]))

    def value(params, stats, images):
        (h, _), stats = model.apply(params, stats, images, True)
        return jnp.square(h).sum(), stats

    mesh = mesh_lib.make_mesh(devices or jax.devices()[:1])
    gradient = jax.jit(jax.grad(value, has_aux=True), in_shardings=3 * (mesh_lib.replicated(mesh),))
    compiled = gradient.lower(variables["params"], variables["batch_stats"], images).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory():
    images = jax.ShapeDtypeStruct((512, 16, 16, 3), np.float32)
    config = dataclasses.replace(TINY, width=1 / 8, bn_groups=16)
    assert temporaries(config, images, 16) < temporaries(config, images) / 8


@pytest.mark.slow
def test_memory_of_a_narrow_resnet18():
    images = jax.ShapeDtypeStruct((1024, 32, 32, 3), np.float32)
    config = BackboneConfig("resnet18", 0.25, "cifar")
    one = temporaries(config, images)
    assert temporaries(config, images, 16) < one / 8
    assert temporaries(dataclasses.replace(config, bn_groups=16), images, 16) < one / 8


@pytest.mark.optimised
@pytest.mark.slow
def test_rematerialisation_saves_memory_on_a_tpu(monkeypatch):
    """Not on CPUs, where XLA leaves the kernels' gradients to the end, and with them all that is computed again."""
    pytest.importorskip("libtpu", reason="compiling for TPU needs the libtpu wheel")
    monkeypatch.setitem(DEPTHS, 10, ((1, 1, 1, 1), False))
    devices = plan_devices(parse("v5e:2x2"), 600.0, print)[:1]
    images = jax.ShapeDtypeStruct((256, 32, 32, 3), np.float32)
    config = BackboneConfig("resnet10", 0.5, "cifar")
    one = temporaries(config, images, devices=devices)
    again = temporaries(dataclasses.replace(config, remat=True), images, devices=devices)
    assert again < 0.8 * one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((256, 48, 1), r"micro_batch=48: batch_size=256 .*; choose 32 or 64"),
        ((256, 512, 1), r"micro_batch=512: expected 0 .* to batch_size=256"),
        ((256, -1, 1), r"micro_batch=-1: expected 0"),
        ((256, 4, 1, 8), r"micro_batch=4: .* over 8 devices; choose 8"),
        ((7, 2, 1), r"micro_batch=2: .*; choose 1 or 7"),
        ((256, 16, 8), r"bn_groups=8 groups do not fit.*choose micro_batch=32, bn_groups a multiple of 16"),
        ((256, 32, 8, 8), r"on 8 devices: choose micro_batch=256, bn_groups a multiple of 64, or bn_groups=1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error_that_says_what_does(arguments, message):
    with pytest.raises(ValueError, match=message):
        gradient_cache.count_pieces(*arguments)


def test_what_fits():
    for pieces, *arguments in (
        (1, 256, 0, 3),
        (1, 256, 256, 3),
        (8, 256, 32, 8),
        (8, 256, 32, 64, 8),
        (32, 256, 8, 1, 8),
    ):
        assert gradient_cache.count_pieces(*arguments) == pieces
    config = tiny(batch_size=32, micro_batch=8)
    assert config.micro_batch == 8
    with pytest.raises(ValueError, match="micro_batch=5"):
        tiny(batch_size=32, micro_batch=5)
    vit = {"model.name": "vit_t4", "model.stem": "patches", "model.width": 1.0}
    tiny(batch_size=32, micro_batch=8, **vit, **{"model.bn_groups": 2})


def test_rows_that_do_not_fit_are_an_error():
    model = models.build(dataclasses.replace(TINY, bn_groups=2), {})
    variables = model.init(jax.random.key(0), (4, 4, 3))
    args = variables["params"], variables["batch_stats"], jnp.zeros((8, 4, 4, 3)), True
    with pytest.raises(ValueError, match=r"8 rows do not divide into 3 micro-batches"):
        dataclasses.replace(model, pieces=3).apply(*args)
    with pytest.raises(ValueError, match=r"groups=2 groups do not fit into 4 micro-batches"):
        dataclasses.replace(model, pieces=4).apply(*args)
