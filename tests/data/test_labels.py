import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxcl.data import LabelTree

TREE = LabelTree(("class", "order"), (("bird", "fish"), ("other", "owl", "perch")))


def test_levels():
    assert TREE.depth == 2
    assert TREE.level("order") == 1
    with pytest.raises(ValueError, match=r"no label level 'family'; it has \['class', 'order'\]"):
        TREE.level("family")
    assert TREE.describe(np.array([1, 2])) == "fish/perch"
    assert TREE.describe(np.array([0, -1])) == "bird"


def test_declaration_is_checked():
    with pytest.raises(ValueError, match="2 levels"):
        LabelTree(("a", "b"), (("x",),))
    with pytest.raises(ValueError, match="different names"):
        LabelTree(("a", "a"), (("x",), ("y",)))
    with pytest.raises(ValueError, match=r"level 'a' .* twice: \['x'\]"):
        LabelTree(("a",), (("x", "y", "x"),))


@pytest.mark.parametrize("bad", [-2, 3, 1000])
def test_ids_out_of_range_name_example_and_level(bad):
    with pytest.raises(ValueError, match=rf"label {bad} of example 1 at level 'order' .* to 2"):
        TREE.check(np.array([[0, 0], [0, bad]]))


def test_shapes_and_types_are_checked():
    with pytest.raises(ValueError, match=r"shape \[examples, 2\].*\[3\]"):
        TREE.check(np.zeros(3, int))
    with pytest.raises(ValueError, match=r"\[3, 1\]"):
        TREE.check(np.zeros((3, 1), int))
    with pytest.raises(ValueError, match=r"integers .* float64"):
        TREE.check(np.array([[0.0, np.nan]]))
    # An id that only fits 64 bits must not come back as another one.
    with pytest.raises(ValueError, match="4294967296"):
        TREE.check(np.array([[0, 2**32]]))
    assert TREE.check(np.zeros((0, 2), int)).shape == (0, 2)
    assert TREE.check(np.array([[0, 1]], np.int64)).dtype == np.int32


def test_unique_tree_names_child_and_both_parents():
    unique = LabelTree(TREE.levels, TREE.names, unique=True)
    fine = [[0, 1], [1, 2], [0, 1], [-1, 2], [1, -1]]
    np.testing.assert_array_equal(unique.check(np.array(fine)), fine)
    with pytest.raises(ValueError, match="order 'other' stands under two parents") as caught:
        unique.check(np.array([[0, 0], [0, 1], [1, 0]]))
    assert "'bird' and 'fish'" in str(caught.value)
    TREE.check(np.array([[0, 0], [1, 0]]))  # names may repeat unless declared otherwise


def test_unique_tree_with_a_cycle_of_names():
    """A name that is its own grandparent is two labels, one at each level; no harm is done."""
    tree = LabelTree(("a", "b", "c"), (("x",), ("y",), ("x",)), unique=True)
    np.testing.assert_array_equal(tree.paths(np.zeros((2, 3), int)), np.zeros((2, 3)))


def test_paths_keep_equal_names_under_different_parents_apart():
    labels = np.array([[0, 0], [1, 0], [0, 0], [1, 2], [-1, 1], [0, -1]])
    expected = [[0, 0], [1, 1], [0, 0], [1, 2], [-1, -1], [0, -1]]
    np.testing.assert_array_equal(TREE.paths(labels), expected)
    counts = TREE.counts(labels)
    np.testing.assert_array_equal(counts[0], [3, 2])
    np.testing.assert_array_equal(counts[1], [2, 1, 1])


def test_paths_follow_a_reference():
    train = np.array([[0, 1], [1, 2]])
    test = np.array([[1, 2], [0, 0], [0, 1], [1, 0]])
    expected = [[1, 1], [0, 2], [0, 0], [1, 3]]
    np.testing.assert_array_equal(TREE.paths(test, reference=train), expected)


def cut(row):
    """A path ends at its first missing label."""
    row = tuple(row)
    return row[: row.index(-1)] if -1 in row else row


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.int64, st.tuples(st.integers(0, 12), st.just(3)), elements=st.integers(-1, 2)))
def test_paths_agree_exactly_where_all_labels_down_to_a_level_agree(labels):
    tree = LabelTree(("a", "b", "c"), (tuple("xyz"),) * 3)
    paths = tree.paths(labels)
    for level in range(3):
        present = [cut(row)[: level + 1] for row in labels.tolist()]
        known = sorted({p for p in present if len(p) == level + 1})
        expected = [known.index(p) if p in known else -1 for p in present]
        np.testing.assert_array_equal(paths[:, level], np.array(expected, int))
        count = collections.Counter(i for i in expected if i >= 0)
        np.testing.assert_array_equal(
            tree.counts(labels)[level], [count[i] for i in range(len(known))]
        )


def test_names_to_ids():
    rows = [("fish", "perch"), ("bird",), ("bird", "owl"), (), ("", "owl")]
    tree = LabelTree.of_names(("class", "order"), rows)
    assert tree.names == (("bird", "fish"), ("owl", "perch"))
    expected = [[1, 1], [0, -1], [0, 0], [-1, -1], [-1, 0]]
    np.testing.assert_array_equal(tree.encode(rows), expected)
    with pytest.raises(ValueError, match=r"example 1 has the label 'cat' at level 'class'"):
        tree.encode([("fish",), ("cat",)])
    with pytest.raises(ValueError, match="example 0 has 3 labels"):
        tree.encode([("fish", "perch", "x")])


def test_no_levels():
    tree = LabelTree()
    assert tree.paths(np.zeros((4, 0), int)).shape == (4, 0)
    assert tree.counts(np.zeros((4, 0), int)) == ()
    assert tree.encode([(), ()]).shape == (2, 0)
