"""Weights of residual networks from files with torchvision's names, as the backbone's own trees.

Names are those of torchvision's ResNet, whose blocks are ours: `conv1.weight`, `bn1.running_mean`,
`layer1.0.conv1.weight`, `layer2.0.downsample.0.weight`, ... (SupContrast's code writes `shortcut` for
`downsample`). Prefixes of wrappers and encoders (`module.`, `encoder.`, ...) are taken off. A bottleneck
block must have its stride in the 3x3 convolution, as torchvision has it since its first ResNet; a file
does not say so, and networks with the stride in the 1x1 one (the original Caffe models) have the same
names and shapes.

Running variances in such files are divided by n - 1, ours by n: for the thousands of pixels that a
channel has in a batch there is no difference that float32 would show in the features.

Files are NumPy's `.npz` or `.safetensors`. Pickles (`.pth`) are not read, as reading one runs what is in it.
"""

from __future__ import annotations

import collections
import io
import json
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from etils import epath

Arrays = dict[str, npt.NDArray[Any]]

SUFFIXES = (".npz", ".safetensors")

PREFIXES = ("module.", "encoder.", "encoder_q.", "base_encoder.", "backbone.", "model.", "resnet.")
"""Taken off the names, also several of them; those of SupContrast, MoCo and PyTorch's wrappers are among them."""

_ITEM = re.compile(
    r"(?:layer(?P<stage>\d+)\.(?P<block>\d+)\.)?"
    r"(?:(?P<kind>conv|bn)(?P<number>\d+)|(?:downsample|shortcut)\.(?P<part>[01]))"
    r"\.(?P<what>weight|bias|running_mean|running_var|num_batches_tracked)"
)
_OF_BACKBONE = re.compile(r"(conv\d|bn\d|layer\d)")
_BN = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}

# Names in a .safetensors header -> little-endian dtypes. NumPy has no bfloat16; see `_widened`.
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}
_LARGEST_HEADER = 100_000_000


def read(path: epath.PathLike) -> Arrays:
    """The arrays of a file by name.

    Args:
      path: of an `.npz` or `.safetensors` file; also in a bucket.

    Raises:
      ValueError: there is no such file, it is of another kind, or it is damaged.
    """
    path = epath.Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{path} is no {' or '.join(SUFFIXES)} file. A pickle (.pth) is not read, as that would run "
            "what is in it. Where you trust it and have PyTorch, write its arrays: numpy.savez('weights.npz', "
            "**{k: v.numpy() for k, v in torch.load('weights.pth', weights_only=True).items()})"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return _npz(data) if path.suffix == ".npz" else safetensors(data)
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no {path.suffix} file, or is damaged: {error}") from error


def _npz(data: bytes) -> Arrays:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def safetensors(data: bytes) -> Arrays:
    """The arrays of a file in the safetensors format: the header's length u64, the header as JSON, the data.

    Raises:
      ValueError: the header is no such header, or an array lies outside of the data.
    """
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= size <= min(len(data) - 8, _LARGEST_HEADER):
        raise ValueError(f"a header of {size} bytes in a file of {len(data)}")
    header = json.loads(data[8 : 8 + size])
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    body = memoryview(data)[8 + size :]
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{name} has the dtype {entry['dtype']!r}: known are {list(_DTYPES)}")
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        shape = tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        wanted = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        if not 0 <= begin <= end <= len(body) or end - begin != wanted or min(shape, default=0) < 0:
            raise ValueError(
                f"{name}, {entry['dtype']}{list(shape)}, at the bytes {begin} to {end} of {len(body)}"
            )
        array = np.frombuffer(body[begin:end], dtype).reshape(shape)
        arrays[name] = _widened(array) if entry["dtype"] == "BF16" else array
    return arrays


