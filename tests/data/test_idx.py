import gzip
import struct

import numpy as np
import pytest

from jaxcl.data import load_idx
from jaxcl.data.idx import CLASS_NAMES, read_idx


def idx_bytes(array):
    head = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def random_bytes(*shape, high=256):
    return np.random.default_rng(len(shape)).integers(0, high, shape, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    for prefix, n in (("train", 9), ("t10k", 4)):
        labels = np.arange(n, dtype=np.uint8) % (5 if prefix == "train" else 3)
        images = random_bytes(n, 6, 5)
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return tmp_path


def test_reads_both_splits(folder):
    train, test = load_idx(folder, "train"), load_idx(folder, "t10k")
    np.testing.assert_array_equal(train.images[..., 0], random_bytes(9, 6, 5))
    np.testing.assert_array_equal(train.labels[:, 0], [0, 1, 2, 3, 4, 0, 1, 2, 3])
    assert train[2]["image"].shape == (6, 5, 1)
    # The test part lacks two of the classes and has the same tree all the same.
    assert test.tree == train.tree
    assert test.tree.names == (("0", "1", "2", "3", "4"),)
    assert test.name(3) == "t10k 3"
    assert train.content_id != test.content_id


def test_class_names(folder):
    source = load_idx(folder, "t10k", CLASS_NAMES["fashion_mnist"])
    assert source.tree.describe(source.labels[1]) == "trouser"
    with pytest.raises(ValueError, match="label 2 of example 2"):
        load_idx(folder, "train", ("a", "b"))


@pytest.mark.parametrize("packed", [False, True])
def test_malformed_files(tmp_path, packed):
    good = idx_bytes(random_bytes(3, 4))
    cases = {
        b"": "is no IDX file",
        good[:3]: "is no IDX file",
        b"\0\0\x0d" + good[3:]: "is no IDX file of unsigned bytes",  # floats
        b"text" + good: "is no IDX file",
        good[:3] + b"\0": "is no IDX file",
        good[:9]: "ends within its header",
        good[:-1]: "should have 12 bytes .* only 11",
        good + b"x": "should have 12 bytes .* more",
    }
    for data, message in cases.items():
        path = tmp_path / "file"
        path.write_bytes(gzip.compress(data) if packed else data)
        with pytest.raises(ValueError, match=message):
            read_idx(path)


def test_damaged_gzip(tmp_path):
    data = bytearray(gzip.compress(idx_bytes(random_bytes(50, 50))))
    path = tmp_path / "file.gz"
    path.write_bytes(data[:-400])
    with pytest.raises(ValueError, match="cannot be read"):
        read_idx(path)
    data[200] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match="cannot be read"):
        read_idx(path)


def test_a_header_that_promises_the_world_allocates_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(struct.pack(">BBBBIII", 0, 0, 8, 3, 2**31, 2**31, 2**31) + b"12345")
    with pytest.raises(ValueError, match="only 5"):
        read_idx(path)


def test_missing_or_unmatched_files(folder):
    with pytest.raises(ValueError, match="has neither 'val-images-idx3-ubyte' nor"):
        load_idx(folder, "val")
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(3, np.uint8)))
    with pytest.raises(ValueError, match="4 images but 3 labels"):
        load_idx(folder, "t10k")
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros((4, 1), np.uint8)))
    with pytest.raises(ValueError, match=r"expected images \[N, height, width\]"):
        load_idx(folder, "t10k")
