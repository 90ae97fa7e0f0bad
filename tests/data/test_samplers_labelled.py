"""Samplers by class and by tree, on random labels."""

import collections
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcl import data as data_lib
from jaxcl.data import (
    ArraySource,
    ClassBalanced,
    DataConfig,
    Hierarchical,
    LabelTree,
    MPerClass,
    make_sampler,
)
from jaxcl.data.philox import Stream, uniform_order
from jaxcl.data.samplers.classes import Deck


def random_labels(seed, n, depth, branches, ragged=0.0):
    """Labels i32[n, depth], paths whose branches have very different sizes; some end early."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, depth)) ** 2 * branches).astype(np.int32)
    for row in labels:
        if rng.random() < ragged:
            row[rng.integers(0, depth + 1) :] = -1
    return labels


def agreement(a, b):
    """How many levels, from the coarsest, two rows of labels agree at."""
    count = 0
    for x, y in zip(a, b, strict=True):
        if x != y or x < 0:
            break
        count += 1
    return count


def nearest_degree(labels, anchor, degree):
    """The degree of the relative that an anchor must get: the wanted one, or its stand-in; None if it is alone."""
    there = {
        agreement(labels[anchor], labels[i])
        for i in range(len(labels))
        if i != anchor and labels[i, 0] >= 0
    }
    depth = labels.shape[1]
    for candidate in [*range(degree, -1, -1), *range(degree + 1, depth + 1)]:
        if candidate in there:
            return candidate
    return None


trees = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "n": st.integers(2, 60),
        "depth": st.integers(1, 4),
        "branches": st.integers(1, 4),
        "ragged": st.sampled_from([0.0, 0.3]),
    }
)


@settings(deadline=None, max_examples=50)
@given(trees, st.data())
def test_every_anchor_has_a_partner_of_every_degree_that_the_tree_has(tree, data):
    labels = random_labels(**tree)
    labels[0, 0] = 0
    n, depth = labels.shape
    batch_size = data.draw(st.integers(1, n))
    sampler = Hierarchical(labels, batch_size, seed=tree["seed"])
    assert sampler.group == depth + 2
    for step in range(2 * sampler.steps_per_epoch):
        batch = sampler.indices(step)
        assert batch.shape == (batch_size,)
        assert batch.min() >= 0
        assert batch.max() < n
        assert (labels[batch, 0] >= 0).all()
        for start in range(0, batch_size, depth + 2):
            anchor, *relatives = batch[start : start + depth + 2].tolist()
            # A group that is cut lacks the most distant relatives.
            degrees = range(depth + 1 - len(relatives), depth + 1)
            for degree, relative in zip(degrees, relatives, strict=True):
                expected = nearest_degree(labels, anchor, degree)
                if expected is None:
                    assert relative == anchor
                else:
                    assert relative != anchor
                    assert agreement(labels[anchor], labels[relative]) == expected


@settings(deadline=None, max_examples=40)
@given(trees)
def test_examples_without_a_partner_are_counted(tree):
    labels = random_labels(**tree)
    labels[0, 0] = 0
    counted = Hierarchical(labels, 1).without_partner()
    depth = labels.shape[1]
    expected = [0] * (depth + 1)
    for anchor in np.flatnonzero(labels[:, 0] >= 0):
        for degree in range(depth + 1):
            expected[degree] += nearest_degree(labels, anchor, degree) != degree
    assert counted == tuple(expected)


def epoch_of(sampler, epoch):
    first = epoch * sampler.steps_per_epoch
    return np.concatenate([sampler.indices(first + i) for i in range(sampler.steps_per_epoch)])


def make(kind, labels, batch_size, seed=0):
    if kind == "hierarchical":
        return Hierarchical(labels, batch_size, seed)
    cls = ClassBalanced if kind == "class_balanced" else MPerClass
    more = () if kind == "class_balanced" else (2,)
    return cls(labels[:, 0], batch_size, *more, seed)


KINDS = ["hierarchical", "class_balanced", "m_per_class"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_a_function_of_seed_and_step(kind):
    labels = random_labels(3, 90, 2, 5)
    steps = [40, 0, 7, 3, 40, 123]
    one = make(kind, labels, 10, 5)
    found = [one.indices(step) for step in steps]
    for step, batch in zip(reversed(steps), reversed(found), strict=True):
        np.testing.assert_array_equal(make(kind, labels, 10, 5).indices(step), batch)
    assert not np.array_equal(found[1], make(kind, labels, 10, 6).indices(0))
    epochs = {tuple(epoch_of(one, epoch).tolist()) for epoch in range(6)}
    assert len(epochs) == 6
    found[0][:] = -1
    np.testing.assert_array_equal(one.indices(40), found[4])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(one)).indices(7), found[2])


@pytest.mark.parametrize("kind", KINDS)
def test_threads_get_the_same_batches(kind):
    labels = random_labels(3, 200, 2, 5)
    expected = [make(kind, labels, 10).indices(step) for step in range(60)]
    sampler = make(kind, labels, 10)
    with ThreadPoolExecutor(4) as pool:
        for batch, wanted in zip(pool.map(sampler.indices, range(60)), expected, strict=True):
            np.testing.assert_array_equal(batch, wanted)


def test_the_numbers_of_the_hierarchical_sampler_stay_so():
    """A resumed run sees the same data with other versions of NumPy and on other machines."""
    labels = np.array([[0, 0], [0, 0], [0, 1], [0, 1], [1, 2], [1, 2], [1, 3], [1, -1]])
    sampler = Hierarchical(labels, 8, seed=7)
    np.testing.assert_array_equal(sampler.indices(0), [4, 1, 6, 5, 0, 7, 3, 1])
    np.testing.assert_array_equal(sampler.indices(1), [3, 5, 1, 2, 0, 4, 2, 1])


def test_an_epoch_of_a_balanced_tree_has_every_image_once():
    labels = np.stack([np.arange(80) // 40, np.arange(80) // 10], axis=1)
    sampler = Hierarchical(labels, 16, seed=1)
    assert sampler.without_partner() == (0, 0, 0)
    for epoch in range(3):
        assert len(set(epoch_of(sampler, epoch).tolist())) >= 72
    assert sampler.coverage == len(set(epoch_of(sampler, 0).tolist())) / 80
    assert f"the first epoch has {sampler.coverage:.1%} of the images" in sampler.describe()
    assert "stands in" not in sampler.describe()


@settings(deadline=None, max_examples=40)
@given(trees)
def test_no_image_comes_twice_where_a_new_one_would_do(tree):
    """A relative that the epoch has already: no other branch of that degree had a new image."""
    labels = random_labels(**{**tree, "ragged": 0.0})
    n, depth = labels.shape
    sampler = Hierarchical(labels, n, seed=tree["seed"])
    batch = sampler.indices(0).tolist()
    seen = set()
    for start in range(0, n, depth + 2):
        anchor, *relatives = batch[start : start + depth + 2]
        assert anchor not in seen
        seen.add(anchor)
        for relative in relatives:
            if relative in seen:
                degree = agreement(labels[anchor], labels[relative])
                alike = [i for i in range(n) if agreement(labels[anchor], labels[i]) == degree]
                assert set(alike) - {anchor} <= seen
            seen.add(relative)


def test_branches_of_a_degree_are_equally_likely():
    """A class of 2 images is drawn as often as one of 12, as long as it lasts."""
    labels = np.repeat([0, 1, 2], [16, 2, 12])[:, None]
    counts = collections.Counter()
    for seed in range(400):
        sampler = Hierarchical(labels, 3, seed)
        anchor, other, same = sampler.indices(0).tolist()
        assert labels[anchor] == labels[same]
        if labels[anchor] == 0:
            counts[int(labels[other, 0])] += 1
    assert set(counts) == {1, 2}
    total = counts.total()
    assert abs(counts[1] - total / 2) < 4 * np.sqrt(total / 4)


def test_labels_that_end_early_stand_behind_their_siblings():
    """Two kinds with 2 leaves of 10 labelled images and 40 without a leaf: relatives have labels wherever some has."""
    labels = np.array([[kind, 2 * kind + leaf] for kind in (0, 1) for leaf in (0, 1) for _ in range(10)]
                      + [[kind, -1] for kind in (0, 1) for _ in range(40)])  # fmt: skip
    sampler = Hierarchical(labels, 20, seed=2, levels=("kind", "leaf"))
    anchors = collections.Counter()
    leaves = collections.Counter()
    for step in range(4 * sampler.steps_per_epoch):
        for group in sampler.indices(step).reshape(-1, 4):
            anchor, kind, leaf, same = labels[group]
            anchors[bool(anchor[1] < 0)] += 1
            assert kind[0] != anchor[0]
            assert leaf[0] == anchor[0]
            assert leaf[1] >= 0
            assert leaf[1] != anchor[1]
            leaves[int(leaf[1]) % 2] += anchor[1] < 0
            assert same[1] == anchor[1] if anchor[1] >= 0 else same[1] >= 0
    assert anchors[True] > anchors[False] > 0
    assert abs(leaves[0] - leaves.total() / 2) < 4 * np.sqrt(leaves.total() / 4)
    # Without labelled siblings the others serve, so that each kind of pair is there.
    lonely = Hierarchical(np.array([[0, 0], [0, 0], [0, -1], [0, -1], [1, 5], [1, 5]]), 4)
    for step in range(20):
        group = lonely.indices(step)
        if group[0] < 2:
            assert group[2] in (2, 3)
    assert (
        "; labels that end before leaf (80 images) stand behind their siblings;"
        in sampler.describe()
    )


@settings(deadline=None, max_examples=40)
@given(trees)
def test_a_relative_without_a_label_has_no_sibling_with_one(tree):
    """Of those that leave the anchor's path where it does."""
    labels = random_labels(**{**tree, "ragged": 0.6})
    labels[0, 0] = 0
    n, depth = labels.shape
    sampler = Hierarchical(labels, min(n, depth + 2), seed=tree["seed"])
    for step in range(2 * sampler.steps_per_epoch):
        anchor, *relatives = sampler.indices(step).tolist()
        for relative in relatives:
            degree = agreement(labels[anchor], labels[relative])
            if relative != anchor and degree < depth and labels[relative, degree] < 0:
                alike = [i for i in range(n) if agreement(labels[anchor], labels[i]) == degree]
                assert all(labels[i, degree] < 0 for i in alike if i != anchor)


