import numpy as np
import pytest

from jaxcl.data import ArraySource, LabelTree

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)


def test_images_and_labels():
    source = ArraySource(IMAGES, np.array([0, 1, 2, 0, -1, 2]))
    assert source.tree == LabelTree(("label",), (("0", "1", "2"),))
    np.testing.assert_array_equal(source[3]["image"], IMAGES[3])
    np.testing.assert_array_equal(source[4]["label"], [-1])
    assert source.name(2) == "example 2"
    assert source.images is IMAGES


def test_grey_and_unlabelled():
    source = ArraySource(IMAGES[..., 0])
    assert source.images.shape == (6, 5, 4, 1)
    assert source.labels.shape == (6, 0)
    tree = LabelTree(("a",), (("x",),))
    np.testing.assert_array_equal(ArraySource(IMAGES, tree=tree).labels, np.full((6, 1), -1))


def test_several_levels():
    source = ArraySource(IMAGES, np.array([[0, 3]] * 6), names=list("abcdef"))
    assert source.tree.levels == ("level0", "level1")
    assert source.tree.names == (("0",), ("0", "1", "2", "3"))
    assert source.name(5) == "f"


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (IMAGES.astype(np.float32), {}, "uint8 in .* got float32"),
        (IMAGES.astype(np.uint16), {}, "got uint16"),
        (IMAGES * np.nan, {}, "got float64"),
        (IMAGES[0, 0], {}, r"got \[4, 3\]"),
        (IMAGES[..., :2], {}, r"got \[6, 5, 4, 2\]"),
        (IMAGES[:, :0], {}, r"got \[6, 0, 4, 3\]"),
        (IMAGES, {"labels": np.zeros(5, int)}, "6 images but 5 labels"),
        (IMAGES, {"labels": np.zeros(6)}, "integers"),
        (IMAGES, {"labels": np.full(6, -2)}, "label -2 of example 0"),
        (IMAGES, {"labels": np.ones(6, int), "tree": LabelTree(("a",), (("x",),))}, "label 1"),
        (IMAGES, {"names": ["a"]}, "6 images but 1 names"),
    ],
)
def test_clear_errors(images, options, message):
    with pytest.raises(ValueError, match=message):
        ArraySource(images, **options)


def test_content_id_is_of_pixels_labels_and_names():
    labels = np.zeros(6, int)
    first = ArraySource(IMAGES, labels)
    assert ArraySource(IMAGES.copy(), labels).content_id == first.content_id
    assert repr(ArraySource(IMAGES.copy(), labels)) == repr(first)
    other = IMAGES.copy()
    other[5, 4, 3, 2] ^= 1
    tree = LabelTree(("label",), (("zero",),))
    ids = {
        first.content_id,
        ArraySource(other, labels).content_id,
        ArraySource(IMAGES, labels - 1).content_id,
        ArraySource(IMAGES, labels, tree).content_id,
        ArraySource(IMAGES.reshape(6, 4, 5, 3), labels).content_id,
    }
    assert len(ids) == 5
    # A strided view has the digest of its values.
    np.testing.assert_array_equal(
        ArraySource(IMAGES[::2]).content_id, ArraySource(IMAGES[::2].copy()).content_id
    )
