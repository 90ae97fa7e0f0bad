"""Labels by path: equal numbers mean that all coarser labels are equal too."""

import numpy as np
import pytest

from jaxcl import data
from jaxcl.data import ArraySource, LabelTree
from jaxcl.data.relabel import Relabelled

# "left" stands under both parents; the third example ends early, the fifth has no label.
TREE = LabelTree(("side", "part"), (("door", "wing"), ("left", "right", "unused")))
LABELS = np.array([[0, 0], [1, 0], [1, -1], [0, 1], [-1, -1], [1, 0]])


def source(labels=LABELS, tree=TREE):
    images = np.arange(len(labels) * 12, dtype=np.uint8).reshape(-1, 2, 2, 3)
    return ArraySource(images, labels, tree)


class Stream:
    """A source that is not in memory."""

    def __init__(self, inner):
        self.labels, self.tree, self.content_id = inner.labels, inner.tree, inner.content_id
        self._inner = inner

    def __len__(self):
        return len(self._inner)

    def __getitem__(self, index):
        return self._inner[index]

    def name(self, index):
        return self._inner.name(index)

    def describe(self):
        return "stream"


@pytest.mark.parametrize("wrap", [lambda s: s, Stream])
def test_every_path_has_its_own_number_and_name(wrap):
    numbered = data.by_path(wrap(source()))
    np.testing.assert_array_equal(
        numbered.labels, [[0, 0], [1, 2], [1, -1], [0, 1], [-1, -1], [1, 2]]
    )
    assert numbered.tree.levels == TREE.levels
    assert numbered.tree.names == (("door", "wing"), ("door/left", "door/right", "wing/left"))
    assert numbered.tree.unique
    for i in range(len(LABELS)):
        np.testing.assert_array_equal(numbered[i]["label"], numbered.labels[i])
        np.testing.assert_array_equal(numbered[i]["image"], source()[i]["image"])
        assert numbered.name(i) == source().name(i)
    assert isinstance(numbered, Relabelled) == (wrap is Stream)


def test_what_is_unambiguous_keeps_its_numbers():
    one_level = source(LABELS[:, :1], LabelTree(("side",), (("door", "wing"),)))
    assert data.by_path(one_level) is one_level
    emoji = data.load(data.DataConfig(name="emoji"), "val")
    assert data.by_path(emoji) is emoji
    plain = ArraySource(np.zeros((2, 2, 2, 3), np.uint8))
    assert data.by_path(plain) is plain


def test_below_a_missing_label_all_are_missing():
    tree = LabelTree(("side", "part"), (("door", "wing"), ("knob", "tip")), unique=True)
    numbered = data.by_path(source(np.array([[0, 0], [-1, 1], [1, 1]]), tree))
    np.testing.assert_array_equal(numbered.labels, [[0, 0], [-1, -1], [1, 1]])
    assert numbered.tree == tree


def test_numbers_of_other_labels_are_those_of_the_training_data():
    """By the names of their paths; what training has not seen is numbered beyond."""
    train = data.by_path(source())
    other = np.array([[1, 0], [1, 1], [0, 1], [1, -1], [-1, 0]])
    found = data.path_numbers(TREE, other, LABELS)
    known = [len(names) for names in train.tree.names]
    names = [(TREE.names[0][a], TREE.names[1][b] if b >= 0 else "") for a, b in other if a >= 0]
    for row, (side, part) in zip(found, names, strict=False):
        assert train.tree.names[0][row[0]] == side
        if part and f"{side}/{part}" in train.tree.names[1]:
            assert train.tree.names[1][row[1]] == f"{side}/{part}"
        else:
            assert row[1] == -1 if not part else row[1] >= known[1]
    np.testing.assert_array_equal(found[4], [-1, -1])
    np.testing.assert_array_equal(data.path_numbers(TREE, LABELS, LABELS), train.labels)
