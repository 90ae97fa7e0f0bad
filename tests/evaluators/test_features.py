"""Feature extraction: each real example once, in order, on one device and on eight."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcl.evaluators import Features, make_extractor, pixel_view, raw_pixels
from jaxcl.evaluators.base import Classes
from jaxcl.views import EvalView


def images(n):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, 4, 5, 3), np.uint8), np.arange(2 * n, dtype=np.int32).reshape(
        n, 2
    )


def batches(x, labels, size, padded):
    for i in range(0, len(x), size):
        part, own = x[i : i + size], labels[i : i + size]
        missing = size - len(part)
        if padded:
            junk = np.full((missing, *x.shape[1:]), 77, np.uint8)
            yield {
                "image": np.concatenate([part, junk]),
                "label": np.concatenate([own, np.full((missing, 2), 5, np.int32)]),
                "mask": np.arange(size) < len(part),
            }
        else:
            yield {"image": part, "label": own}


def encode(variables, x):
    return x.reshape(len(x), -1) @ variables["w"]


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("devices", [None, 1, 8])
@pytest.mark.parametrize("size", [5, 8, 23, 64])
def test_exact_rows_in_order(padded, devices, size):
    x, labels = images(23)
    sharding = None
    if devices:
        mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
        sharding = NamedSharding(mesh, PartitionSpec("data"))
    w = np.random.default_rng(1).normal(size=(60, 7)).astype(np.float32)
    extract = make_extractor(encode, sharding=sharding)
    got = extract({"w": w}, batches(x, labels, size, padded))
    np.testing.assert_allclose(got.h, x.reshape(23, -1) / 255 @ w, atol=2e-5)
    assert got.h.dtype == np.float32
    np.testing.assert_array_equal(got.labels, labels)


def test_padding_rows_in_the_middle_are_dropped():
    x, labels = images(6)
    mask = np.array([True, False, True, True, False, True])
    got = raw_pixels([{"image": x, "label": labels, "mask": mask}])
    np.testing.assert_array_equal(got.labels, labels[mask])
    np.testing.assert_allclose(got.h, x[mask].reshape(4, -1) / np.float32(255), rtol=1e-6)
    assert got.index is None


def test_rows_know_which_examples_they_are():
    x, labels = images(6)
    mask = np.array([True, False, True, True, False, True])
    batch = {"image": x, "label": labels, "mask": mask, "index": np.array([0, 1, 2, 3, -1, 5])}
    got = raw_pixels([batch, {**batch, "index": np.arange(6, 12)}])
    np.testing.assert_array_equal(got.index, [0, 2, 3, 5, 6, 8, 9, 11])
    np.testing.assert_array_equal(got.take(got.index > 5).index, [6, 8, 9, 11])
    assert got.join(got).index is None
    with pytest.raises(ValueError, match=r"expected index\[8\], got index\[3\]"):
        Features(got.h, got.labels, np.arange(3))


def test_one_compilation_for_all_batches_and_all_variables():
    x, labels = images(23)
    traced = []

    def counting(variables, images):
        traced.append(images.shape)
        return encode(variables, images)

    extract = make_extractor(counting)
    for seed in range(3):
        w = np.random.default_rng(seed).normal(size=(60, 2)).astype(np.float32)
        extract({"w": w}, batches(x, labels, 8, padded=False))
    assert traced == [(8, 4, 5, 3)]


def test_view_sees_floats_in_the_unit_range():
    x, labels = images(3)

    def view(images):
        assert images.dtype == np.float32
        return images[:, :2, :2]

    got = raw_pixels(batches(x, labels, 3, padded=False), view)
    np.testing.assert_allclose(got.h, x[:, :2, :2].reshape(3, -1) / np.float32(255), rtol=1e-6)


@pytest.mark.parametrize("sharded", [False, True])
def test_raw_pixels_of_too_many_large_images_are_those_of_reduced_ones(sharded):
    said = []
    # 7 * 1024 floats of 4 bytes are 28 KiB, and 37,449 images of that are the first that exceed 1 GiB.
    for view in (None, EvalView(56)):
        shape = (64, 112, 1)
        assert pixel_view(view, shape, 37_449, said.append) is view
        assert not said
        found = pixel_view(view, shape, 37_450, said.append)
        assert (found.size, found.fraction) == (32, 0.875 if view else 1.0)
        assert "reduced to 32 pixels a side: of 37,450 images of 64 x 112" in said.pop()
        assert pixel_view(view, (32, 32, 3), 10**9, said.append) is view
        assert not said
    x = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data")) if sharded else None
    got = raw_pixels([{"image": x, "label": np.zeros((9, 1), np.int32)}], found, sharding)
    assert got.h.shape == (9, 32 * 32 * 3)
    np.testing.assert_allclose(got.h, np.asarray(found(x)).reshape(9, -1), atol=1e-6)


def test_classes_are_paths():
    labels = np.array([[0, 1], [1, 1], [0, -1], [-1, 3], [0, 1]], np.int32)
    classes = Classes.of(labels, -1)
    assert classes.paths.tolist() == [[0, 1], [1, 1]]
    assert classes.number(labels).tolist() == [0, 1, -1, -1, 0]
    assert classes.number(np.array([[1, 0], [1, 1], [0, -1]])).tolist() == [-2, 1, -1]
    assert Classes.of(labels, 0).number(labels).tolist() == [0, 1, 0, -1, 0]
    empty = Classes.of(labels[3:4], 1)
    assert len(empty) == 0
    assert empty.number(labels).tolist() == [-2, -2, -1, -1, -2]


def test_take_and_join():
    data = Features(np.arange(6, dtype=np.float32).reshape(3, 2), np.arange(3)[:, None])
    part = data.take(np.array([2, 0]))
    assert part.labels[:, 0].tolist() == [2, 0]
    assert len(data.join(part)) == 5
    assert data.levels == 1


def test_errors():
    x, labels = images(3)
    with pytest.raises(ValueError, match="batches are empty"):
        raw_pixels([])
    with pytest.raises(ValueError, match="batches are empty"):
        raw_pixels([{"image": x, "label": labels, "mask": np.zeros(3, bool)}])
    with pytest.raises(TypeError, match="expected uint8, or floats"):
        raw_pixels([{"image": x.astype(np.int32), "label": labels}])
    with pytest.raises(ValueError, match=r"must return \[N, F\]"):
        make_extractor(lambda _, x: x)(None, [{"image": x, "label": labels}])