def test_a_leaf_of_one_image_and_a_level_of_one_class():
    labels = np.array([[0, 0], [0, 0], [0, 1], [0, 2], [0, 2], [0, 2]])
    sampler = Hierarchical(labels, 4, levels=("kind", "leaf"))
    assert sampler.without_partner() == (6, 0, 1)
    assert sampler.describe().startswith(
        "groups of 4 images by kind, leaf; the nearest relative there is stands in for any other kind "
        "(6 images), other image (1 images); the first epoch has "
    )
    assert (
        "images by level 0, the last of a batch cut to 2;"
        in Hierarchical(labels[:, :1], 5).describe()
    )


def test_one_example_is_its_own_relative():
    sampler = Hierarchical(np.array([[0, 0]]), 1)
    np.testing.assert_array_equal(sampler.indices(5), [0])


def test_images_without_labels_are_left_out_and_counted():
    labels = np.array([[0, 0], [0, 1], [-1, 0], [1, -1], [1, -1], [-1, -1]])
    sampler = Hierarchical(labels, 4)
    for step in range(20):
        assert set(sampler.indices(step).tolist()) <= {0, 1, 3, 4}
    assert "2 images without a label there are never drawn" in sampler.describe()
    classes = ClassBalanced(labels[:, 0], 4)
    for step in range(20):
        assert set(classes.indices(step).tolist()) <= {0, 1, 3, 4}
    assert "2 images without a label there are never drawn" in classes.describe()


