"""What methods remember between steps: averages of parameters, a queue of keys, a row for every image.

All of it lives in `extra`, and so in every checkpoint. Nothing here has a gradient. Sizes are free: a queue takes any number of
keys at once, whether it divides the queue's size or exceeds it, and a slot that holds nothing yet says so.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any

FILLS = ("mask", "noise")

CROWDED = 0.25
"""From this share of own keys or rows on a dictionary is called too large for its data."""


def crowded(queue_size: int, examples: int, keys_per_image: int = 1) -> tuple[str, ...]:
    """The remark about a queue that is large for its data, or none.

    Args:
      queue_size: K.
      examples: images of the training data; 0: not known, and nothing is said.
      keys_per_image: that a step puts into the queue.
    """
    share = queue_size / keys_per_image / examples if examples else 0
    if share < CROWDED:
        return ()
    return (
        f"method.queue_size={queue_size}: the queue holds keys of {min(share, 1):.0%} of the {examples:,} images (MoCo's: 5 to"
        " 8 %), and queries meet older keys of their own image as negatives; a smaller queue avoids it",
    )


def ema(average: PyTree, new: PyTree, momentum: jax.Array | float) -> PyTree:
    """momentum * average + (1 - momentum) * new, leaf by leaf (He et al., 2020, equation 2).

    Args:
      average: the dict to be moved.
      new: a dict with the same entries, and maybe others, which are left out.
      momentum: m in [0, 1]; 0 copies, 1 keeps.
    """

    def move(a: jax.Array, n: jax.Array) -> jax.Array:
        return jnp.asarray(momentum, a.dtype) * a + jnp.asarray(1 - momentum, a.dtype) * n

    return jax.tree.map(move, average, {name: new[name] for name in average})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Queue:
    """The last K keys, first in, first out (a ring buffer).

    Attributes:
      keys: float[K,D], normalised.
      labels: i32[K,L], labels of each key's image; -1 for missing.
      age: i32[K], completed updates since the key was computed; 0 for a slot that holds no key, noise neither.
      valid: bool[K], whether the slot is to be used.
      pointer: i32[], the slot of the oldest key, which is overwritten next.
    """

    keys: jax.Array
    labels: jax.Array
    age: jax.Array
    valid: jax.Array
    pointer: jax.Array

    @classmethod
    def empty(
        cls,
        size: int,
        width: int,
        levels: int,
        key: jax.Array,
        fill: str = "mask",
        dtype: Any = jnp.float32,
    ) -> "Queue":
        """A queue that has seen no key.

        Args:
          size: K.
          width: D.
          levels: L.
          key: for the noise.
          fill: "mask": slots are not used until they hold a key; "noise": they hold random
            directions, which count as keys (MoCo's code).
          dtype: of the keys.
        """
        keys, valid = _rows(size, width, key, fill, dtype)
        return cls(
            keys=keys,
            labels=jnp.full((size, levels), -1, jnp.int32),
            age=jnp.zeros(size, jnp.int32),
            valid=valid,
            pointer=jnp.zeros((), jnp.int32),
        )

    def push(self, keys: jax.Array, labels: jax.Array) -> "Queue":
        """The queue after an update whose keys have taken the places of the oldest.

        Of more than K keys the last K stay, as in a `collections.deque` of that length.

        Args:
          keys: float[N,D], oldest first; normalised.
          labels: i32[N,L].
        """
        size, rows = len(self.keys), len(keys)
        kept = min(rows, size)
        slots = (self.pointer + jnp.arange(rows - kept, rows, dtype=jnp.int32)) % size
        return Queue(
            keys=self.keys.at[slots].set(keys[-kept:].astype(self.keys.dtype), unique_indices=True),
            labels=self.labels.at[slots].set(labels[-kept:], unique_indices=True),
            age=_older(self.age).at[slots].set(1, unique_indices=True),
            valid=self.valid.at[slots].set(True, unique_indices=True),
            pointer=(self.pointer + rows) % size,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bank:
    """A row for each of the M images of the data set: what was last seen of it (Wu et al., 2018).

    Attributes:
      rows: float[M,D], normalised.
      age: i32[M], completed updates since the row was last changed; 0 for an image that was not seen yet.
      valid: bool[M], whether the row is to be used.
    """

    rows: jax.Array
    age: jax.Array
    valid: jax.Array

    @classmethod
    def empty(
        cls, images: int, width: int, key: jax.Array, fill: str = "mask", dtype: Any = jnp.float32
    ) -> "Bank":
        """A bank of M rows that has seen no image; see `Queue.empty`."""
        rows, valid = _rows(images, width, key, fill, dtype)
        return cls(rows, jnp.zeros(images, jnp.int32), valid)

    def draw(self, key: jax.Array, count: int) -> jax.Array:
        """Numbers i32[count] of rows, drawn evenly and with replacement, as in the code of Wu et al.

        A query's own row may be among them, in 1 - (1 - 1/M)^count of the draws.
        """
        return jax.random.randint(key, (count,), 0, len(self.rows), jnp.int32)

    def update(self, index: jax.Array, z: jax.Array, momentum: float) -> "Bank":
        """The bank after an update that has seen these images.

        A row becomes normalise(momentum * row + (1 - momentum) * z), or z if it held nothing.

        Args:
          index: i32[N], numbers of the images; of an image that comes twice the last one counts.
          z: float[N,D], normalised.
          momentum: weight of what the row was.
        """
        z = z.astype(self.rows.dtype)
        mixed = momentum * self.rows[index] + (1 - momentum) * z
        mixed = mixed / jnp.maximum(jnp.linalg.norm(mixed, axis=1, keepdims=True), 1e-12)
        new = jnp.where(self.valid[index, None], mixed, z)
        comes_again = jnp.triu(index[:, None] == index[None, :], 1).any(1)
        slots = jnp.where(comes_again, len(self.rows), index)
        return Bank(
            rows=self.rows.at[slots].set(new, mode="drop"),
            age=_older(self.age).at[slots].set(1, mode="drop"),
            valid=self.valid.at[slots].set(True, mode="drop"),
        )


def _older(age: jax.Array) -> jax.Array:
    """Ages i32[N] an update later; what holds nothing of the data (0) does not age."""
    return age + (age > 0)


def _rows(
    count: int, width: int, key: jax.Array, fill: str, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Rows float[count,width] to begin with, and bool[count], which of them count."""
    if fill == "mask":
        return jnp.zeros((count, width), dtype), jnp.zeros(count, bool)
    noise = jax.random.normal(key, (count, width), dtype)
    return noise / jnp.linalg.norm(noise, axis=1, keepdims=True), jnp.ones(count, bool)
