import dataclasses

import collectives
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcl.models import BackboneConfig, HeadSpec, build
from jaxcl.models.resnet import DEPTHS

DEPTHS[6] = ((1, 0, 0, 1), False)  # two blocks: what is tested here does not depend on more
TINY = BackboneConfig("resnet6", width=1 / 32, stem="cifar", zero_init_residual=False)
HEADS = {
    "projection": HeadSpec((-1, 4)),
    "plain": HeadSpec((3,), batch_norm=False),
    "none": HeadSpec(()),
}


def images(n=8, dtype=np.float32):
    return np.random.default_rng(0).uniform(size=(n, 8, 8, 3)).astype(dtype)


def made(config=TINY, heads=HEADS):
    model = build(config, heads)
    return model, model.init(jax.random.key(0), (8, 8, 3))


def run(model, v, x, train):
    return jax.jit(model.apply, static_argnums=3)(v["params"], v["batch_stats"], x, train, None)


def test_contract():
    model, v = made()
    assert set(v["params"]) == {"backbone", "head_projection", "head_plain"}
    assert set(v["batch_stats"]) == {"backbone", "head_projection"}
    (h, heads), stats = run(model, v, images(), True)
    assert h.shape == (8, model.feature_dim) == (8, 16)
    assert {k: tuple(o.shape for o in outs) for k, outs in heads.items()} == {
        "projection": ((8, 16), (8, 4)),
        "plain": ((8, 3),),
        "none": ((8, 16),),
    }
    assert jax.tree.structure(stats) == jax.tree.structure(v["batch_stats"])
    for new, old in zip(jax.tree.leaves(stats), jax.tree.leaves(v["batch_stats"]), strict=True):
        assert np.any(new != old)

    (h_eval, _), same = run(model, v, images(), False)
    jax.tree.map(np.testing.assert_array_equal, same, v["batch_stats"])
    assert np.abs(h_eval - h).max() > 1e-3
    backbone = {kind: {"backbone": v[kind]["backbone"]} for kind in v}
    encoded = jax.jit(model.encode)(backbone["params"], backbone["batch_stats"], images())
    np.testing.assert_allclose(encoded, h_eval, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "width", "dim"), [("resnet34", 0.5, 256), ("resnet50", 2, 4096)])
def test_feature_dim(name, width, dim):
    model = build(BackboneConfig(name=name, width=width), {})
    x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    v = jax.eval_shape(lambda key: model.init(key, (64, 64, 3)), jax.random.key(0))
    h = jax.eval_shape(model.encode, v["params"], v["batch_stats"], x)
    assert h.shape == (2, dim)
    assert model.feature_dim == dim


def test_parameters_ignore_the_image_size_and_heads_do_not_change_the_backbone():
    _, v = made()
    other = build(TINY, {}).init(jax.random.key(0), (12, 16, 3))
    assert jax.tree.map(jnp.shape, other["params"]["backbone"]) == jax.tree.map(
        jnp.shape, v["params"]["backbone"]
    )


def test_bfloat16_computes_low_and_returns_float32():
    config = dataclasses.replace(TINY, dtype="bfloat16")
    model, v = made(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(v)} == {jnp.dtype("float32")}
    (h, heads), stats = run(model, v, images(), True)
    assert {leaf.dtype for leaf in jax.tree.leaves((h, heads, stats))} == {jnp.dtype("float32")}
    (h32, _), _ = run(build(TINY, HEADS), v, images(), True)
    difference = np.abs(h - h32).max()
    assert 1e-5 < difference < 0.1 * np.abs(h32).max()
    text = str(jax.make_jaxpr(lambda x: model.encode(v["params"], v["batch_stats"], x))(images()))
    assert "bf16" in text


def test_float64_stays_float64():
    with jax.enable_x64(True):
        config = dataclasses.replace(TINY, dtype="float64", mean=(0.5,) * 3, std=(0.2,) * 3)
        model, v = made(config)
        (h, heads), stats = run(model, v, images(dtype=np.float64), True)
        leaves = jax.tree.leaves((v, h, heads, stats))
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float64")}
        text = str(jax.make_jaxpr(lambda x: run(model, v, x, True))(images(dtype=np.float64)))
        assert "f32" not in text
    with pytest.raises(ValueError, match=r"float64.*64-bit mode"):
        build(config, {})


def test_input_normalisation():
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    model, v = made(dataclasses.replace(TINY, mean=mean, std=std))
    plain = build(TINY, HEADS)
    x = images()
    by_hand = ((x - np.array(mean)) / np.array(std)).astype(np.float32)
    (h, _), _ = run(model, v, x, False)
    (expected, _), _ = run(plain, v, by_hand, False)
    np.testing.assert_allclose(h, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"3 numbers and the images have 1 channels"):
        model.init(jax.random.key(0), (8, 8, 1))


