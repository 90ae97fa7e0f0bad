"""The vision transformer, against loops in float64 and published parameter counts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl import optim
from jaxcl.models import BackboneConfig, HeadOn, HeadSpec, build
from jaxcl.models import vit as vit_lib

# 3 heads of 4 channels on patches of 2x2.
TINY = BackboneConfig("vit_t2", width=1 / 16, stem="patches")


@pytest.fixture(autouse=True)
def _two_blocks(monkeypatch):
    """The smallest size has 2 blocks instead of 12, to compile in less time."""
    monkeypatch.setitem(vit_lib.SIZES, "t", (192, 2, 3))


def made(config=TINY, heads=None, side=4):
    model = build(config, heads or {})
    return model, model.init(jax.random.key(0), (side, side, 3))


@pytest.mark.parametrize(
    ("name", "count"),
    # timm's vit_small and vit_base without classifier, less 197 trained positions.
    [
        ("vit_s16", 21_665_664 - 197 * 384),
        ("vit_b16", 85_798_656 - 197 * 768),
    ],
)
def test_parameter_counts(name, count):
    model = build(BackboneConfig(name, stem="fixed_patches"), {})
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), (224, 224, 3)))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes["params"])) == count
    assert shapes["batch_stats"] == {}
    assert model.feature_dim == {"vit_s16": 384, "vit_b16": 768}[name]


def test_positions():
    codes = np.asarray(vit_lib.positions(3, 2, 8))
    for row in range(3):
        for column in range(2):
            expected = []
            for place in (row, column):
                angles = [place * 10_000 ** (-i / 2) for i in range(2)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            np.testing.assert_allclose(codes[row * 2 + column], expected, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="multiple of 4"):
        vit_lib.positions(2, 2, 6)


def oracle(params, image):
    """h of one image, in NumPy."""

    def linear(p, x):
        return x @ p["kernel"] + p["bias"]

    def norm(p, x):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + 1e-6) * p["scale"] + p["bias"]

    tokens = [params["class_token"]]
    width = len(tokens[0])
    for row in range(image.shape[0] // 2):
        for column in range(image.shape[1] // 2):
            patch = image[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            code = []
            for place in (row, column):
                angles = place * 10_000.0 ** (-np.arange(width // 4) / (width // 4))
                code += [*np.sin(angles), *np.cos(angles)]
            tokens.append(linear(params["patches"], patch.reshape(-1)) + code)
    x = np.stack(tokens)
    for number in range(2):
        block = params[f"block{number + 1}"]
        q, k, v = np.split(linear(block["attention"]["qkv"], norm(block["norm1"], x)), 3, axis=1)
        out = np.zeros_like(x)
        for head in range(3):
            part = slice(head * width // 3, (head + 1) * width // 3)
            s = q[:, part] @ k[:, part].T / math.sqrt(width // 3)
            s = np.exp(s - s.max(1, keepdims=True))
            out[:, part] = s / s.sum(1, keepdims=True) @ v[:, part]
        x = x + linear(block["attention"]["out"], out)
        y = linear(block["mlp1"], norm(block["norm2"], x))
        y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
        x = x + linear(block["mlp2"], y)
    return norm(params["norm"], x[0])


def test_forward_pass():
    rng = np.random.default_rng(0)
    images = rng.random((2, 4, 6, 3))
    with jax.enable_x64(True):
        model, v = made(BackboneConfig("vit_t2", 1 / 16, "patches", dtype="float64"))
        params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape), v["params"])
        (h, _), stats = jax.jit(model.apply, static_argnums=3)(params, {}, images, True)
        assert h.dtype == jnp.float64
        assert stats == {}
        params = jax.device_get(params["backbone"])
        np.testing.assert_allclose(h, [oracle(params, image) for image in images], rtol=1e-9)


@pytest.mark.parametrize("stem", ["patches", "fixed_patches"])
def test_a_fixed_patch_projection_gets_no_gradient(stem):
    model, v = made(BackboneConfig("vit_t2", 1 / 16, stem, remat=stem == "patches"))
    images = jax.random.uniform(jax.random.key(1), (2, 4, 4, 3))
    gradient = jax.jit(jax.grad(lambda p: (model.encode(p, {}, images) ** 3).sum()))(v["params"])
    moved = {path for path, leaf in flat(gradient["backbone"]).items() if np.abs(leaf).max() > 0}
    frozen = {"patches/kernel", "patches/bias"} if stem == "fixed_patches" else set()
    assert moved == set(flat(v["params"]["backbone"])) - frozen


def flat(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def test_initial_values():
    params = flat(made(BackboneConfig("vit_t16", stem="patches"), side=16)[1]["params"]["backbone"])
    for path, fan in (
        ("block1/attention/qkv/kernel", 192 + 192),  # q, k and v as layers of their own
        ("block2/attention/out/kernel", 192 + 192),
        ("block2/mlp1/kernel", 192 + 768),
        ("block2/mlp2/kernel", 192 + 768),
        ("patches/kernel", 3 * 16 * 16 + 192),
    ):
        limit = math.sqrt(6 / fan)
        values = params[path]
        assert np.abs(values).max() <= limit
        np.testing.assert_allclose(values.std(), limit / math.sqrt(3), rtol=0.02)
    assert not any(np.any(x) for path, x in params.items() if path.endswith("bias"))
    assert 0 < params["class_token"].std() < 2e-6


def test_compute_in_bfloat16_keeps_parameters_and_features_wide():
    model, v = made(BackboneConfig("vit_t2", 1 / 16, "patches", dtype="bfloat16"))
    wide = {x.dtype for x in jax.tree.leaves(v)}
    h = jax.eval_shape(model.encode, v["params"], {}, jnp.zeros((2, 4, 4, 3)))
    assert wide == {jnp.dtype("float32")} == {h.dtype}


def test_heads_with_batch_norm_and_a_predictor():
    heads = {
        "projection": HeadSpec((8, 6), last_bn_scale=False),
        "prediction": HeadOn("projection", HeadSpec((8, -1))),
    }
    model, v = made(heads=heads)
    assert set(v["batch_stats"]) == {"head_projection", "head_prediction"}
    assert v["params"]["head_prediction"]["dense1"]["kernel"].shape == (6, 8)
    assert v["params"]["head_prediction"]["dense2"]["kernel"].shape == (8, 6)
    images = jnp.zeros((4, 4, 4, 3))
    (_, out), stats = jax.eval_shape(
        lambda: model.apply(v["params"], v["batch_stats"], images, True)
    )
    assert {name: layers[-1].shape for name, layers in out.items()} == {
        "projection": (4, 6),
        "prediction": (4, 6),
    }
    assert jax.tree.structure(stats) == jax.tree.structure(v["batch_stats"])
    # Without the predictor nothing of it is needed.
    params, kept = ({k: t[k] for k in t if k != "head_prediction"} for t in v.values())
    (_, out), stats = jax.eval_shape(
        lambda: model.apply(params, kept, images, True, heads=("projection",))
    )
    assert list(out) == ["projection"]
    assert list(stats) == ["head_projection"]
    with pytest.raises(ValueError, match="head 'b' reads head 'a': expected one of"):
        build(TINY, {"b": HeadOn("a", HeadSpec((4,)))})


def test_frozen_patches_have_no_weight_decay_either():
    _, v = made(BackboneConfig("vit_t2", 1 / 16, "fixed_patches"))
    config = optim.OptimConfig(
        name="adamw", decayed=(".*",), excluded=(), frozen=("^backbone/patches/",)
    )
    rules = optim.rules(config, v["params"])
    frozen = {r.path for r in jax.tree.leaves(rules) if r.group == "frozen"}
    assert frozen == {"backbone/patches/kernel", "backbone/patches/bias"}
    assert all(r.decay for r in jax.tree.leaves(rules) if r.group != "frozen")


def test_images_that_do_not_fit():
    model, v = made()
    with pytest.raises(ValueError, match=r"5x4 pixels cannot be cut into patches of 2x2"):
        model.encode(v["params"], {}, jnp.zeros((1, 5, 4, 3)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vit_x16"}, r"backbone\.name='vit_x16': expected one of .*vit_s16"),
        ({"name": "vit_s16"}, r"backbone\.stem='imagenet': expected one of patches, fixed_patches"),
        ({"name": "vit_s16", "stem": "patches", "width": 0.3}, r"384 \* width to be a positive"),
        (
            {"name": "vit_b16", "stem": "patches", "selective_kernels": True},
            "a ViT has none",
        ),
    ],
)
def test_bad_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        BackboneConfig(**arguments)
