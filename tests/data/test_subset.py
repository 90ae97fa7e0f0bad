import numpy as np
import pytest

from jaxcl.data import ArraySource, FolderSource, Subset, class_balanced_subset, subset
from jaxcl.data.subset import held_out


def test_subset_of_files(tree_of_images):
    source = FolderSource(tree_of_images, "parent")
    part = subset(source, [4, 1])
    assert isinstance(part, Subset)
    assert len(part) == 2
    assert [part.name(i) for i in range(2)] == [source.name(4), source.name(1)]
    np.testing.assert_array_equal(part[0]["image"], source[4]["image"])
    np.testing.assert_array_equal(part.labels, source.labels[[4, 1]])
    assert part.tree == source.tree
    assert part.content_id != source.content_id
    assert part.content_id != subset(source, [1, 4]).content_id
    assert part.content_id == subset(FolderSource(tree_of_images), [4, 1]).content_id


def test_subset_of_arrays_stays_in_memory():
    images = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    source = ArraySource(images, np.array([0, 1, 1, 0]))
    part = subset(source, np.array([3, 1]))
    assert isinstance(part, ArraySource)
    np.testing.assert_array_equal(part.images[:, 0, 0, 0], [3, 1])
    np.testing.assert_array_equal(part.labels[:, 0], [0, 1])
    assert part.name(0) == "example 3"


@pytest.mark.parametrize("rows", [[], [6], [-1], [[0]], [0.5], [True]])
def test_rows_are_checked(tree_of_images, rows):
    with pytest.raises(ValueError, match=r"row"):
        subset(FolderSource(tree_of_images), rows)


def test_held_out_is_a_matter_of_the_name_alone():
    names = [f"image {i}" for i in range(4000)]
    held = held_out(names, 0.1)
    assert abs(held.mean() - 0.1) < 4 * np.sqrt(0.09 / 4000)
    np.testing.assert_array_equal(held_out(names[::-1], 0.1), held[::-1])
    np.testing.assert_array_equal(held_out(names[::7], 0.1), held[::7])
    assert not (held & ~held_out(names, 0.2)).any()
    assert not held_out(names, 0.0).any()
    assert held_out(["caf\udce9"], 0.999999).all()


LABELS = np.repeat([0, 1, 2, -1], [1000, 200, 30, 50])[np.random.default_rng(0).permutation(1280)]


def test_share_of_each_class():
    rows = class_balanced_subset(LABELS, fraction=0.1, seed=3)
    np.testing.assert_array_equal(np.bincount(LABELS[rows]), [100, 20, 3])
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, class_balanced_subset(LABELS, fraction=0.1, seed=3))
    assert set(rows) != set(class_balanced_subset(LABELS, fraction=0.1, seed=4))
    # 1 % is a part of 10 %, and each class keeps at least one example.
    few = class_balanced_subset(LABELS, fraction=0.01, seed=3)
    np.testing.assert_array_equal(np.bincount(LABELS[few]), [10, 2, 1])
    assert set(few) <= set(rows)
    every = class_balanced_subset(LABELS, fraction=1.0)
    np.testing.assert_array_equal(every, np.flatnonzero(LABELS >= 0))


def test_number_of_each_class():
    rows = class_balanced_subset(LABELS, per_class=5)
    np.testing.assert_array_equal(np.bincount(LABELS[rows]), [5, 5, 5])
    with pytest.raises(ValueError, match="class 2 has 30 examples, not 31"):
        class_balanced_subset(LABELS, per_class=31)


def test_every_example_is_equally_likely():
    labels = np.zeros(10, int)
    counts = np.zeros(10)
    for seed in range(600):
        counts[class_balanced_subset(labels, per_class=3, seed=seed)] += 1
    assert np.abs(counts - 180).max() < 4.5 * np.sqrt(600 * 0.3 * 0.7)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (LABELS, {}, "exactly one"),
        (LABELS, {"fraction": 0.1, "per_class": 1}, "exactly one"),
        (LABELS, {"fraction": 0.0}, "fraction=0.0"),
        (LABELS, {"fraction": 1.1}, "fraction=1.1"),
        (LABELS, {"per_class": 0}, "per_class=0"),
        (LABELS[:, None], {"per_class": 1}, "integers"),
        (LABELS * 1.0, {"per_class": 1}, "integers"),
        (np.full(4, -1), {"per_class": 1}, "no example has a label"),
    ],
)
def test_arguments_are_checked(labels, options, message):
    with pytest.raises(ValueError, match=message):
        class_balanced_subset(labels, **options)
