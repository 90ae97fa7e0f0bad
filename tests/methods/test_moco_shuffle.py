"""Shuffling BN: a permutation that is the same on any number of devices, and hides the group."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxcl import mesh as mesh_lib
from jaxcl.methods.shuffle import Shuffle, blocks
from jaxcl.models import HeadSpec
from jaxcl.models.heads import Head


@pytest.mark.parametrize(
    ("rows", "count"), [(256, 16), (512, 16), (4096, 64), (64, 8), (48, 4), (30, 1), (1, 1)]
)
def test_blocks(rows, count):
    assert blocks(rows) == count


@pytest.mark.parametrize("rows", [64, 48, 30])
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
    assert len(orders) == 5


def test_every_row_may_end_anywhere():
    draws, rows = 4000, 16

    def place(key):
        return Shuffle.draw(key, rows).undo(jnp.arange(rows))

    places = np.asarray(jax.jit(jax.vmap(place))(jax.random.split(jax.random.key(0), draws)))
    for row in range(rows):
        count = np.bincount(places[:, row], minlength=rows)
        # Chi-square with 15 degrees of freedom: above 50 once in 80,000.
        assert ((count - draws / rows) ** 2 / (draws / rows)).sum() < 50


@pytest.mark.parametrize(("rows", "groups"), [(64, 8), (512, 8), (64, 4)])
def test_queries_and_keys_are_in_other_groups(rows, groups):
    """The rows that a key shares its group with come evenly from all groups of queries."""
    group = np.arange(rows) // (rows // groups)
    moved = jax.jit(lambda key: Shuffle.draw(key, rows)(jnp.asarray(group)))(jax.random.key(7))
    for mates in np.split(np.asarray(moved), groups):
        np.testing.assert_array_equal(np.bincount(mates), [rows // groups // groups] * groups)


def test_it_is_the_same_on_any_number_of_devices_and_sends_each_row_once():
    rows = 64
    x = np.random.default_rng(0).random((rows, 3, 2)).astype(np.float32)
    key = jax.random.key(3)
    here = jax.jit(lambda key: Shuffle.draw(key, rows)(jnp.asarray(x)))(key)
    for count in (2, 4, 8):
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
        used = re.findall(
            r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(",
            program.as_text(),
        )
        assert set(used) == {"all-to-all"}


def test_a_probe_finds_the_group_of_keys_unless_they_were_shuffled():
    """Rows normalised together add up to nothing; so a row points away from the sum of its group's others."""
    rows, groups = 256, 8
    head = Head(HeadSpec(layers=(24, 16), last_bn_scale=False, init_std=None), groups)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(rows, 12)), jnp.float32)
    variables = jax.jit(head.init, static_argnums=2)(jax.random.key(1), x, False)
    group = np.arange(rows) // (rows // groups)
    member = np.eye(groups)[group]

    def encode(x):
        return head.apply(variables, x, True, mutable=["batch_stats"])[0][-1]

    @jax.jit
    def shuffled(key):
        shuffle = Shuffle.draw(key, rows)
        return shuffle.undo(encode(shuffle(x)))

    def accuracy(z):
        z = np.asarray(z, np.float64)
        others = member.T @ z - member[..., None] * z[:, None]  # [row, group, feature]
        return np.mean(np.einsum("rd,rgd->rg", z, others).argmin(1) == group)

    assert accuracy(jax.jit(encode)(x)) > 0.9
    found = [accuracy(shuffled(jax.random.key(seed))) for seed in range(8)]
    # Chance is 1/8; of 2048 rows its standard deviation is 0.007. (Below it: a row's group has one other row less.)
    assert np.mean(found) < 1 / groups + 0.02