def test_few_labels_are_gone_through_more_than_once():
    labels = np.full((40, 1), -1)
    labels[:6, 0] = [0, 0, 0, 1, 1, 1]
    sampler = Hierarchical(labels, 6)
    counts = np.bincount(epoch_of(sampler, 0), minlength=40)
    assert counts[6:].sum() == 0
    assert counts[:6].min() >= 3


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_m_per_class(data):
    n = data.draw(st.integers(4, 80))
    classes = data.draw(st.integers(1, 9))
    seed = data.draw(st.integers(0, 10**6))
    ids = np.random.default_rng(seed).integers(0, classes, n) * 3
    there = sorted(set(ids.tolist()))
    m = data.draw(st.integers(1, 5))
    each = data.draw(st.integers(1, len(there)))
    if each * m > n:
        return
    sampler = MPerClass(ids, each * m, m, seed)
    drawn = collections.Counter()
    for step in range(sampler.steps_per_epoch):
        batch = sampler.indices(step)
        groups = ids[batch].reshape(each, m)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0].tolist())) == each
        for group in batch.reshape(each, m).tolist():
            size = int((ids == ids[group[0]]).sum())
            assert len(set(group)) == min(m, size)
        drawn.update(groups[:, 0].tolist())
    counts = [drawn[name] for name in there]
    assert max(counts) - min(counts) <= 1
    # Of each class the images come in turn.
    images = np.bincount(epoch_of(sampler, 0), minlength=n)
    for name in there:
        assert images[ids == name].max() - images[ids == name].min() <= 2


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_class_balanced(data):
    n = data.draw(st.integers(4, 80))
    classes = data.draw(st.integers(1, 9))
    seed = data.draw(st.integers(0, 10**6))
    ids = np.random.default_rng(seed).integers(0, classes, n)
    there = sorted(set(ids.tolist()))
    batch_size = data.draw(st.integers(1, n))
    sampler = ClassBalanced(ids, batch_size, seed)
    total = collections.Counter()
    for step in range(sampler.steps_per_epoch):
        counts = collections.Counter(ids[sampler.indices(step)].tolist())
        sizes = [counts[name] for name in there]
        assert sum(sizes) == batch_size
        assert max(sizes) - min(sizes) <= 1
        total.update(counts)
    assert max(total[name] for name in there) - min(total[name] for name in there) <= 1


def test_small_classes_are_counted():
    ids = np.array([0, 0, 0, 0, 1, 2, 2, 2])
    assert "; classes with fewer images, which repeat some: 1;" in MPerClass(ids, 4, 2).describe()
    assert (
        "; classes with fewer than 2, which repeat some: 2" not in ClassBalanced(ids, 6).describe()
    )
    assert "; classes with fewer than 2, which repeat some: 1;" in ClassBalanced(ids, 6).describe()
    assert "repeat" not in MPerClass(ids, 3, 1).describe()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 7), st.lists(st.integers(1, 20), max_size=8), st.integers(0, 999))
def test_a_hand_has_a_card_twice_only_if_it_has_all_others(cards, hands, seed):
    deck = Deck(np.arange(cards) + 10, Stream(seed, 0))
    dealt = []
    for count in hands:
        hand = deck.deal(count)
        counts = np.bincount(np.array(hand) - 10, minlength=cards)
        assert len(hand) == count
        assert counts.max() - counts.min() <= 1
        dealt += hand
    for start in range(0, len(dealt) - cards + 1, cards):
        assert len(set(dealt[start : start + cards])) == cards


def test_streams_are_apart_from_orders():
    stream, other = Stream(1, 2), Stream(1, 3)
    assert not np.array_equal(stream.order(50), uniform_order(50, 1, 2))
    assert not np.array_equal(Stream(1, 2).order(50), other.order(50))
    np.testing.assert_array_equal(Stream(1, 2).order(50), Stream(1, 2).order(50))
    values = np.concatenate([Stream(seed, 0).uniforms(40) for seed in range(50)])
    assert (values >= 0).all()
    assert (values < 1).all()
    assert len(np.unique(values)) == len(values)
    assert abs(values.mean() - 0.5) < 4 * np.sqrt(1 / 12 / len(values))


def source_of(labels, levels, names=None, unique=False):
    labels = np.asarray(labels)
    names = names or tuple(tuple(f"{i}" for i in range(9)) for _ in levels)
    images = np.zeros((len(labels), 2, 2, 1), np.uint8)
    return ArraySource(images, labels, LabelTree(tuple(levels), names, unique))


