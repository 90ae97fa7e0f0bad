"""Random resized crop."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxcl.views import resample
from jaxcl.views.op import (
    Op,
    Params,
    Shape,
    as_float,
    check_choice,
    check_number,
    check_range,
    uniform,
    uniform_index,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crop(Op):
    """Random resized crop: a random box, resized to `size` x `size` and clipped to [0,1].

    Boxes are whole pixels. All attempts are drawn at once and the first that fits is taken. With
    the coin off the whole image is resized.

    Attributes:
      size: side of the result in pixels.
      scale: range of the crop's area as a fraction of the image.
      ratio: range of width / height.
      aspect: "log" draws the logarithm of the ratio uniformly (torchvision), "uniform" the ratio
        itself (TensorFlow).
      extent: "area" draws the area uniformly (torchvision), "height" the height, uniformly over the
        heights that give an area in range for the ratio drawn (TensorFlow's
        `sample_distorted_bounding_box`), which favours small crops.
      min_covered: crops of less than this fraction of the image are rejected. SimCLR's released
        code asks for 0.1, which makes 0.10 and not 0.08 its smallest crop.
      attempts: number of draws before `fallback`.
      fallback: "whole" takes the whole image (TensorFlow), "center" the largest centred crop whose
        ratio is in range (torchvision).
      method: "bicubic" or "bilinear".
      antialias: filter wide enough for the scale (Pillow), or not (TensorFlow's default).
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    aspect: str = "log"
    extent: str = "area"
    min_covered: float = 0.0
    attempts: int = 100
    fallback: str = "whole"
    method: str = "bicubic"
    antialias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "size", 1)
        check_range(self, "scale", 0, 1)
        check_range(self, "ratio", 1e-3, 1e3)
        check_choice(self, "aspect", ("log", "uniform"))
        check_choice(self, "extent", ("area", "height"))
        check_number(self, "min_covered", 0, 1)
        check_number(self, "attempts", 1)
        check_choice(self, "fallback", ("whole", "center"))
        check_choice(self, "method", resample.METHODS)

    def output_shape(self, shape: Shape) -> Shape:
        """(size, size, C)."""
        return (self.size, self.size, shape[2])

    @property
    def words(self) -> int:
        """Two for the place, and two an attempt."""
        return 2 + 2 * self.attempts

    def draw(self, bits: jax.Array, shape: Shape) -> Params:
        """Draws ``"box"`` i32[4]: top, left, height and width in pixels."""
        height, width, _ = shape
        ratio_bits, extent_bits = bits[2:].reshape(self.attempts, 2).T
        if self.aspect == "log":
            low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
            ratio = jnp.exp(uniform(ratio_bits, low, high))
        else:
            ratio = uniform(ratio_bits, *self.ratio)
        min_area, max_area = (fraction * height * width for fraction in self.scale)
        if self.extent == "area":
            area = uniform(extent_bits, min_area, max_area)
            h = jnp.round(jnp.sqrt(area / ratio))
            w = jnp.round(jnp.sqrt(area * ratio))
            fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
        else:
            lowest = jnp.round(jnp.sqrt(min_area / ratio))
            highest = jnp.round(jnp.sqrt(max_area / ratio))
            # The tallest box whose rounded width still fits the image.
            widest = jnp.floor((width + 0.5 - 1e-7) / ratio)
            highest = jnp.where(jnp.round(highest * ratio) > width, widest, highest)
            highest = jnp.minimum(highest, height)
            lowest = jnp.minimum(lowest, highest)
            h = lowest + uniform_index(extent_bits, highest - lowest + 1)
            # Rounding may leave the range by a little: one row more or less is tried.
            h = h + (h * jnp.round(h * ratio) < min_area)
            h = h - (h * jnp.round(h * ratio) > max_area)
            w = jnp.round(h * ratio)
            fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
            fits &= (h * w >= min_area) & (h * w <= max_area)
        fits &= h * w >= self.min_covered * height * width
        first = (jnp.arange(self.attempts) == jnp.argmax(fits)) & fits
        fallback_h, fallback_w = self._fallback(height, width)
        found = jnp.any(fits)
        h = jnp.where(found, jnp.sum(jnp.where(first, h, 0)).astype(jnp.int32), fallback_h)
        w = jnp.where(found, jnp.sum(jnp.where(first, w, 0)).astype(jnp.int32), fallback_w)
        top = uniform_index(bits[0], height - h + 1)
        left = uniform_index(bits[1], width - w + 1)
        top = jnp.where(found, top, (height - fallback_h) // 2)
        left = jnp.where(found, left, (width - fallback_w) // 2)
        return {"box": jnp.stack([top, left, h, w]).astype(jnp.int32)}

    def _fallback(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the box that is taken when no attempt fits."""
        if self.fallback == "center" and width / height < self.ratio[0]:
            return round(width / self.ratio[0]), width
        if self.fallback == "center" and width / height > self.ratio[1]:
            return height, round(height * self.ratio[1])
        return height, width

    def apply(self, image: jax.Array, params: Params) -> jax.Array:
        """Makes uint8 or float [H,W,C] float[size,size,C], of the whole image if the coin is off."""
        image = as_float(image)
        whole = jnp.asarray([0, 0, image.shape[0], image.shape[1]], jnp.int32)
        return self.transform(image, {"box": jnp.where(params["on"], params["box"], whole)})

    def transform(self, image: jax.Array, params: Params) -> jax.Array:
        """Cuts out ``"box"`` and resizes it."""
        top, left, h, w = params["box"]
        return resample.crop_resize(
            image, (top, left, h, w), self.size, method=self.method, antialias=self.antialias
        )