def test_integer_images_are_an_error():
    model, v = made()
    with pytest.raises(ValueError, match="uint8: expected floats"):
        model.apply(v["params"], v["batch_stats"], np.zeros((2, 8, 8, 3), np.uint8), True)


def test_remat_changes_no_number():
    model, v = made(heads={"z": HeadSpec((4,))})
    other = build(dataclasses.replace(TINY, remat=True), {"z": HeadSpec((4,))})
    drawn = other.init(jax.random.key(0), (8, 8, 3))
    jax.tree.map(np.testing.assert_array_equal, drawn, v)

    def gradient(model):
        def loss(params):
            (_, heads), stats = model.apply(params, v["batch_stats"], images(), True, None)
            return (heads["z"][-1] ** 3).sum(), stats

        return jax.grad(loss, has_aux=True)

    assert "remat" in str(jax.make_jaxpr(gradient(other))(v["params"]))
    assert "remat" not in str(jax.make_jaxpr(gradient(model))(v["params"]))
    ours, theirs = (jax.jit(gradient(m))(v["params"]) for m in (model, other))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_same_on_one_and_eight_devices_and_groups_differ():
    """Batch statistics are global however the batch is sharded; eight groups are another thing."""
    x = images(16)
    results = {}
    for groups in (1, 8):
        model, v = made(dataclasses.replace(TINY, bn_groups=groups), {"z": HeadSpec((4,))})
        for count in (1, 8):
            mesh = jax.make_mesh(
                (count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
            )
            rows = jax.device_put(x, NamedSharding(mesh, P("data")))
            state = jax.device_put(v, NamedSharding(mesh, P()))
            (h, heads), stats = run(model, state, rows, True)
            results[groups, count] = jax.tree.map(np.asarray, (h, heads, stats))
    for groups in (1, 8):
        pairs = zip(*(jax.tree.leaves(results[groups, c]) for c in (1, 8)), strict=True)
        for a, b in pairs:
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    assert np.abs(results[1, 8][0] - results[8, 8][0]).max() > 1e-2


def test_only_sums_of_parameters_and_statistics_cross_devices(monkeypatch):
    """Every kind of layer, forward and backward: images and activations stay on their device."""
    monkeypatch.setitem(DEPTHS, 7, ((1, 0, 0, 1), True))
    config = BackboneConfig("resnet7", 1 / 32, "resnet_d", selective_kernels=True)
    model, v = made(config, {"z": HeadSpec((-1, 4))})
    rows = 24  # no parameter has a side of 24

    def loss(params, stats, x):
        (_, heads), stats = model.apply(params, stats, x, True, None)
        return (heads["z"][-1] ** 3).sum(), stats

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    step = jax.jit(
        jax.grad(loss, has_aux=True),
        in_shardings=(everywhere, everywhere, sharded),
        out_shardings=everywhere,
    )
    x = jax.ShapeDtypeStruct((rows, 16, 16, 3), jnp.float32)
    text = step.lower(v["params"], v["batch_stats"], x).compile().as_text()
    found = collectives.sent(text)
    assert {array.kind for array in found} == {"all-reduce"}
    assert not any(rows in array.shape for array in found), found


def test_groups_are_separate_batches():
    x = images(16)
    config = dataclasses.replace(TINY, bn_groups=4)
    model, v = made(config, {})
    (h, _), stats = run(model, v, x, True)
    plain = build(TINY, {})
    parts = [run(plain, v, part, True) for part in np.split(x, 4)]
    np.testing.assert_allclose(h, np.concatenate([p[0][0] for p in parts]), rtol=1e-4, atol=1e-5)
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *(p[1] for p in parts))
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="groups=4"):
        run(model, v, x[:6], True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, r"backbone\.name='resnet19': expected one of resnet18"),
        ({"width": 0.3}, r"backbone\.width=0\.3"),
        ({"width": 0}, r"backbone\.width=0"),
        ({"stem": "big"}, r"backbone\.stem='big': expected one of imagenet, cifar, resnet_d"),
        ({"selective_kernels": True}, "use resnet50 or deeper"),
        ({"bn_groups": 0}, r"backbone\.bn_groups=0"),
        ({"bn_momentum": 1.0}, r"backbone\.bn_momentum=1\.0"),
        ({"bn_eps": 0.0}, r"backbone\.bn_eps=0\.0"),
        ({"dtype": "int8"}, r"backbone\.dtype='int8'"),
        ({"mean": (0.5,)}, r"backbone\.mean=\(0\.5,\) and backbone\.std=\(\)"),
        ({"mean": (0.5,), "std": (0.0,)}, r"backbone\.std=\(0\.0,\)"),
    ],
)
def test_bad_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        BackboneConfig(**arguments)
