"""A network of a few thousand multiplications with BatchNorm over groups, and train steps of MoCo on it."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcl import mesh as mesh_lib
from jaxcl.experiment import in_sight_of
from jaxcl.methods import MoCo
from jaxcl.models import BackboneConfig, HeadSpec, Model
from jaxcl.models import build as build_model
from jaxcl.models.norm import BatchNorm
from jaxcl.state import make_init, make_train_step
from jaxcl.views import ViewsConfig, build_program

SIZE = 6
BATCH = 16
EXAMPLES = 40
LEVELS = 2

PROJECTION = HeadSpec(layers=(12, 5), batch_norm=False, bias=True, init_std=None)
BN_PROJECTION = HeadSpec(layers=(12, 5), last_bn_scale=False, init_std=None)
PREDICTION = HeadSpec(layers=(12, 5), last_batch_norm=False, init_std=None)

MODES = {
    "queue, shuffle": {"bn": "shuffle"},
    "queue, groups": {"bn": "groups"},
    "queue, global": {"bn": "global", "bn_groups": 1},
    "queue, ema": {"bn": "ema"},
    "queue, symmetric": {"symmetric": True, "fill": "noise"},
    "version 3": {
        "mechanism": "batch",
        "bn": "global",
        "bn_groups": 1,
        "symmetric": True,
        "projection": BN_PROJECTION,
        "prediction": PREDICTION,
        "scale": 2.0,
        "scale_by_temperature": True,
        "momentum_schedule": "cosine",
        "total_steps": 10,
    },
    "end to end": {"mechanism": "end_to_end", "bn": "shuffle"},
    "memory bank": {"mechanism": "memory_bank", "examples": EXAMPLES},
}


class Tiny(nn.Module):
    groups: int
    dtype: object = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8, dtype=self.dtype, param_dtype=self.dtype, name="dense1")(x)
        x = nn.relu(BatchNorm(self.groups, dtype=self.dtype, name="bn1")(x, train))
        x = nn.Dense(16, dtype=self.dtype, param_dtype=self.dtype, name="dense2")(x.mean(2))
        return nn.relu(BatchNorm(self.groups, dtype=self.dtype, name="bn2")(x, train)).mean(1)


def moco(**changes):
    views = 1 if changes.get("mechanism") == "memory_bank" else 2
    program = build_program(
        ViewsConfig(
            order=("flip", "gray"),
            ops={"flip": {}, "gray": {"prob": 0.5}},
            views=({},) * views,
        )
    )
    settings = {
        "bn_groups": 4,
        "levels": LEVELS,
        "projection": PROJECTION,
        "temperature": 0.2,
        "queue_size": 37,
        "momentum": 0.9,
    }
    return MoCo(program, **(settings | changes))


def model(method, dtype=jnp.float32):
    """The network of a method."""
    groups = getattr(method, "bn_groups", 1)
    config = BackboneConfig(width=1 / 32, stem="cifar", bn_groups=groups)  # F = 16
    built = build_model(config, method.heads)
    heads = tuple((name, head.clone(dtype=dtype)) for name, head in built.heads)
    backbone = Tiny(groups, dtype)
    return Model(config, backbone, heads, inputs=built.inputs)


def batches(steps, batch=BATCH, first=0, size=SIZE):
    """Batches of random images; the batch of a step is always the same."""
    for step in range(first, first + steps):
        rng = np.random.default_rng(step)
        yield {
            "image": rng.integers(0, 256, (batch, size, size, 3), np.uint8),
            "label": rng.integers(0, 3, (batch, LEVELS), np.int32),
            "index": (np.arange(batch, dtype=np.int32) + step * batch) % EXAMPLES,
        }


@dataclasses.dataclass(frozen=True)
class Run:
    """A train state on a mesh, and its step of gradient descent."""

    state: object
    step: object
    mesh: object

    @classmethod
    def of(cls, method, devices=1, dtype=jnp.float32):
        """A new state; the compiled functions are made once."""
        init, step, mesh = program(method, devices, dtype)
        return cls(init(jax.random.key(0)), step, mesh)

    def go(self, steps, first=0):
        """(the metrics of each step, the last state); the own state is used up.

        Each process gives its rows of the batches.
        """
        state, rows = self.state, []
        part = BATCH // mesh_lib.process_count()
        own = slice(part * mesh_lib.process_index(), part * (mesh_lib.process_index() + 1))
        for batch in batches(steps, first=first):
            local = {name: array[own] for name, array in batch.items()}
            state, metrics = self.step(state, mesh_lib.to_global(self.mesh, local))
            rows.append(mesh_lib.to_host(metrics))
        return rows, state


def outcome(method, devices, steps=3):
    """{"loss": of each step, "floats" and "others": of the parameters, statistics and memories} in float64 mode."""
    rows, state = Run.of(method, devices, jnp.float64).go(steps)
    leaves = jax.tree.leaves((state.params, state.batch_stats, state.extra))
    leaves = [np.ravel(x) for x in mesh_lib.to_host(leaves)]
    floats = [x for x in leaves if x.dtype.kind == "f"]
    others = [x for x in leaves if x.dtype.kind != "f"]
    return {
        "loss": np.array([row["loss"] for row in rows]),
        "floats": np.concatenate(floats),
        "others": np.concatenate([np.zeros(0, int), *others]),
    }


def assert_same(ours, theirs):
    """Two outcomes are equal but for rounding."""
    assert theirs["loss"].dtype == np.float64
    assert len(np.unique(theirs["loss"])) >= len(theirs["loss"]) - 1
    assert np.linalg.norm(theirs["floats"]) > 0
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-10, atol=1e-12)
    assert ours["floats"].shape == theirs["floats"].shape
    distance = np.linalg.norm(ours["floats"] - theirs["floats"])
    assert distance <= 1e-10 * np.linalg.norm(theirs["floats"])
    np.testing.assert_array_equal(ours["others"], theirs["others"])


def same_on_devices(method, counts):
    """The same steps on one device and on so many."""
    with jax.enable_x64(True):
        alone = outcome(method, 1)
        for count in counts:
            assert_same(outcome(method, count), alone)


@functools.lru_cache
def program(method, devices, dtype):
    """(jitted init, jitted step, mesh) of a method; the step takes the memory of its state."""
    mesh = mesh_lib.make_mesh(jax.devices()[:devices])
    network, tx = model(method, dtype), optax.sgd(0.1)
    init = make_init(method, network, tx, (SIZE, SIZE, 3))
    shardings = mesh_lib.state_shardings(mesh, jax.eval_shape(init, jax.random.key(0)))
    step = in_sight_of(mesh, make_train_step(method, network, tx, optax.constant_schedule(0.1)))
    jitted = jax.jit(
        step,
        in_shardings=(shardings, mesh_lib.batch_sharding(mesh)),
        out_shardings=(shardings, mesh_lib.replicated(mesh)),
        donate_argnums=0,
    )
    return jax.jit(init, out_shardings=shardings), jitted, mesh
