import re

import numpy as np
import pytest

from jaxcl.data import DataConfig, load
from jaxcl.data.npz import load_npz


def pixels(n, *shape):
    return np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)


def arrays(**changes):
    """Colour images with two levels of labels, of which the test images lack the last."""
    made = {
        "train_images": pixels(5, 6, 7, 3),
        "train_labels": np.array([[0, 0], [0, 1], [1, 2], [1, 3], [1, -1]]),
        "test_images": pixels(2, 6, 7, 3),
        "test_labels": np.array([[0, 0], [1, 2]]),
    }
    return {k: v for k, v in (made | changes).items() if v is not None}


@pytest.fixture
def save(tmp_path):
    def run(**changes):
        path = tmp_path / "mine.npz"
        np.savez_compressed(path, **arrays(**changes))
        return path

    return run


def test_splits_of_one_file(save):
    path = save()
    config = DataConfig(name="arrays", path=str(path), label_keys=("kind", "thing"))
    train, test = load(config, "train"), load(config, "test")
    np.testing.assert_array_equal(train.images, arrays()["train_images"])
    np.testing.assert_array_equal(train.labels, arrays()["train_labels"])
    assert train.tree == test.tree
    assert test.tree.levels == ("kind", "thing")
    assert test.tree.names == (("0", "1"), ("0", "1", "2", "3"))
    assert test.name(1) == "test 1"
    assert train.content_id != test.content_id
    assert load_npz(path, "test").tree.levels == ("level0", "level1")
    renamed = DataConfig(name="arrays", path=str(path), splits={"val": "test"})
    np.testing.assert_array_equal(load(renamed, "val").images, test.images)


def test_grey_images_with_the_labels_in_a_column_and_their_names(save):
    """MedMNIST's layout."""
    path = save(
        train_images=pixels(3, 28, 28),
        train_labels=np.array([[1], [0], [1]], np.uint8),
        test_labels=None,
        label_names=np.array(["left", "right"]),
    )
    source = load_npz(path, "train")
    assert source[0]["image"].shape == (28, 28, 1)
    assert source.tree.levels == ("label",)
    assert [source.tree.describe(row) for row in source.labels] == ["right", "left", "right"]
    assert not load_npz(path, "test").tree.levels
    with pytest.raises(ValueError, match=r"label_keys=\('side',\), and no array 'test_labels'"):
        load_npz(path, "test", ("side",))


def test_unsigned_labels_without_names(save):
    labels = np.array([[1], [0], [1], [2], [0]], np.uint8)
    source = load_npz(save(train_labels=labels, test_labels=None), "train")
    assert source.tree.names == (("0", "1", "2"),)
    np.testing.assert_array_equal(source.labels, labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_images": None}, r"no array 'test_images': the splits of the data are ['train']"),
        ({"test_images": pixels(2, 6, 7, 3) / 255}, "images must be uint8"),
        ({"test_labels": np.zeros((3, 2), int)}, "2 images but 3 labels"),
        ({"test_labels": np.zeros(2, int)}, "different numbers of levels: [1, 2]"),
        ({"train_labels": np.zeros((5, 2))}, "'train_labels' must be integers"),
        ({"train_labels": np.array(3)}, "'train_labels' must be integers"),
        ({"test_images": np.array(3, np.uint8)}, "images must have the shape"),
        ({"level0_names": np.array(["one"])}, "label 1 of"),
        ({"test_images": np.array([None, 1], object)}, "cannot be read"),
    ],
)
def test_arrays_that_do_not_fit_are_named(save, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_npz(save(**changes), "test")


def test_levels_that_the_labels_do_not_have(save):
    with pytest.raises(ValueError, match="names 1 levels, and the labels have 2"):
        load_npz(save(), "train", ("kind",))


def test_files_that_are_none(save, tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        load_npz(tmp_path / "nothing.npz", "train")
    whole = save().read_bytes()
    cut = tmp_path / "cut.npz"
    for end in (0, 40, len(whole) // 2, len(whole) - 30):
        cut.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="cannot be read"):
            load_npz(cut, "train")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match="is one array, expected"):
        load_npz(tmp_path / "one.npy", "train")
    with pytest.raises(ValueError, match=r"data\.path is empty"):
        DataConfig(name="arrays")
