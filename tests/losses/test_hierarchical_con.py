"""HiMulCon, HiConE and HiMulConE: golden values, and a dynamic form in loops that drops samples from lists."""

import functools

import hierarchical_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pair_oracles as oracle
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxcl import losses
from jaxcl.losses.hierarchical import level_weights, preset, representatives

# Category, product, variation.
GOLDEN = np.array(
    [
        [0, 10, 1],
        [0, 10, 1],
        [0, 10, 2],
        [0, 11, 1],
        [1, 20, 1],
        [1, 20, 1],
        [1, 21, 1],
        [2, 30, 1],
    ]
)
NAMES = ("himulcon", "hicone", "himulcone")
SETTINGS = [
    ("none", True),
    ("none", False),
    ("layer_mean", True),
    ("pair_global", False),
    ("pair_anchor", True),
    ("pair_anchor", False),
    pytest.param("layer_mean", False, marks=pytest.mark.slow),
    pytest.param("pair_global", True, marks=pytest.mark.slow),
]
SHAPE = (8, 2, 8)
representatives_of = jax.jit(representatives)
hicone = jax.jit(losses.hicone, static_argnums=(2, 3))


@functools.cache
def compiled(constraint="none", dedup=False, **settings):
    """``(loss, terms), gradient``, compiled; the temperature is 0.1 unless given."""
    settings = {"temperature": 0.1, "constraint": constraint, "dedup": dedup} | settings

    def terms(z, labels):
        found = losses.hierarchical_terms(z, labels, **settings)
        return found.loss, found

    return jax.jit(jax.value_and_grad(terms, has_aux=True))


def golden_z(shift):
    return oracle.two_views(oracle.sines(16, 8, shift))


def random_z(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape or SHAPE)


def random_labels(seed, batch=8, levels=3):
    """A tree with up to three children a node, whose names repeat; ragged, and with holes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (batch, levels))
    ends = rng.integers(1, levels + 1, batch)
    labels[(np.arange(levels) >= ends[:, None]) & (rng.uniform(size=(batch, 1)) < 0.4)] = -1
    labels[rng.uniform(size=labels.shape) < 0.03] = -1
    return labels


def close(got, expected, tolerance):
    got, expected = np.asarray(got), np.asarray(expected)
    assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)


@pytest.fixture
def x64():
    """float64, in which the tests below share what they compile."""
    with jax.enable_x64(True):
        yield


# Golden values


@jax.jit
def every_preset(z):
    """The three official losses, the paper's three, and two of these with floors by anchor."""
    found = [
        getattr(losses, name)(z, GOLDEN, 0.1, form)
        for form in ("official", "paper")
        for name in NAMES
    ]
    for name in NAMES[1:]:
        found.append(getattr(losses, name)(z, GOLDEN, 0.1, "paper", constraint="pair_anchor"))
    return jnp.stack(found)


def test_golden():
    some = {
        0.3: [
            *(9.253021822743735, 6.829471994257494, 13.118540445502163),
            *(11.939880764823872, 12.14830281249105, 21.03315874742086),
        ],
        2.1: [
            *(10.047523521370296, 5.359477669955888, 10.239148946930948),
            *(9.942945314940653, 8.616739870845237, 14.859881867957164),
            *(6.4730552518534274, 11.733150221172176),
        ],
        2.2: [8.91879799378691, 4.982332267387963, 9.570421756999325],
    }
    for shift, expected in some.items():
        found = every_preset(jnp.asarray(golden_z(shift), jnp.float32))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found[: len(expected)], expected, rtol=2e-6)


def test_golden_layers(x64):
    """Means of the layers, fine to coarse, and the samples that stand at each."""
    (_, terms), _ = compiled("layer_mean", dedup=True)(golden_z(0.3), GOLDEN)
    scale = preset("himulcone", "official", 0.1)["scale"]
    layers = scale * terms.unconstrained[::-1]
    np.testing.assert_allclose(layers, [9.105963, 4.697505, 3.234880], rtol=1e-6)
    np.testing.assert_array_equal(terms.floored, [1, 1, 0])
    stand_for = representatives_of(GOLDEN)
    assert [len(np.unique(column)) for column in stand_for.T[::-1]] == [6, 5, 3]


