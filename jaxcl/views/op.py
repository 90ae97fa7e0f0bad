"""The interface of an augmentation: sample the parameters of one example, then apply them.

The two halves are separate so that what was drawn can be recorded, shared between views and applied
again.
"""

import abc
import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

Params = dict[str, jax.Array]
"""The drawn parameters of one example: small arrays, always with the coin ``"on"`` (bool[])."""

Shape = tuple[int, ...]
"""(height, width, channels) of one image."""


def as_float(images: jax.typing.ArrayLike) -> jax.Array:
    """Images of any shape as floats in [0,1].

    uint8 is divided by 255 in JAX's default float type (float32; float64 in float64 mode). float32
    and float64 stay, narrower floats become float32.

    Raises:
      TypeError: for any other type.
    """
    images = jnp.asarray(images)
    if images.dtype == jnp.uint8:
        return images.astype(jnp.result_type(float)) / 255
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images are {images.dtype}: expected uint8, or floats in [0,1]")
    return images.astype(jnp.promote_types(images.dtype, jnp.float32))


def unit(bits: jax.Array) -> jax.Array:
    """Random bits u32[...] -> f[...] uniform in [0, 1).

    The value has 24 bits, which float32 holds exactly; its type is JAX's default float. Parameters
    in float64 mode are therefore those of float32 up to rounding, and no other numbers.
    """
    return (bits >> 8).astype(jnp.result_type(float)) * 2.0**-24


def uniform(bits: jax.Array, low: float, high: float) -> jax.Array:
    """Random bits u32[...] -> f[...] uniform in [low, high)."""
    return low + (high - low) * unit(bits)


def uniform_index(bits: jax.Array, size: jax.Array | int) -> jax.Array:
    """Random bits u32[...] -> i32[...] uniform in 0 .. size - 1; `size` may be traced."""
    index = jnp.floor(unit(bits) * size).astype(jnp.int32)
    return jnp.minimum(index, jnp.asarray(size, jnp.int32) - 1)  # the product can round up to size


def check_range(
    op: object, name: str, minimum: float = -math.inf, maximum: float = math.inf
) -> None:
    """Checks that field `name` of `op` is (low, high) with minimum <= low <= high <= maximum.

    Raises:
      ValueError: if it is not.
    """
    value = getattr(op, name)
    fits = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    if not fits or not minimum <= value[0] <= value[1] <= maximum:
        raise ValueError(
            f"{type(op).__name__}.{name} = {value!r}: expected (low, high) with "
            f"{minimum} <= low <= high <= {maximum}"
        )


def check_number(
    op: object, name: str, minimum: float = -math.inf, maximum: float = math.inf
) -> None:
    """Checks that field `name` of `op` is a number with minimum <= value <= maximum.

    Raises:
      ValueError: if it is not.
    """
    value = getattr(op, name)
    if not isinstance(value, int | float) or not minimum <= value <= maximum:
        raise ValueError(
            f"{type(op).__name__}.{name} = {value!r}: expected a number in [{minimum}, {maximum}]"
        )


def check_choice(op: object, name: str, choices: tuple[str, ...]) -> None:
    """Checks that field `name` of `op` is one of `choices`.

    Raises:
      ValueError: if it is not.
    """
    value = getattr(op, name)
    if value not in choices:
        raise ValueError(f"{type(op).__name__}.{name} = {value!r}: expected one of {choices}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Op(abc.ABC):
    """An augmentation of one image f[H,W,C] in [0,1]; `jax.vmap` makes it one of a batch.

    Subclasses give `transform` and, if they have parameters, `words` and `draw`; the coin is tossed
    here.

    Attributes:
      prob: probability with which an example is transformed; else it passes unchanged.
    """

    prob: float = 1.0

    def __post_init__(self) -> None:
        check_number(self, "prob", 0, 1)

    @property
    def words(self) -> int:
        """How many random words `draw` needs."""
        return 0

    def sample(self, key: jax.Array, shape: Shape, prob: jax.Array | float | None = None) -> Params:
        """Draws the parameters of one example.

        Args:
          key: a key of this example and this op.
          shape: (H, W, C) of the image that the parameters will be applied to.
          prob: probability instead of `self.prob`; may be traced.

        Returns:
          Small arrays by name, among them ``"on"``, the coin, bool[]. Parameters are drawn whether
          the coin is on or not.
        """
        # One call for the coin and everything else: each call is compiled anew.
        bits = jax.random.bits(key, (1 + self.words,), jnp.uint32)
        on = unit(bits[0]) < (self.prob if prob is None else prob)
        return {"on": on, **self.draw(bits[1:], shape)}

    def sample_other(
        self, key: jax.Array, shape: Shape, other: Params, prob: jax.Array | float | None = None
    ) -> Params:
        """Draws as `sample`, but never what `other` does.

        Amounts from a range differ by themselves, so that the coin is on wherever the other's is off;
        where there is nothing but the coin it is the opposite one.

        Args:
          key: a key of this example and this op.
          shape: (H, W, C) of the image that the parameters will be applied to.
          other: parameters of this op.
          prob: probability instead of `self.prob`; may be traced.
        """
        params = self.sample(key, shape, prob)
        return {**params, "on": ~other["on"] | (params["on"] & (self.words > 0))}

    def apply(self, image: jax.Array, params: Params) -> jax.Array:
        """Applies drawn parameters to uint8 or float [H,W,C]; returns floats as `as_float` does."""
        image = as_float(image)
        return jnp.where(params["on"], self.transform(image, params), image)

    def output_shape(self, shape: Shape) -> Shape:
        """The shape that `apply` gives for an image of `shape`."""
        return shape

    def draw(self, bits: jax.Array, shape: Shape) -> Params:
        """Makes everything but the coin of u32[self.words] random bits."""
        del bits, shape
        return {}

    @abc.abstractmethod
    def transform(self, image: jax.Array, params: Params) -> jax.Array:
        """Transforms f[H,W,C], whatever the coin says."""
