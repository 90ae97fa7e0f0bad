"""Ops that move pixels and leave their values: flip and rotate."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxcl.views.op import Op, Params, Shape, check_range, uniform, uniform_index, unit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flip(Op):
    """Horizontal flip. Attributes: prob, here 0.5 by default."""

    prob: float = 0.5

    def transform(self, image: jax.Array, params: Params) -> jax.Array:
        """Reverses the columns."""
        return image[:, ::-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotate(Op):
    """Rotation about the centre, counter-clockwise, keeping the shape.

    Multiples of 90 degrees move pixels exactly and need a square image (180 does not). Any other
    angle interpolates bilinearly, fills with 0, and is meant for studies: it gathers pixels.

    Attributes:
      angles: degrees to choose from, each equally likely: (0, 90, 180, 270) is SimCLR's operator,
        (90, 180, 270) always turns the image.
      between: if given, the angle is drawn uniformly from this range instead.
    """

    angles: tuple[float, ...] = (0.0, 90.0, 180.0, 270.0)
    between: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.angles:
            raise ValueError("Rotate.angles = (): expected at least one angle in degrees")
        if self.between is not None:
            check_range(self, "between")

    def _multiples_of(self, degrees: int) -> bool:
        return self.between is None and all(angle % degrees == 0 for angle in self.angles)

    @property
    def words(self) -> int:
        """One, for the angle."""
        return 1

    def draw(self, bits: jax.Array, shape: Shape) -> Params:
        """Draws ``"angle"`` f[], degrees counter-clockwise."""
        if self.between is not None:
            return {"angle": uniform(bits[0], *self.between)}
        angles = jnp.asarray(self.angles, jnp.result_type(float))
        return {"angle": angles[uniform_index(bits[0], len(self.angles))]}

    def sample_other(
        self, key: jax.Array, shape: Shape, other: Params, prob: jax.Array | float | None = None
    ) -> Params:
        """Draws one of the angles that do not turn the image as `other` does, each equally likely.

        The coin is tossed as in `sample`, but is on where off would be the same.

        Raises:
          ValueError: there are no two different angles.
        """
        if self.between is not None:
            return super().sample_other(key, shape, other, prob)
        if len({angle % 360 for angle in self.angles}) < 2:
            raise ValueError(
                f"Rotate.angles = {self.angles}: an angle that differs from another view's needs two "
                f"different angles to choose from"
            )
        # The same bits as in `sample`, so that the coin is the same.
        bits = jax.random.bits(key, (1 + self.words,), jnp.uint32)
        on = unit(bits[0]) < (self.prob if prob is None else prob)
        angles = jnp.asarray(self.angles, jnp.result_type(float))
        turned = jnp.where(other["on"], other["angle"], 0) % 360
        allowed = angles % 360 != turned
        number = uniform_index(bits[1], jnp.sum(allowed))
        chosen = jnp.argmax(allowed & (jnp.cumsum(allowed) - 1 == number))
        return {"on": on | (turned == 0), "angle": angles[chosen]}

    def transform(self, image: jax.Array, params: Params) -> jax.Array:
        """Rotates f[H,W,C] by ``"angle"``.

        Raises:
          ValueError: if a quarter turn is possible and the image is not square.
        """
        if not self._multiples_of(90):
            return _rotate_bilinear(image, params["angle"])
        turns = jnp.round(params["angle"] / 90).astype(jnp.int32) % 4
        if not self._multiples_of(180):
            if image.shape[0] != image.shape[1]:
                raise ValueError(
                    f"Rotate by 90 or 270 degrees needs a square image, got height "
                    f"{image.shape[0]} and width {image.shape[1]}: put the crop before it, or "
                    f"allow 0 and 180 only"
                )
            image = jnp.where(turns % 2 == 1, jnp.swapaxes(image, 0, 1), image)
        image = jnp.where((turns == 1) | (turns == 2), image[::-1], image)
        return jnp.where((turns == 2) | (turns == 3), image[:, ::-1], image)


def _rotate_bilinear(image: jax.Array, angle: jax.Array) -> jax.Array:
    """Rotates f[H,W,C] by `angle` degrees; where the source lies outside, 0."""
    height, width, _ = image.shape
    radians = jnp.deg2rad(angle).astype(image.dtype)
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    y = jnp.arange(height, dtype=image.dtype)[:, None] + 0.5 - height / 2
    x = jnp.arange(width, dtype=image.dtype)[None, :] + 0.5 - width / 2
    source_y = sin * x + cos * y + height / 2
    source_x = cos * x - sin * y + width / 2
    inside = (source_y >= 0) & (source_y < height) & (source_x >= 0) & (source_x < width)
    top, left = jnp.floor(source_y - 0.5), jnp.floor(source_x - 0.5)
    dy, dx = (source_y - 0.5 - top)[..., None], (source_x - 0.5 - left)[..., None]

    def at(row: jax.Array, column: jax.Array) -> jax.Array:
        row = jnp.clip(row, 0, height - 1).astype(jnp.int32)
        return image[row, jnp.clip(column, 0, width - 1).astype(jnp.int32)]

    upper = at(top, left) * (1 - dx) + at(top, left + 1) * dx
    lower = at(top + 1, left) * (1 - dx) + at(top + 1, left + 1) * dx
    return jnp.where(inside[..., None], upper * (1 - dy) + lower * dy, 0)