def test_golden_floors(x64):
    """All coarser pairs are floored at the same number."""
    (_, terms), _ = compiled("pair_global")(golden_z(0.3), GOLDEN)
    np.testing.assert_allclose(terms.levels[:2], [15.03537, 15.03537], rtol=1e-6)
    np.testing.assert_array_equal(terms.floored, [1, 1, 0])


def test_presets():
    assert preset("himulcone", "official", 0.14) == {
        "constraint": "layer_mean",
        "penalty": "exp",
        "dedup": True,
        "divisor": "levels+1",
        "scale": pytest.approx(2.0),
    }
    assert preset("hicone", "paper", 0.14) == {
        "constraint": "pair_global",
        "penalty": "constant",
        "dedup": False,
        "divisor": "levels",
        "scale": 1.0,
    }
    assert preset("himulcon", "official", 0.1)["constraint"] == "none"


# The dynamic form


@pytest.mark.parametrize(("constraint", "dedup"), SETTINGS)
def test_masks_equal_lists_on_a_hundred_trees(x64, constraint, dedup):
    """Static shapes: one compilation for all of them."""
    run = compiled(constraint, dedup)
    before = run._cache_size()
    for seed in range(100):
        z, labels = random_z(seed), random_labels(seed)
        (value, found), _ = run(z, labels)
        expected, means, floored = hierarchical_oracle.loss(
            z, labels, 0.1, constraint, "exp", dedup, "levels"
        )
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        np.testing.assert_allclose(found.levels, means, rtol=1e-12)
        sure = ~np.isnan(floored)
        np.testing.assert_allclose(np.asarray(found.floored)[sure], floored[sure], rtol=1e-12)
    assert run._cache_size() <= before + 1


@pytest.mark.parametrize(("views", "constraint"), [(1, "pair_anchor"), (3, "pair_global")])
def test_other_numbers_of_views(x64, views, constraint):
    """With one view some anchors have no positives, and some no floor."""
    settings = {"penalty": "pow2", "dedup": constraint != "pair_anchor", "divisor": "levels+1"}
    for seed in range(8):
        z, labels = random_z(seed, 8, views, 3), random_labels(seed, levels=2)
        (value, _), gradient = compiled(constraint, **settings)(z, labels)
        expected, _, _ = hierarchical_oracle.loss(z, labels, 0.1, constraint, **settings)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        assert np.all(np.isfinite(gradient))


def test_representatives():
    labels = np.array(
        [[1, 5, 2], [0, 5, 2], [1, 5, 1], [1, 5, 2], [1, -1, 7], [0, 5, -1], [-1, 5, 2]]
    )
    found = representatives_of(labels)
    # The path of the fifth image ends at the first level, and is the first in order there.
    expected = [[4, 2, 0], [5, 5, 1], [4, 2, 2], [4, 2, 0], [4, 4, 4], [5, 5, 5], [6, 6, 6]]
    np.testing.assert_array_equal(found, expected)


# Gradients


@functools.partial(jax.jit, static_argnums=(3, 4))
@jax.value_and_grad
def plain(z, alive, agree, constraint, detach_floor):
    """The loss with exp weights on matrices of pairs, as autodiff has it; masks of each level are given."""
    levels, count = alive.shape
    rows = z.reshape(count, -1)
    rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    s = rows @ rows.T / 0.1
    total, floor = 0.0, -jnp.inf
    for level in reversed(range(levels)):
        other = alive[level][:, None] & alive[level][None, :] & ~jnp.eye(count, dtype=bool)
        lse = jax.nn.logsumexp(jnp.where(other, s, -1e9), axis=1, keepdims=True)
        positive, pairs = other & agree[level], lse - s
        if constraint.startswith("pair"):
            pairs = jnp.where(pairs > floor + 1e-9, pairs, floor)
        own = jnp.where(positive, pairs, 0).sum(1) / jnp.maximum(positive.sum(1), 1)
        mean = own.sum() / alive[level].sum()
        if constraint == "layer_mean":
            mean = floor = jnp.maximum(mean, floor)
        elif constraint != "none":
            axis = None if constraint == "pair_global" else 1
            worst = jnp.where(positive, pairs, -jnp.inf).max(axis, keepdims=True)
            floor = jnp.maximum(floor, worst)
        floor = jax.lax.stop_gradient(floor) if detach_floor else floor
        total += jnp.exp(1 / (levels - level)) * mean
    return total / levels


