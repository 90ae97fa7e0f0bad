"""Mining: masks that equal loops over triplets and pairs, divide all triplets, and carry no gradient."""

import jax
import jax.numpy as jnp
import metric_oracle as oracle
import numpy as np
import pair_oracles
import pytest

from jaxcl.losses import Reference, anchors, mining, triplet_counts, triplets

GOLDEN = pair_oracles.sines(6, 8, 0.7)
PAIRS = np.array([0, 0, 1, 1, 2, 2])


def masks(labels):
    """(positive, negative), bool[N, N]."""
    same = labels[:, None] == labels[None, :]
    return same & ~np.eye(len(labels), dtype=bool), ~same


def random_world(seed, count=9):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    return oracle.World(rng.normal(size=(count, 3)), labels), *masks(labels)


def chosen(mask):
    """The pairs of a mask, as a set."""
    return set(zip(*np.nonzero(np.asarray(mask)), strict=True))


def test_three_kinds_divide_all_triplets_of_a_thousand_batches():
    """Each triplet is of one kind, whatever the distances; the counts are those of NumPy."""
    rng = np.random.default_rng(0)
    # Coarse distances, so that some triplets lie on the borders between kinds.
    d = rng.integers(0, 9, (1000, 7, 7)) / 8
    labels = rng.integers(0, 3, (1000, 7))
    same = labels[:, :, None] == labels[:, None, :]
    positive, negative = same & ~np.eye(7, dtype=bool), ~same
    margins = np.array([0.0, 0.125, 0.25, 10.0])[np.arange(1000) % 4]
    triplet = positive[:, :, :, None] & negative[:, :, None, :]
    t = d[:, :, None, :] - d[:, :, :, None]

    @jax.jit
    def kinds(t, margin):
        return {k: mining.triplet_kind(t, k, margin) for k in mining.KINDS}

    found = {k: np.asarray(v) for k, v in kinds(t, margins[:, None, None, None]).items()}
    np.testing.assert_array_equal(sum(v.astype(int) for v in found.values()), 1)
    limit = margins[:, None, None, None]
    for name, mask in (("hard", t <= 0), ("semihard", (t > 0) & (t <= limit)), ("easy", t > limit)):
        counted = (found[name] & triplet).sum((1, 2, 3))
        np.testing.assert_array_equal(counted, (mask & triplet).sum((1, 2, 3)))
        assert counted.any()


def test_golden_counts_of_kinds():
    d = oracle.World(GOLDEN, PAIRS).d
    positive, negative = masks(PAIRS)
    triplet = positive[:, :, None] & negative[:, None, :]
    t = jnp.asarray(d[:, None, :] - d[:, :, None])
    counts = [int((mining.triplet_kind(t, k, 0.2) & triplet).sum()) for k in mining.KINDS]
    assert counts == [16, 7, 1]


def counts_by_loops(world, margin):
    found = dict.fromkeys(("triplets", *mining.KINDS), 0)
    for a, p, n in world.triplets():
        t = world.d[a, n] - world.d[a, p]
        found["triplets"] += 1
        found["hard" if t <= 0 else "semihard" if t <= margin else "easy"] += 1
    return found


@pytest.mark.parametrize("referred", [False, True], ids=["alone", "reference"])
@pytest.mark.parametrize("blocks", [False, True], ids=["whole", "blocks"])
def test_counts_of_kinds_equal_loops_on_random_batches(referred, blocks, monkeypatch):
    """Classes of any size, unknown labels, images of several rows, keys that are not to be used; some anchors at a time."""
    rows, further = 13, 6
    if blocks:
        monkeypatch.setattr(anchors, "ELEMENTS", 4 * (rows + further))

    @jax.jit
    def count(z, labels, images, keys):
        reference = Reference(*keys) if referred else None
        return triplet_counts(z, labels, 0.3, images=images, reference=reference)

    rng, seen = np.random.default_rng(0), []
    for _ in range(60):
        z = rng.normal(size=(rows + further, 3)).astype(np.float32)
        labels = np.minimum(rng.geometric(0.4, rows + further) - 2, 4)
        images = rng.integers(0, rng.integers(6, 40), rows)
        valid = rng.random(further) < 0.7
        keys = z[rows:], labels[rows:], valid
        world = oracle.World(
            z[:rows], labels[:rows], keys if referred else None, images=images.tolist()
        )
        expected = counts_by_loops(world, 0.3)
        found = count(z[:rows], labels[:rows], images, keys)
        assert {k: int(v) for k, v in found.items()} == expected
        seen.append(expected)
    assert all(any(one[kind] for one in seen) for kind in mining.KINDS)
    assert len({one["triplets"] for one in seen}) > 20


