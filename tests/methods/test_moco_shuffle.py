"""Shuffling BN: a permutation that is the same on any number of devices, gathers nothing, and hides the group."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from moco_network import moco

from jaxcl import mesh as mesh_lib
from jaxcl.methods.shuffle import Shuffle
from jaxcl.models import HeadSpec
from jaxcl.models.heads import Head


@pytest.mark.parametrize("rows", [64, 48, 30, 1])
def test_it_is_a_permutation_and_can_be_undone(rows):
    x = np.arange(2 * rows).reshape(rows, 2)

    @jax.jit
    def there_and_back(key):
        shuffle = Shuffle.draw(key, rows)
        moved = shuffle(jnp.asarray(x))
        return moved, shuffle.undo(moved)

    orders = set()
    for seed in range(5):
        moved, back = map(np.asarray, there_and_back(jax.random.key(seed)))
        orders.add(tuple(moved[:, 0]))
        np.testing.assert_array_equal(np.sort(moved[:, 0]), x[:, 0])
        np.testing.assert_array_equal(moved[:, 1], moved[:, 0] + 1)
        np.testing.assert_array_equal(back, x)
    assert len(orders) == (5 if rows > 1 else 1)


def test_every_row_may_end_anywhere():
    draws, rows = 4000, 16

    def place(key):
        return Shuffle.draw(key, rows).undo(jnp.arange(rows))

    places = np.asarray(jax.jit(jax.vmap(place))(jax.random.split(jax.random.key(0), draws)))
    for row in range(rows):
        count = np.bincount(places[:, row], minlength=rows)
        # Chi-square with 15 degrees of freedom: above 50 once in 80,000.
        assert ((count - draws / rows) ** 2 / (draws / rows)).sum() < 50


# Rows that were once too many for square blocks, and rows of 6 numbers, which do not divide over 4 or 8 devices.
@pytest.mark.parametrize(("rows", "counts"), [(64, (2, 4, 8)), (24, (8,)), (200, (8,)), (30, (2,))])
def test_it_is_the_same_on_any_number_of_devices_and_gathers_nothing(rows, counts):
    x = np.random.default_rng(0).random((rows, 3, 2)).astype(np.float32)
    key = jax.random.key(3)
    here = jax.jit(lambda key: Shuffle.draw(key, rows)(jnp.asarray(x)))(key)
    for count in counts:
        mesh = mesh_lib.make_mesh(jax.devices()[:count])
        sharded = mesh_lib.batch_sharding(mesh)

        def there(key, x, mesh=mesh):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                shuffle = Shuffle.draw(key, rows)

                def there_and_back(x):
                    moved = shuffle(x)
                    back = shuffle.undo(moved.sum(-1))
                    return jnp.vdot(back, back) / 2, (moved, back)

                gradient, out = jax.grad(there_and_back, has_aux=True)(x)
                return gradient, *out

        places = (NamedSharding(mesh, PartitionSpec()), sharded)
        program = jax.jit(there, in_shardings=places, out_shardings=sharded).lower(key, x).compile()
        gradient, moved, back = program(key, jax.device_put(x, sharded))
        np.testing.assert_array_equal(moved, here)
        np.testing.assert_array_equal(back, x.sum(-1))
        np.testing.assert_array_equal(gradient, np.broadcast_to(x.sum(-1)[..., None], x.shape))
        sent = re.findall(
            r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(",
            program.as_text(),
        )
        assert {kind for _, kind in sent} == {"all-to-all"}
        # There and back, and the gradient's way, which is the same: no more than a device's own rows at a time.
        own = rows // count * (6 + -6 % count)
        sizes = [
            sum(
                np.prod([int(n) for n in shape.split(",")])
                for shape in re.findall(r"\w+\[([\d,]+)\]", result)
            )
            for result, _ in sent
        ]
        assert len(sizes) <= 8
        assert max(sizes) == own


def key_groups(bn, rows, groups, key):
    """The group in which MoCo's key encoder sees each row, of so many rows; i32[rows]."""
    method = moco(bn=bn, bn_groups=groups)

    def apply(params, stats, images, train, key, heads=None):
        group = jnp.arange(rows, dtype=jnp.float32) // (rows // groups)
        return (images, {"projection": (group[:, None],)}), stats

    k, _ = method.encode_keys(apply, {}, {}, jnp.zeros((rows, 2, 2, 3)), key)
    return k[:, 0].astype(jnp.int32)


@pytest.mark.parametrize(("rows", "groups"), [(64, 8), (48, 4)])
def test_queries_and_keys_are_in_other_groups(rows, groups):
    """Through MoCo's own key path: a key meets the rows of its query's group as often as any others, not always."""
    of_queries = np.arange(rows) // (rows // groups)
    np.testing.assert_array_equal(key_groups("groups", rows, groups, jax.random.key(0)), of_queries)
    draw = jax.jit(jax.vmap(lambda key: key_groups("shuffle", rows, groups, key)))
    of_keys = np.asarray(draw(jax.random.split(jax.random.key(7), 100)))
    for each in of_keys:
        np.testing.assert_array_equal(np.bincount(each), [rows // groups] * groups)
    mates = of_keys[:, :, None] == of_keys[:, None, :]
    others = ~np.eye(rows, dtype=bool)
    together = mates[:, (of_queries[:, None] == of_queries) & others].mean()
    expected = mates[:, others].mean()
    np.testing.assert_allclose(expected, (rows / groups - 1) / (rows - 1))
    # 22,400 pairs and more: four standard deviations are 0.011 at most.
    assert abs(together - expected) < 0.02


def test_a_probe_finds_the_group_of_keys_unless_they_were_shuffled():
    """Rows normalised together add up to nothing; so a row points away from the sum of its group's others.

    The keys are those of MoCo's own key path.
    """
    rows, groups = 256, 8
    head = Head(HeadSpec(layers=(24, 16), last_bn_scale=False, init_std=None), groups)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(rows, 2, 2, 3)), jnp.float32)
    variables = jax.jit(head.init, static_argnums=2)(jax.random.key(1), x.reshape(rows, -1), False)
    group = np.arange(rows) // (rows // groups)
    member = np.eye(groups)[group]

    def apply(params, stats, images, train, key, heads=None):
        h = images.reshape(rows, -1)
        layers, _ = head.apply(
            {"params": params, "batch_stats": stats}, h, train, mutable=["batch_stats"]
        )
        return (h, {"projection": layers}), stats

    def keys(bn):
        method = moco(bn=bn, bn_groups=groups)
        stats = variables["batch_stats"]
        return jax.jit(lambda key: method.encode_keys(apply, variables["params"], stats, x, key)[0])

    def accuracy(z):
        z = np.asarray(z, np.float64)
        others = member.T @ z - member[..., None] * z[:, None]  # [row, group, feature]
        return np.mean(np.einsum("rd,rgd->rg", z, others).argmin(1) == group)

    assert accuracy(keys("groups")(jax.random.key(0))) > 0.9
    shuffled = keys("shuffle")
    found = [accuracy(shuffled(jax.random.key(seed))) for seed in range(8)]
    # Chance is 1/8; of 2048 rows its standard deviation is 0.007. (Below it: a row's group has one other row less.)
    assert np.mean(found) < 1 / groups + 0.02
