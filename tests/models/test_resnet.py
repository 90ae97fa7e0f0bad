from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.models import BackboneConfig, build
from jaxcl.models.init import initialize
from jaxcl.models.norm import BatchNorm
from jaxcl.models.resnet import Block, SelectiveKernel, Stem


def parameters(image=(64, 64, 3), **config):
    model = build(BackboneConfig(**config), {})
    shape = jax.eval_shape(lambda key: model.init(key, image), jax.random.key(0))["params"]
    flat = jax.tree_util.tree_flatten_with_path(shape["backbone"])[0]
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf.shape for p, leaf in flat}


def count(shapes):
    return sum(int(np.prod(shape)) for shape in shapes.values())


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # torchvision's documented counts, less the 1000-way classifier
        ("resnet18", 11_689_512 - 513_000),
        ("resnet34", 21_797_672 - 513_000),
        ("resnet50", 25_557_032 - 2_049_000),
        ("resnet101", 44_549_160 - 2_049_000),
        ("resnet152", 60_192_808 - 2_049_000),
    ],
)
def test_parameter_counts(name, expected):
    assert count(parameters(name=name)) == expected


@pytest.mark.parametrize(
    ("depth", "width", "selective", "millions"),
    [  # the table of pretrained models in SimCLR v2's README: millions of variables
        (50, 1, False, 24),
        (50, 1, True, 35),
        (50, 2, False, 94),
        (50, 2, True, 140),
        pytest.param(101, 1, False, 43, marks=pytest.mark.slow),
        pytest.param(101, 1, True, 65, marks=pytest.mark.slow),
        pytest.param(101, 2, False, 170, marks=pytest.mark.slow),
        pytest.param(101, 2, True, 257, marks=pytest.mark.slow),
        pytest.param(152, 1, False, 58, marks=pytest.mark.slow),
        pytest.param(152, 1, True, 89, marks=pytest.mark.slow),
        pytest.param(152, 2, False, 233, marks=pytest.mark.slow),
        pytest.param(152, 2, True, 354, marks=pytest.mark.slow),
        (152, 3, True, 795),
    ],
)
def test_variable_counts_of_simclr_v2(depth, width, selective, millions):
    """All thirteen agree when the running statistics are counted, too."""
    stem = "resnet_d" if selective else "imagenet"
    config = BackboneConfig(f"resnet{depth}", width, stem, selective_kernels=selective)
    model = build(config, {})
    variables = jax.eval_shape(lambda key: model.init(key, (64, 64, 3)), jax.random.key(0))
    total = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert round(total / 1e6) == millions


def test_stems_differ_in_the_stem_only():
    stems = {stem: parameters(stem=stem) for stem in ("imagenet", "cifar", "resnet_d")}
    body = [{k: v for k, v in p.items() if not k.startswith("stem/")} for p in stems.values()]
    assert body[0] == body[1] == body[2]
    assert len(body[0]) > 50
    assert stems["imagenet"]["stem/conv/kernel"] == (7, 7, 3, 64)
    assert stems["cifar"]["stem/conv/kernel"] == (3, 3, 3, 64)
    assert stems["resnet_d"]["stem/conv1/kernel"] == (3, 3, 3, 32)
    assert stems["resnet_d"]["stem/conv/kernel"] == (3, 3, 32, 64)


@pytest.mark.parametrize(
    ("stem", "size", "expected"),
    [("cifar", 32, 32), ("imagenet", 224, 56), ("imagenet", 65, 17), ("resnet_d", 224, 56)],
)
def test_sizes_after_the_stem(stem, size, expected):
    module = Stem(stem, 8, BatchNorm, jnp.float32)
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    out = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, False)[0], x)
    assert out.shape == (1, expected, expected, 8)


def test_bottleneck_stride_is_in_the_3x3_convolution():
    """A strided 1x1 convolution would not see the pixels between its steps."""
    block = Block(4, 2, True, False, False, BatchNorm, jnp.float32)
    x = jnp.zeros((1, 8, 8, 4))
    variables = initialize(block, jax.random.key(0), x, False)
    apply = jax.jit(lambda x: block.apply(variables, x, False))
    base, moved = apply(x), apply(x.at[0, 3, 3].set(1.0))
    changed = np.argwhere(np.any(np.asarray(moved != base), axis=(0, 3)))
    assert base.shape[1:3] == (4, 4)
    assert {(1, 1), (1, 2), (2, 1), (2, 2)} >= {tuple(c) for c in changed} != set()


def bn(x, params):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    y = (x - mean) / np.sqrt(var + 1e-5)
    return y * params["scale"] + params["bias"]


def conv(x, kernel, stride=1):
    """A sum over the kernel's offsets of shifted images."""
    size, pad = kernel.shape[0], kernel.shape[0] // 2
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    y = sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(size)
        for j in range(size)
    )
    return y[:, ::stride, ::stride]


def relu(x):
    return np.maximum(x, 0)


def selective_kernel(x, p, stride):
    y = relu(bn(conv(x, p["conv"]["kernel"], stride), p["bn"]))
    a, b = np.split(y, 2, axis=-1)
    pooled = (a + b).mean((1, 2), keepdims=True)
    mid = relu(bn(conv(pooled, p["mix_conv1"]["kernel"]), p["mix_bn"]))
    la, lb = np.split(conv(mid, p["mix_conv2"]["kernel"]), 2, axis=-1)
    weight = 1 / (1 + np.exp(lb - la))
    return weight * a + (1 - weight) * b