def _widened(bits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """bfloat16, given as its bits, as float32, of which it is the upper half."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def convert(
    arrays: Mapping[str, npt.NDArray[Any]], wanted: Mapping[str, Any], prefix: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """Arrays with torchvision's names as the variables of a backbone.

    Args:
      arrays: by name; kernels are [O,I,k,k].
      wanted: {"params": tree, "batch_stats": tree} of the backbone; arrays or their shapes and dtypes.
      prefix: take the names that begin with it, and take it off; "" takes off all of `PREFIXES`.

    Returns:
      trees like `wanted`, with kernels [k,k,I,O]; and the names of arrays that are not of the backbone.

    Raises:
      ValueError: names every array that is missing, that has another shape or is not finite, and every
        one that belongs to a backbone and has no place in this one.
    """
    places = _flatten(wanted)
    found: dict[str, str] = {}
    unused: list[str] = []
    strange: list[str] = []
    twice = collections.defaultdict(list)
    for name in sorted(arrays):
        if not name.startswith(prefix):
            unused.append(name)
            continue
        plain = name.removeprefix(prefix) if prefix else _bare(name)
        place = _place(plain)
        if place == "":
            continue  # a counter
        if place is None or place not in places:
            (strange if _OF_BACKBONE.match(plain) else unused).append(name)
            continue
        twice[place].append(name)
        found[place] = name
    problems = [
        *(
            f"{place} is missing: no array {_torch_name(place)}"
            for place in places
            if place not in found
        ),
        *(f"{name} has no place in this backbone" for name in strange),
        *(
            f"{' and '.join(names)} are the same array"
            for names in twice.values()
            if len(names) > 1
        ),
    ]
    converted = {}
    for place, name in found.items():
        array, like = np.asarray(arrays[name]), places[place]
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        if array.shape != tuple(like.shape):
            problems.append(
                f"{name} has the shape {list(arrays[name].shape)}, which is {list(array.shape)} as "
                f"{place}: expected {list(like.shape)}"
            )
        elif not np.issubdtype(array.dtype, np.floating):
            problems.append(f"{name} is {array.dtype}: expected floats")
        elif not np.isfinite(array).all():
            problems.append(f"{name} is not finite")
        else:
            converted[place] = np.ascontiguousarray(array, like.dtype)
    if problems:
        raise ValueError("\n  ".join([f"{len(problems)} arrays do not fit:", *problems]))
    return _nest(converted), unused


def _bare(name: str) -> str:
    """The name without any of `PREFIXES`."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return _bare(name.removeprefix(prefix))
    return name


def _place(name: str) -> str | None:
    """The path of an array in our trees; "" for a counter, which has none; None for other names."""
    item = _ITEM.fullmatch(name)
    if item is None:
        return None
    if item["what"] == "num_batches_tracked":
        return ""
    if item["part"]:
        kind, layer = ("conv", "shortcut_conv") if item["part"] == "0" else ("bn", "shortcut_bn")
    else:
        kind, layer = item["kind"], f"{item['kind']}{item['number']}"
    if item["stage"]:
        layer = f"stage{item['stage']}_block{int(item['block']) + 1}/{layer}"
    elif item["number"] == "1":
        layer = f"stem/{kind}"
    else:
        return None
    if kind == "conv":
        return f"params/{layer}/kernel" if item["what"] == "weight" else None
    collection, leaf = _BN[item["what"]]
    return f"{collection}/{layer}/{leaf}"


def _torch_name(place: str) -> str:
    """The name in a file of the array of a path; the path itself where torchvision has no such array."""
    collection, *layers, leaf = place.split("/")
    part = re.fullmatch(r"stage(\d+)_block(\d+)", layers[0])
    kinds = {(c, ours): theirs for theirs, (c, ours) in _BN.items()}
    names = {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}
    last = "weight" if leaf == "kernel" else kinds[collection, leaf]
    if part:
        layer = names.get(layers[1], layers[1])
        return f"layer{part[1]}.{int(part[2]) - 1}.{layer}.{last}"
    return f"{layers[1]}1.{last}"


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = value
    return flat


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree
