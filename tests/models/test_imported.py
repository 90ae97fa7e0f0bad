"""Networks from files with torchvision's names: against a forward pass in NumPy with PyTorch's semantics."""

import functools
import io
import json
import re
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torchvision_names import BLOCKS, torch_arrays

from jaxcl import models
from jaxcl.models import BackboneConfig, imported

EPS = 1e-5


def torch_conv(x, weight, stride=1):
    """x[N,I,H,W], weight[O,I,k,k] -> [N,O,H',W'], padding k // 2: one product for each place of the kernel."""
    size = weight.shape[-1]
    pad = size // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    height, width = ((n + 2 * pad - size) // stride + 1 for n in x.shape[2:])
    out = np.zeros((len(x), len(weight), height, width))
    for row in range(size):
        for column in range(size):
            part = padded[
                :,
                :,
                row : row + stride * (height - 1) + 1 : stride,
                column : column + stride * (width - 1) + 1 : stride,
            ]
            out += np.einsum("nihw,oi->nohw", part, weight[:, :, row, column])
    return out


def torch_features(arrays, depth, images, pool=True):
    """Features [N,F] of images[N,H,W,3] in float64, in evaluation mode; stride in the 3x3 convolution."""
    a = {name: array.astype(np.float64) for name, array in arrays.items()}

    def bn(x, name):
        mean, var = a[f"{name}.running_mean"], a[f"{name}.running_var"]
        weight, bias = a[f"{name}.weight"], a[f"{name}.bias"]
        scaled = (x - mean[:, None, None]) / np.sqrt(var + EPS)[:, None, None]
        return scaled * weight[:, None, None] + bias[:, None, None]

    stem = a["conv1.weight"]
    x = torch_conv(images.transpose(0, 3, 1, 2), stem, 2 if stem.shape[-1] == 7 else 1)
    x = np.maximum(bn(x, "bn1"), 0)
    if pool:
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        x = windows[:, :, ::2, ::2].max((-1, -2))
    for stage, count in enumerate(BLOCKS[depth], 1):
        for block in range(count):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            strides = (1, stride, 1) if depth == 50 else (stride, 1)
            y = x
            for i, step in enumerate(strides, 1):
                y = bn(torch_conv(y, a[f"{name}.conv{i}.weight"], step), f"{name}.bn{i}")
                y = np.maximum(y, 0) if i < len(strides) else y
            if f"{name}.downsample.0.weight" in a:
                x = bn(
                    torch_conv(x, a[f"{name}.downsample.0.weight"], stride), f"{name}.downsample.1"
                )
            x = np.maximum(x + y, 0)
    return x.mean((2, 3))


@functools.cache
def wanted_of(config):
    model = models.build(config, {})
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), (32, 32, 3)))
    return model, {kind: part["backbone"] for kind, part in shapes.items()}


def config_of(depth, **options):
    return BackboneConfig(name=f"resnet{depth}", width=1 / 32, **options)


@pytest.mark.parametrize(("depth", "stem"), [(18, "imagenet"), (18, "cifar"), (50, "imagenet")])
def test_features_are_those_of_pytorch(depth, stem):
    arrays = torch_arrays(depth, 2, stem=7 if stem == "imagenet" else 3)
    model, wanted = wanted_of(config_of(depth, stem=stem))
    found, unused = imported.convert(arrays, wanted)
    assert unused == ["fc.bias", "fc.weight"]
    side = 35 if stem == "imagenet" else 17  # odd, so that every padding shows
    images = np.random.default_rng(1).random((2, side, side + 6, 3)).astype(np.float32)
    variables = ({"backbone": found[kind]} for kind in ("params", "batch_stats"))
    h = jax.jit(model.encode)(*variables, images)
    expected = torch_features(arrays, depth, images.astype(np.float64), pool=stem == "imagenet")
    assert expected.std(0).max() > 1e-3
    np.testing.assert_allclose(h, expected, rtol=2e-4, atol=2e-5)