def check_gradient(constraint, dedup, detach_floor):
    """Whether any term was floored in some of the trees."""
    settings = {"detach_floor": True} if detach_floor else {}
    some_floored = False
    for seed in range(6):
        z, labels = random_z(seed), random_labels(seed)
        (value, terms), gradient = compiled(constraint, dedup, **settings)(z, labels)
        masks = hierarchical_oracle.masks(labels, 2, dedup)
        wanted, wanted_gradient = plain(jnp.asarray(z), *masks, constraint, detach_floor)
        np.testing.assert_allclose(value, wanted, rtol=1e-12)
        close(gradient, wanted_gradient, 1e-10)
        some_floored |= bool(np.any(terms.floored))
    return some_floored


@pytest.mark.parametrize(("constraint", "dedup"), SETTINGS)
def test_the_gradient_is_that_of_matrices(x64, constraint, dedup):
    assert check_gradient(constraint, dedup, detach_floor=False) == (constraint != "none")


@pytest.mark.parametrize(
    ("constraint", "dedup"),
    [("pair_anchor", False), pytest.param("layer_mean", True, marks=pytest.mark.slow)],
)
def test_a_detached_floor_has_no_gradient(x64, constraint, dedup):
    assert check_gradient(constraint, dedup, detach_floor=True)


# What the losses mean


def test_finer_levels_weigh_more(x64):
    """e for the finest of three levels, then e^(1/2) and e^(1/3)."""
    (value, terms), _ = compiled()(random_z(3), GOLDEN)
    paths = [GOLDEN[:, 0], GOLDEN[:, 1], np.array([0, 0, 1, 2, 3, 3, 4, 5])]
    each = [oracle.group_loss(random_z(3), path, 0.1) for path in paths]
    np.testing.assert_allclose(terms.levels, each, rtol=1e-12)
    np.testing.assert_allclose(value, np.dot(np.exp([1 / 3, 1 / 2, 1]), each) / 3, rtol=1e-12)
    (value, _), _ = compiled(penalty=(3.0, 0.0, 0.5))(random_z(3), GOLDEN)
    np.testing.assert_allclose(value, np.dot([3, 0, 0.5], each) / 3, rtol=1e-12)
    np.testing.assert_allclose(level_weights(3, "pow2"), [2 ** (1 / 3), 2**0.5, 2])
    assert level_weights(3, "constant") == (1, 1, 1)
    assert level_weights(3, (3, 0, 0.5)) == (3.0, 0.0, 0.5)


def test_one_level_is_sup_con(x64):
    """With penalty 1; the official form has tau / 0.07 and half of it."""
    z, labels = random_z(4), np.array([0, 0, 4, -1, 0, -1, 0, 4])
    expected = oracle.group_loss(z, labels, 0.1)
    (value, terms), _ = compiled("pair_anchor", penalty="constant")(z, labels[:, None])
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_array_equal(terms.floored, [0])
    official = hicone(z, labels[:, None], 0.1, "official")
    np.testing.assert_allclose(official, expected * (0.1 / 0.07) / 2, rtol=1e-12)


def planar(degrees):
    """Rows of two equal views, z[B, 2, 2] at angles, filled up with zeros to SHAPE."""
    radians = np.deg2rad(np.repeat(np.asarray(degrees, np.float64), 2))
    rows = np.stack([np.cos(radians), np.sin(radians)], axis=1).reshape(8, 2, 2)
    return np.concatenate([rows, np.zeros((8, 2, 6))], axis=2)


