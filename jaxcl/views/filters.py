"""Ops on neighbourhoods and noise: blur, sobel, cutout, noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.views import resample
from jaxcl.views.op import (
    Op,
    Params,
    Shape,
    check_choice,
    check_number,
    check_range,
    uniform,
    uniform_index,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blur(Op):
    """Gaussian blur, one sigma an image, drawn uniformly.

    Attributes:
      sigma: range of the standard deviation in pixels.
      fraction: the kernel is this fraction of the image's height, made odd: at 0.1 and 224 pixels
        23 taps, 11 to each side, as in SimCLR. None takes the kernel as wide as the image needs,
        which is Pillow's blur of radius sigma up to its box approximation.
      padding: "zero" darkens the border (SimCLR's released code), "edge" repeats it (Pillow).
    """

    sigma: tuple[float, float] = (0.1, 2.0)
    fraction: float | None = 0.1
    padding: str = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "sigma", 1e-3)
        if self.fraction is not None:
            check_number(self, "fraction", 0, 1)
        check_choice(self, "padding", ("zero", "edge"))

    def radius(self, height: int) -> int:
        """Taps to each side of the centre, for images of `height` pixels."""
        if self.fraction is None:
            return height
        return int(height * self.fraction + 1e-6) // 2

    @property
    def words(self) -> int:
        """One, for sigma."""
        return 1

    def draw(self, bits: jax.Array, shape: Shape) -> Params:
        """Draws ``"sigma"`` f[], pixels."""
        return {"sigma": uniform(bits[0], *self.sigma)}

    def transform(self, image: jax.Array, params: Params) -> jax.Array:
        """Blurs both axes and clips to [0,1]."""
        height, width, _ = image.shape
        sigma, radius = params["sigma"].astype(image.dtype), self.radius(height)
        rows = _blur_weights(sigma, radius, height, self.padding)
        columns = rows if width == height else _blur_weights(sigma, radius, width, self.padding)
        return jnp.clip(resample.separable(image, rows, columns), 0, 1)


def _blur_weights(sigma: jax.Array, radius: int, size: int, padding: str) -> jax.Array:
    """The banded matrix f[size,size] of a Gaussian with 2 radius + 1 taps that sum to 1."""
    taps = np.arange(-radius, radius + 1)
    kernel = jnp.exp(-(taps.astype(sigma.dtype) ** 2) / (2 * sigma**2))
    total = jnp.sum(kernel)
    offset = np.arange(size)[None, :] - np.arange(size)[:, None]
    weights = jnp.exp(-(offset.astype(sigma.dtype) ** 2) / (2 * sigma**2)) / total
    weights = jnp.where(np.abs(offset) <= radius, weights, 0)
    if padding == "edge":
        # What falls off an end is the weight of the pixel there.
        source = np.arange(size)[:, None] + taps[None, :]
        before = jnp.sum(jnp.where(source < 0, kernel, 0), axis=1) / total
        after = jnp.sum(jnp.where(source >= size, kernel, 0), axis=1) / total
        ends = np.arange(size)[None, :]
        weights += jnp.where(ends == 0, before[:, None], 0)
        weights += jnp.where(ends == size - 1, after[:, None], 0)
    return weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sobel(Op):
    """Sobel filter: the length of the gradient of each channel, divided by 4 and clipped to [0,1].

    Borders are reflected, as in TensorFlow's `sobel_edges`; 4 is the response to a unit step.
    """

    def transform(self, image: jax.Array, params: Params) -> jax.Array:
        """Filters f[H,W,C]."""
        padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), mode="reflect")
        smooth_y = padded[:-2] + 2 * padded[1:-1] + padded[2:]
        smooth_x = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
        gradient_x = smooth_y[:, 2:] - smooth_y[:, :-2]
        gradient_y = smooth_x[2:] - smooth_x[:-2]
        return jnp.clip(jnp.sqrt(gradient_x**2 + gradient_y**2) / 4, 0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cutout(Op):
    """Sets a square to a constant (DeVries and Taylor, 2017).

    The square's centre is uniform over the pixels, so that it may reach over the border.

    Attributes:
      side: range of its side as a fraction of the image's shorter side.
      fill: the constant.
    """

    side: tuple[float, float] = (0.5, 0.5)
    fill: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "side", 0, 1)
        check_number(self, "fill", 0, 1)

    @property
    def words(self) -> int:
        """One for the side and two for the place."""
        return 3

    def draw(self, bits: jax.Array, shape: Shape) -> Params:
        """Draws ``"box"`` i32[4]: top, left, height and width in pixels; it may leave the image."""
        height, width, _ = shape
        side = jnp.round(uniform(bits[0], *self.side) * min(height, width)).astype(jnp.int32)
        top = uniform_index(bits[1], height) - side // 2
        left = uniform_index(bits[2], width) - side // 2
        return {"box": jnp.stack([top, left, side, side])}

    def transform(self, image: jax.Array, params: Params) -> jax.Array:
        """Fills ``"box"``."""
        top, left, h, w = params["box"]
        y = jnp.arange(image.shape[0])[:, None, None]
        x = jnp.arange(image.shape[1])[None, :, None]
        inside = (y >= top) & (y < top + h) & (x >= left) & (x < left + w)
        return jnp.where(inside, jnp.asarray(self.fill, image.dtype), image)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise(Op):
    """Adds Gaussian noise, independent for each pixel and channel, and clips to [0,1].

    Attributes:
      std: range of the standard deviation, one an image.
    """

    std: tuple[float, float] = (0.0, 0.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "std", 0)

    @property
    def words(self) -> int:
        """One for the deviation and one for the seed."""
        return 2

    def draw(self, bits: jax.Array, shape: Shape) -> Params:
        """Draws ``"std"`` f[] and ``"seed"`` u32[], from which the noise is made again."""
        return {"std": uniform(bits[0], *self.std), "seed": bits[1]}

    def transform(self, image: jax.Array, params: Params) -> jax.Array:
        """Adds the noise."""
        noise = jax.random.normal(jax.random.key(params["seed"]), image.shape, image.dtype)
        return jnp.clip(image + params["std"].astype(image.dtype) * noise, 0, 1)