def mean_of_window(x, stride):
    """2x2 means; what lies outside counts as zero with a stride and not at all without."""
    height, width = x.shape[1:3]
    out = np.zeros((x.shape[0], -(-height // stride), -(-width // stride), x.shape[3]))
    for r in range(out.shape[1]):
        for c in range(out.shape[2]):
            window = x[:, r * stride : r * stride + 2, c * stride : c * stride + 2]
            cells = 4 if stride > 1 else window.shape[1] * window.shape[2]
            out[:, r, c] = window.sum((1, 2)) / cells
    return out


def block_oracle(x, p, stride, bottleneck, selective):
    shortcut = x
    if "shortcut_conv" in p:
        kernel = p["shortcut_conv"]["kernel"]
        if selective:
            shortcut = conv(mean_of_window(x, stride), kernel)
        else:
            shortcut = conv(x, kernel, stride)
        shortcut = bn(shortcut, p["shortcut_bn"])
    first = 1 if bottleneck else stride
    y = relu(bn(conv(x, p["conv1"]["kernel"], first), p["bn1"]))
    if not bottleneck:
        return relu(bn(conv(y, p["conv2"]["kernel"]), p["bn2"]) + shortcut)
    if selective:
        y = selective_kernel(y, p["sk"], stride)
    else:
        y = relu(bn(conv(y, p["conv2"]["kernel"], stride), p["bn2"]))
    return relu(bn(conv(y, p["conv3"]["kernel"]), p["bn3"]) + shortcut)


@pytest.mark.parametrize(
    ("inputs", "stride", "bottleneck", "selective", "size"),
    [
        (4, 1, False, False, 6),
        (3, 2, False, False, 5),
        (16, 1, True, False, 6),
        (4, 1, True, False, 5),
        (6, 2, True, False, 6),
        (4, 1, True, True, 5),
        (6, 2, True, True, 6),
        (6, 2, True, True, 5),
    ],
)
def test_block_against_numpy(inputs, stride, bottleneck, selective, size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, size, size, inputs))
    with jax.enable_x64(True):
        norm = partial(BatchNorm, dtype=jnp.float64)
        block = Block(4, stride, bottleneck, selective, True, norm, jnp.float64)
        shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), jnp.asarray(x), False))
        variables = jax.tree.map(lambda s: rng.normal(size=s.shape), shapes)
        y, _ = jax.jit(lambda v, x: block.apply(v, x, True, mutable=["batch_stats"]))(variables, x)
        assert y.dtype == jnp.float64
    assert ("shortcut_conv" in variables["params"]) == (
        inputs != (16 if bottleneck else 4) or stride > 1
    )
    expected = block_oracle(x, variables["params"], stride, bottleneck, selective)
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-9)


def test_stem_against_numpy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 12, 12, 3))
    with jax.enable_x64(True):
        stem = Stem("imagenet", 4, partial(BatchNorm, dtype=jnp.float64), jnp.float64)
        shapes = jax.eval_shape(lambda: stem.init(jax.random.key(0), jnp.asarray(x), False))
        variables = jax.tree.map(lambda s: rng.normal(size=s.shape), shapes)
        y, _ = jax.jit(lambda v, x: stem.apply(v, x, True, mutable=["batch_stats"]))(variables, x)
    p = variables["params"]
    x = relu(bn(conv(x, p["conv"]["kernel"], 2), p["bn"]))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.stack(
        [
            np.stack([padded[:, r : r + 3, c : c + 3].max((1, 2)) for c in (0, 2, 4)], 1)
            for r in (0, 2, 4)
        ],
        1,
    )
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("features", "width"), [(4, 32), (512, 32), (1024, 64)])
def test_width_of_the_mixing_layer(features, width):
    module = SelectiveKernel(features, 1, BatchNorm, jnp.float32)
    x = jax.ShapeDtypeStruct((1, 2, 2, 4), jnp.float32)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), x)["params"]
    assert shapes["mix_conv1"]["kernel"].shape == (1, 1, features, width)


@pytest.mark.parametrize(
    ("name", "last", "zero"),
    [("resnet18", "bn2", True), ("resnet50", "bn3", True), ("resnet18", "bn2", False)],
)
def test_last_scale_of_each_block_is_zero(name, last, zero):
    config = BackboneConfig(name=name, width=1 / 32, stem="cifar", zero_init_residual=zero)
    init = build(config, {}).init
    # Only the scales are computed, which are constants: quick to compile.
    scales = jax.jit(
        lambda key: {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_flatten_with_path(init(key, (8, 8, 3))["params"])[
                0
            ]
            if path[-1].key == "scale"
        }
    )(jax.random.key(0))
    zeros = {path for path, leaf in scales.items() if not np.any(leaf)}
    ones = {path for path, leaf in scales.items() if np.all(leaf == 1)}
    assert zeros | ones == set(scales)
    blocks = 8 if name == "resnet18" else 16
    assert zeros == ({path for path in scales if path.endswith(f"{last}/scale")} if zero else set())
    assert len(zeros) == (blocks if zero else 0)