@pytest.mark.parametrize("constraint", ["layer_mean", "pair_global", "pair_anchor"])
def test_the_floor_comes_from_the_finer_level(x64, constraint):
    """The paper's index, l - 1 with levels that count up from the coarse, is corrected to l + 1."""
    labels = np.array([[0, 0], [0, 0], [0, 1], [0, 1], [1, 2], [1, 2], [1, 3], [1, 3]])
    labels = np.concatenate([labels, labels[:, 1:]], axis=1)
    run = compiled(constraint)
    # Finer pairs are far and coarse ones near: the coarse level pays what the finer does.
    (_, bad), _ = run(planar([0, 60, 1, 61, 180, 240, 181, 241]), labels)
    assert bad.floored[0] > 0.3
    assert bad.levels[0] > bad.unconstrained[0] + 0.1
    # Finer pairs are near and coarse ones far, as they should be: every row is placed as every
    # other, and nothing is changed anywhere. A floor from the coarser level would change the finer.
    (_, good), _ = run(planar([-1, 1, 89, 91, 179, 181, 269, 271]), labels)
    assert good.levels[0] > good.levels[2] + 0.1
    np.testing.assert_allclose(good.levels[0], good.unconstrained[0], rtol=1e-2)
    for found in (good, bad):
        assert found.floored[2] == 0
        np.testing.assert_allclose(found.levels[2], found.unconstrained[2], rtol=1e-12)


def test_a_coarse_level_costs_at_least_the_largest_of_the_finer(x64):
    for seed in range(10):
        z, labels = random_z(seed), random_labels(seed)
        pairs = hierarchical_oracle.pair_losses(z, labels, 0.1, False)[::-1]
        largest = [max(max(own) for own in level.values()) for level in pairs]
        (_, terms), _ = compiled("pair_global")(z, labels)
        assert terms.levels[0] >= largest[1] - 1e-12
        assert terms.levels[1] >= largest[2] - 1e-12
        (_, terms), _ = compiled("layer_mean", dedup=True)(z, labels)
        assert terms.levels[0] >= terms.levels[1] >= terms.levels[2]