def test_counts_beyond_what_floats_count_are_exact():
    """On whole numbers, which have no rounding; 700 rows of classes of 349 and 351."""
    rng = np.random.default_rng(0)
    z = rng.integers(-9, 9, (700, 2))
    labels = np.repeat([0, 1], [349, 351])
    d = np.sum((z[:, None] - z) ** 2, axis=2)
    expected = dict.fromkeys(("triplets", *mining.KINDS), 0)
    for i in range(700):
        same = labels == labels[i]
        negatives, positives = np.sort(d[i, ~same]), np.delete(d[i], i)[np.delete(same, i)]
        near, within = (
            int(np.searchsorted(negatives, positives + m, "right").sum()) for m in (0, 80)
        )
        expected["triplets"] += len(negatives) * len(positives)
        expected["hard"] += near
        expected["semihard"] += within - near
        expected["easy"] += len(negatives) * len(positives) - within
    assert min(expected.values()) > 2**24
    count = jax.jit(
        lambda z: triplet_counts(z, labels, 80, distance="squared_l2", normalized=False)
    )
    found = count(z.astype(np.float32))
    assert {k: int(v) for k, v in found.items()} == expected


def test_a_sum_beyond_32_bits_is_their_highest_number():
    rng = np.random.default_rng(0)
    for highest, rows in ((2**16, 65537), (2**31, 3), (2**32, 2), (2**32, 65537)):
        counts = rng.integers(0, highest, rows).astype(np.uint32)
        total = int(counts.sum(dtype=np.uint64))
        assert int(triplets.exact_sum(jnp.asarray(counts))) == min(total, 2**32 - 1)
        with jax.enable_x64(True):
            assert int(triplets.exact_sum(jnp.asarray(counts))) == total
    for last, total in ((0, 2**32 - 1), (1, 2**32 - 1)):
        assert int(triplets.exact_sum(jnp.asarray([2**32 - 1, last], jnp.uint32))) == total