def as_safetensors(arrays, names=None):
    header, body = {"__metadata__": {"format": "pt"}}, b""
    kinds = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64", "uint16": "BF16"}
    for name, array in arrays.items():
        data = np.asarray(array).tobytes()
        header[name] = {
            "dtype": kinds[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def as_npz(arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(("suffix", "write"), [("npz", as_npz), ("safetensors", as_safetensors)])
def test_files(tmp_path, suffix, write):
    arrays = torch_arrays(18, 2)
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(write(arrays))
    read = imported.read(path)
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype


def test_other_dtypes():
    values = np.array([[1.0, -2.5], [3.25, 0.0]])
    bits = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    read = imported.safetensors(
        as_safetensors({"a": values, "b": values.astype(np.float16), "c": bits})
    )
    for name in "abc":
        np.testing.assert_array_equal(read[name], values)
    assert read["c"].dtype == np.float32
    _, wanted = wanted_of(config_of(18))
    arrays = {name: array.astype(np.float64) for name, array in torch_arrays(18, 2).items()}
    found, _ = imported.convert(arrays, wanted)
    assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("prefixes", "prefix"),
    [
        ("module.encoder.", ""),
        ("module.encoder_q.", ""),
        ("encoder.module.", ""),
        ("student.", "student."),
    ],
)
def test_prefixes_are_taken_off(prefixes, prefix):
    """SupContrast's and MoCo's files, and others by a setting; what else they hold is named."""
    arrays = torch_arrays(18, 2)
    _, wanted = wanted_of(config_of(18))
    plain, _ = imported.convert(arrays, wanted)
    wrapped = {
        prefixes + name: array for name, array in arrays.items() if not name.startswith("fc")
    }
    wrapped |= {"head.0.weight": np.zeros((3, 3), np.float32), "module.queue": np.zeros(3)}
    found, unused = imported.convert(wrapped, wanted, prefix)
    assert unused == ["head.0.weight", "module.queue"]
    jax.tree.map(np.testing.assert_array_equal, found, plain)


def test_supcontrast_calls_the_projections_shortcut():
    arrays = torch_arrays(18, 2)
    _, wanted = wanted_of(config_of(18))
    plain, _ = imported.convert(arrays, wanted)
    renamed = {name.replace("downsample", "shortcut"): array for name, array in arrays.items()}
    found, _ = imported.convert(renamed, wanted)
    jax.tree.map(np.testing.assert_array_equal, found, plain)


def test_every_array_that_does_not_fit_is_named():
    arrays = torch_arrays(18, 2)
    _, wanted = wanted_of(config_of(18))
    del arrays["bn1.running_mean"], arrays["layer2.0.downsample.0.weight"]
    arrays["layer1.1.conv2.weight"] = np.zeros((2, 2, 5, 5), np.float32)
    arrays["layer3.0.bn1.bias"] = np.full(8, np.nan, np.float32)
    arrays["layer4.1.bn2.weight"] = np.zeros(16, np.int64)
    arrays["layer4.2.conv1.weight"] = np.zeros((16, 16, 3, 3), np.float32)
    arrays["layer1.0.conv1.bias"] = np.zeros(2, np.float32)
    arrays["module.conv1.weight"] = arrays["conv1.weight"]
    with pytest.raises(ValueError, match="8 arrays do not fit") as error:
        imported.convert(arrays, wanted)
    for text in (
        "batch_stats/stem/bn/mean is missing: no array bn1.running_mean",
        "params/stage2_block1/shortcut_conv/kernel is missing: no array layer2.0.downsample.0.weight",
        "layer1.1.conv2.weight has the shape [2, 2, 5, 5], which is [5, 5, 2, 2] as "
        "params/stage1_block2/conv2/kernel: expected [3, 3, 2, 2]",
        "layer3.0.bn1.bias is not finite",
        "layer4.1.bn2.weight is int64: expected floats",
        "layer4.2.conv1.weight has no place in this backbone",
        "layer1.0.conv1.bias has no place in this backbone",
        "conv1.weight and module.conv1.weight are the same array",
    ):
        assert text in str(error.value)


def test_a_deeper_network_is_not_taken_for_a_shallower_one():
    _, wanted = wanted_of(config_of(18))
    arrays = torch_arrays(18, 2)
    arrays |= {"layer1.2.bn1.weight": np.ones(2, np.float32)}
    with pytest.raises(ValueError, match=r"layer1\.2\.bn1\.weight has no place"):
        imported.convert(arrays, wanted)


def broken(change):
    data = as_safetensors({"a": np.zeros((2, 3), np.float32)})
    return change(data)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pth", b"PK", "is no .npz or .safetensors file. A pickle"),
        ("w.npz", b"PK\3\4 no archive", "is no .npz file, or is damaged"),
        ("w.npz", as_npz({"a": np.array([None])}), "is no .npz file, or is damaged"),
        ("w.safetensors", b"123", "header of"),
        ("w.safetensors", struct.pack("<Q", 10**12) + b"{}", "a header of 1000000000000 bytes"),
        ("w.safetensors", struct.pack("<Q", 2) + b"[]", "no JSON object"),
        ("w.safetensors", struct.pack("<Q", 2) + b"{x", "or is damaged"),
        ("w.safetensors", broken(lambda d: d[:-4]), r"a, F32\[2, 3\], at the bytes 0 to 24 of 20"),
        ("w.safetensors", broken(lambda d: d.replace(b"[2, 3]", b"[2, 4]")), r"F32\[2, 4\]"),
        ("w.safetensors", broken(lambda d: d.replace(b"F32", b"F33")), "dtype 'F33'"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        imported.read(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'no.npz'} cannot be read")):
        imported.read(tmp_path / "no.npz")


def test_bfloat16_models_keep_their_parameters_in_float32():
    _, wanted = wanted_of(config_of(18, dtype="bfloat16"))
    found, _ = imported.convert(torch_arrays(18, 2), wanted)
    assert {jnp.dtype(x.dtype) for x in jax.tree.leaves(found)} == {jnp.dtype("float32")}