def test_names_may_repeat_under_other_parents(x64):
    paths = np.array(
        [[0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [1, 2, 3], [1, 3, 4], [2, 4, 5]]
    )
    found = [compiled("pair_anchor")(random_z(5), labels)[0][0] for labels in (GOLDEN, paths)]
    assert found[0] == found[1]


def test_without_labels_every_level_is_nt_xent(x64):
    for dedup in (True, False):
        (_, terms), _ = compiled(dedup=dedup)(random_z(6), np.full((8, 3), -1))
        expected = oracle.group_loss(random_z(6), None, 0.1)
        np.testing.assert_allclose(terms.levels, [expected] * 3, rtol=1e-12)


# Degenerate input


def degenerate():
    z = random_z(7).astype(np.float32)
    copies, zeros = z.copy(), z.copy()
    copies[4:], zeros[0, 0] = copies[:4], 0
    return [
        (z, np.zeros((8, 3), int)),
        (z, np.full((8, 3), -1)),
        (copies, GOLDEN),
        (zeros, GOLDEN),
        (np.ones_like(z), GOLDEN),
        (np.zeros_like(z), GOLDEN),
    ]


def check_degenerate(run, dtype):
    for z, labels in degenerate():
        (value, terms), gradient = run(z.astype(dtype), labels)
        assert np.isfinite(value)
        assert all(np.all(np.isfinite(x)) for x in terms)
        assert np.all(np.isfinite(gradient))
    z = random_z(8).astype(dtype)
    z[3, 1, 2] = np.nan
    assert np.isnan(run(z, GOLDEN)[0][0])


@pytest.mark.parametrize(("constraint", "dedup"), SETTINGS)
def test_degenerate_batches_are_finite_and_a_nan_is_not_hidden(x64, constraint, dedup):
    check_degenerate(compiled(constraint, dedup), np.float64)


def test_a_cold_temperature_in_float32_is_right():
    settings = {"constraint": "pair_anchor", "dedup": False}
    run = compiled(temperature=0.01, **settings)
    (value, _), _ = run(random_z(9).astype(np.float32), GOLDEN)
    expected = hierarchical_oracle.loss(
        random_z(9), GOLDEN, 0.01, penalty="exp", divisor="levels", **settings
    )
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    check_degenerate(run, np.float32)


def test_a_single_image_has_no_loss():
    z, labels = jnp.ones((1, 1, 3)), jnp.zeros((1, 3), jnp.int32)
    (value, _), gradient = compiled("pair_anchor")(z, labels)
    assert value == 0
    assert not np.any(gradient)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": GOLDEN[:, 0]}, r"labels must be int\[8, L\].*got int64\[8\]"),
        ({"labels": GOLDEN[:5]}, r"labels must be int\[8, L\].*got int64\[5, 3\]"),
        ({"labels": GOLDEN[:, :0]}, r"labels must be int\[8, L\].*got int64\[8, 0\]"),
        ({"labels": GOLDEN + 0.5}, r"labels must be integers, got float64"),
        ({"z": np.ones((8, 3))}, r"z must be \[batch, views, features\]"),
        (
            {"constraint": "pair"},
            r'constraint must be one of "none", "layer_mean", .* got \'pair\'',
        ),
        ({"penalty": "linear"}, r"penalty must be one of .* got 'linear'"),
        ({"penalty": (1.0,)}, r"penalty=\(1.0,\): expected a weight for each of 3 levels"),
        ({"penalty": (1.0, -1.0, 0.0)}, r"expected finite weights of 0 or more, one above 0"),
        ({"divisor": "none"}, r"divisor must be one of .* got 'none'"),
        ({"temperature": 0.0}, r"temperature must be a positive number"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    arguments = {"z": np.ones((8, 2, 3)), "labels": GOLDEN} | changes
    with pytest.raises(ValueError, match=message):
        losses.hierarchical_con(**arguments)


def test_an_unknown_form_is_named():
    with pytest.raises(ValueError, match=r'form must be one of "official", "paper", got \'code\''):
        losses.himulcon(np.ones((8, 2, 3)), GOLDEN, form="code")


# Devices and memory


@pytest.mark.parametrize(
    ("devices", "impl", "constraint", "dedup"),
    [
        (2, "tiled", "pair_anchor", True),
        pytest.param(4, "dense", "layer_mean", True, marks=pytest.mark.slow),
        (8, "ring", "pair_global", False),
        (8, "ring", "none", True),
        (4, "tiled", "none", True),
        (8, "ring", "layer_mean", True),
        (4, "tiled", "layer_mean", True),
        pytest.param(8, "dense", "pair_anchor", True, marks=pytest.mark.slow),
        pytest.param(4, "ring", "pair_anchor", False, marks=pytest.mark.slow),
        pytest.param(1, "tiled", "pair_global", False, marks=pytest.mark.slow),
    ],
)
def test_the_number_of_devices_changes_nothing(x64, devices, impl, constraint, dedup):
    chosen = jax.devices()[:devices]
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=chosen)
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def loss(z, labels):
        return losses.hierarchical_con(
            z, labels, 0.1, constraint, dedup=dedup, impl=impl, mesh=mesh
        )

    spread = jax.jit(jax.value_and_grad(loss), in_shardings=(sharding, sharding))
    for seed in range(5):
        z, labels = random_z(seed), random_labels(seed)
        (alone, _), alone_gradient = compiled(constraint, dedup)(z, labels)
        value, gradient = spread(z, labels)
        np.testing.assert_allclose(value, alone, rtol=1e-12)
        close(gradient, alone_gradient, 1e-11)


@pytest.mark.slow
def test_the_matrix_of_pairs_is_never_made():
    """16,384 rows, whose matrix has 1 GiB."""
    z = jax.ShapeDtypeStruct((8192, 2, 32), jnp.float32)
    labels = jax.ShapeDtypeStruct((8192, 3), jnp.int32)
    step = compiled("pair_anchor", impl="tiled").lower(z, labels).compile()
    assert step.memory_analysis().temp_size_in_bytes <= 32 * 2**20