def test_negatives_in_absolute_margins():
    """Nearer than positives are to be; between the margins; far enough: on both borders too."""
    d = jnp.array([0.0, 0.19, 0.2, 0.5, 0.79, 0.8, 1.4])
    found = {k: np.asarray(mining.negative_kind(d, k, 0.2, 0.8)) for k in mining.KINDS}
    np.testing.assert_array_equal(found["hard"], [1, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(found["semihard"], [0, 0, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(found["easy"], [0, 0, 0, 0, 0, 1, 1])


@pytest.fixture(scope="module")
def triplets_of_positives():
    """mining -> the triplets that it takes, asked positive by positive."""

    def ask(name, margin):
        def one(d, positive, negative, p):
            mask = mining.negatives_of(name, d[:, p][:, None], d, negative, margin)
            return mask & positive[:, p][:, None]

        return jax.jit(jax.vmap(one, (None, None, None, 0), 1))

    return ask


@pytest.mark.parametrize(
    "name", ["all", "hard", "semihard", "easy", "violating", "closest_semihard", "facenet"]
)
def test_negatives_of_positives_equal_loops(name, triplets_of_positives):
    run = triplets_of_positives(name, 0.3)
    for seed in range(4):
        world, positive, negative = random_world(seed)
        found = run(jnp.asarray(world.d), positive, negative, jnp.arange(9))
        expected = set(oracle.mined(world, name, 0.3))
        assert {(int(a), int(p), int(n)) for a, p, n in chosen(found)} == expected
        assert expected


@pytest.mark.parametrize("name", mining.ONE_TRIPLET)
def test_one_triplet_of_each_anchor_equals_loops(name):
    mine = jax.jit(mining.hardest if name == "batch_hard" else mining.easy_positive)
    for seed in range(6):
        world, positive, negative = random_world(seed)
        p, n, found = (np.asarray(x) for x in mine(jnp.asarray(world.d), positive, negative))
        got = [(i, int(p[i]), int(n[i])) for i in range(9) if found[i]]
        assert got == oracle.mined(world, name, 0)
    assert len(got) > 0


@pytest.mark.parametrize("name", mining.PAIR_MININGS)
def test_pairs_equal_loops(name):
    run = jax.jit(
        lambda d, p, n: mining.pairs(name, d, p, n, pos_margin=0.9, neg_margin=1.3, epsilon=0.05)
    )
    for seed in range(4):
        world, positive, negative = random_world(seed)
        found = run(jnp.asarray(world.d), positive, negative)
        near, far = oracle.mined_pairs(world, name, 0.9, 1.3, 0.05)
        assert chosen(found.positive) == set(near)
        assert chosen(found.negative) == set(far)
        assert near
        assert far


def test_equal_distances_give_the_first_key():
    d = jnp.array([[0.0, 1.0, 1.0, 2.0, 2.0]])
    positive = jnp.array([[False, True, True, False, False]])
    negative = jnp.array([[False, False, False, True, True]])
    assert [int(x[0]) for x in mining.hardest(d, positive, negative)] == [1, 3, 1]
    assert chosen(mining.nearest(d, negative)) == {(0, 3)}
    assert chosen(mining.farthest(d, positive)) == {(0, 1)}
    nothing = jnp.zeros_like(negative)
    assert not bool(mining.hardest(d, positive, nothing).found[0])
    assert not bool(mining.easy_positive(d, nothing, negative).found[0])
    assert chosen(mining.nearest(d, nothing)) == set()


def test_weights_of_distances_are_the_paper_s():
    """1 / q(d) of the sphere's density, cut off at both ends."""
    d = np.array([[0.1, 0.5, 0.9, 1.2, 1.3999, 1.4, 1.8]])
    negative = np.array([[1, 1, 1, 0, 1, 1, 1]], bool)
    features = 8
    found = np.exp(np.asarray(mining.distance_weights(jnp.asarray(d), negative, features)))
    for value, weight, drawn in zip(d[0], found[0], [1, 1, 1, 0, 1, 0, 0], strict=True):
        x = max(value, 0.5)
        density = x ** (features - 2) * (1 - x**2 / 4) ** ((features - 3) / 2)
        np.testing.assert_allclose(weight, drawn / density, rtol=1e-5)


def test_draws_follow_their_weights():
    """Within four standard deviations of the binomial; a row without weights has no draw."""
    weights = np.array([0.1, 0.6, 0.0, 0.3])
    with np.errstate(divide="ignore"):
        rows = jnp.asarray(np.log(np.tile(weights, (4000, 1))), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(jax.jit(mining.draw)(keys, rows))
    np.testing.assert_array_equal(drawn.sum(1), 1)
    share = drawn.mean(0)
    assert np.all(np.abs(share - weights) <= 4 * np.sqrt(weights * (1 - weights) / 4000))
    assert not mining.draw(keys[:2], jnp.full((2, 4), -jnp.inf)).any()


def test_weights_have_no_gradient():
    """They are numbers, unlike masks, and rise and fall with the distances. (Of masks: see the losses.)"""
    world, _, negative = random_world(0)

    def total(d):
        weights = mining.distance_weights(d, negative, 3)
        return jnp.sum(jnp.where(weights > -jnp.inf, weights, 0))

    value, gradient = jax.jit(jax.value_and_grad(total))(jnp.asarray(world.d))
    assert value != 0
    np.testing.assert_array_equal(gradient, 0)