LABELS = [[0, 0], [0, 1], [1, 0], [1, 1], [1, 1], [0, 0], [0, 1], [1, 0]]


def test_the_settings_choose_the_sampler():
    source = source_of(LABELS, ("kind", "leaf"))
    leaf = make_sampler(DataConfig(sampler="class_balanced"), source, 4)
    assert isinstance(leaf, ClassBalanced)
    # A name stands under both kinds: there are four leaves.
    assert len(leaf.members) == 4
    kind = DataConfig(sampler="m_per_class", sampler_level="kind", per_class=2)
    sampler = make_sampler(kind, source, 4, 3)
    assert isinstance(sampler, MPerClass)
    assert (len(sampler.members), sampler.m, sampler.seed) == (2, 2, 3)
    for level, groups in (("", 4), ("leaf", 4), ("-1", 4), ("kind", 3), ("0", 3)):
        config = DataConfig(sampler="hierarchical", sampler_level=level)
        assert make_sampler(config, source, 8).group == groups
    assert isinstance(make_sampler(DataConfig(), source, 4), data_lib.Uniform)


@pytest.mark.parametrize(
    ("config", "batch", "message"),
    [
        (
            {"sampler": "class_balanced", "sampler_level": "2"},
            4,
            r"sampler_level='2': .*'kind', 'leaf'",
        ),
        ({"sampler": "hierarchical", "sampler_level": "keaf"}, 4, r"sampler_level='keaf'"),
        (
            {"sampler": "m_per_class", "per_class": 3},
            4,
            "batch of 4 cannot have 3 images of each class",
        ),
        (
            {"sampler": "m_per_class", "per_class": 1},
            6,
            r"needs 6 classes, and there are 4 at level 'leaf': set data\.per_class to 2 or more",
        ),
        ({"sampler": "hierarchical"}, 9, "batch of 9 is larger than the data, which has 8"),
        ({"sampler": "class_balanced"}, 9, "batch of 9 is larger than the data, which has 8"),
    ],
)
def test_what_does_not_fit_is_refused(config, batch, message):
    with pytest.raises(ValueError, match=message):
        make_sampler(DataConfig(**config), source_of(LABELS, ("kind", "leaf")), batch)


@pytest.mark.parametrize("kind", KINDS)
def test_data_without_labels_are_refused(kind):
    config = DataConfig(sampler=kind, per_class=2)
    bare = ArraySource(np.zeros((8, 2, 2, 1), np.uint8))
    with pytest.raises(ValueError, match=rf"data\.sampler='{kind}' needs labels"):
        make_sampler(config, bare, 4)
    with pytest.raises(ValueError, match="none of the 8 examples has a label"):
        make_sampler(config, source_of(np.full((8, 2), -1), ("kind", "leaf")), 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "random"}, r"data\.sampler='random': expected one of"),
        ({"sampler_level": "kind"}, "the sampler 'uniform' knows no classes"),
        ({"sampler": "m_per_class", "per_class": 0}, r"data\.per_class=0"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)


def test_processes_have_their_rows_of_the_global_batch():
    source = source_of(LABELS * 3, ("kind", "leaf"))
    config = DataConfig(name="noise", image_size=2, channels=1, sampler="hierarchical")
    sampler = make_sampler(config, source, 8, 1)

    def batches(index, count):
        made = data_lib.train_batches(
            source, sampler, config, 1, 6, process_index=index, process_count=count
        )
        return [batch["index"] for batch in made]

    whole = batches(0, 1)
    for rows, *parts in zip(whole, *(batches(p, 4) for p in range(4)), strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), rows)
    np.testing.assert_array_equal(whole[0], sampler.indices(1))


def test_large_data_take_constant_time_for_each_image():
    rng = np.random.default_rng(0)
    n = 50_000
    leaf = rng.integers(0, 2500, n)
    labels = np.stack([leaf // 250, leaf // 10, leaf], axis=1)
    sampler = Hierarchical(labels, 500)
    began = time.process_time()
    sampler.indices(0)
    assert time.process_time() - began < 5  # 0.2 s on an idle core
    assert sampler.coverage > 0.95
