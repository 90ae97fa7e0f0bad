"""The one, fixed view of an image in evaluation."""

import dataclasses

import jax

from jaxcl.views import resample
from jaxcl.views.op import Shape, as_float, check_choice, check_number


@dataclasses.dataclass(frozen=True)
class EvalView:
    """The centre square of an image, resized.

    The square's side is `crop_fraction` of the shorter side: resizing the shorter side to
    size / crop_fraction and cutting out the centre, in one step. An image that has the right shape
    and is not cropped passes unchanged.

    Attributes:
      size: side of the result in pixels.
      crop_fraction: None is 0.875, and 1 (no crop) where size <= 32, as in SimCLR.
      method: "bicubic" or "bilinear".
      antialias: filter wide enough for the scale (Pillow), or not (TensorFlow's default).
    """

    size: int
    crop_fraction: float | None = None
    method: str = "bicubic"
    antialias: bool = True

    def __post_init__(self) -> None:
        check_number(self, "size", 1)
        if self.crop_fraction is not None:
            check_number(self, "crop_fraction", 1e-3, 1)
        check_choice(self, "method", resample.METHODS)

    @property
    def fraction(self) -> float:
        """The fraction of the shorter side that is kept."""
        if self.crop_fraction is not None:
            return self.crop_fraction
        return 1.0 if self.size <= 32 else 0.875

    @property
    def source_size(self) -> int:
        """Shorter side in pixels at which the square has the side `size`, so that it is cut out and not resized."""
        return round(self.size / self.fraction)

    def output_shape(self, shape: Shape) -> Shape:
        """(size, size, C)."""
        return (self.size, self.size, shape[2])

    def apply(self, image: jax.Array) -> jax.Array:
        """uint8 or float [H,W,C] -> float[size,size,C] in [0,1]."""
        image = as_float(image)
        height, width, _ = image.shape
        side = max(1, round(self.fraction * min(height, width)))
        if height == width == side == self.size:
            return image
        box = ((height - side + 1) // 2, (width - side + 1) // 2, side, side)
        return resample.crop_resize(
            image, box, self.size, method=self.method, antialias=self.antialias
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """uint8 or float [B,H,W,C] -> float[B,size,size,C] in [0,1]."""
        return jax.vmap(self.apply)(images)
