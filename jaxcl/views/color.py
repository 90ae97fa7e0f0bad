"""Ops on pixel values: colour jitter, grayscale, solarize."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.views.op import (
    Op,
    Params,
    Shape,
    check_choice,
    check_number,
    uniform,
    uniform_index,
)

LUMA = (0.2989, 0.5870, 0.1140)
"""Weights of red, green and blue in the gray value (ITU-R BT.601)."""

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""The numbers that stand for jitter's four steps in its recorded order."""

_ORDERS = np.array(list(itertools.permutations(range(4))), np.int32)

Planes = tuple[jax.Array, ...]


def _planes(image: jax.Array, op: Op) -> Planes:
    """The channels of f[H,W,C], one f[H,W] each."""
    channels = image.shape[-1]
    if channels not in (1, 3):
        raise ValueError(
            f"{type(op).__name__} needs 1 (gray) or 3 (RGB) channels, the image has {channels}"
        )
    return tuple(image[..., channel] for channel in range(channels))


def _luma(planes: Planes) -> jax.Array:
    if len(planes) == 1:
        return planes[0]
    red, green, blue = planes
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def rotate_hue(planes: Planes, shift: jax.Array) -> Planes:
    """Turns the hue of RGB planes by `shift` of the circle, at equal HSV saturation and value."""
    red, green, blue = planes
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    inverse = 1 / jnp.where(chroma > 0, chroma, 1)
    sixths = jnp.where(
        value == red,
        (green - blue) * inverse,
        jnp.where(value == green, 2 + (blue - red) * inverse, 4 + (red - green) * inverse),
    )
    # In [-1, 5) + 6 [0, 1): one subtraction below brings it back to the circle.
    sixths = sixths + 6 * (shift - jnp.floor(shift))

    def channel(offset: int) -> jax.Array:
        k = sixths + (offset + 1)  # in [offset, offset + 12)
        k = jnp.where(k >= 12, k - 12, k)
        k = jnp.where(k >= 6, k - 6, k)
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return channel(4), channel(2), channel(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jitter(Op):
    """Brightness, contrast, saturation and hue by random amounts in a random order.

    Every order is equally likely, and the image is clipped to [0,1] after each step. With gray
    images (C = 1) only brightness and contrast do something.

    Attributes:
      strength: multiplies the four amounts below. SimCLR uses 1.0 on ImageNet, 0.5 on CIFAR.
      brightness: b, either a factor from U[max(0, 1 - b), 1 + b] ("multiply") or an addend from
        U[-b, b] ("add").
      contrast: c, the factor of the distance to the mean is from U[max(0, 1 - c), 1 + c].
      saturation: s, the factor is from U[max(0, 1 - s), 1 + s].
      hue: h, the shift is from U[-h, h], as a fraction of the colour circle.
      brightness_mode: "multiply" (SimCLR v2, torchvision) or "add" (SimCLR v1, BYOL).
      contrast_mean: "channel", the mean of each channel (TensorFlow), or "gray", that of the gray
        image (torchvision, Pillow).
      saturation_mode: "hsv" scales the saturation in HSV (TensorFlow), "blend" mixes with the gray
        image (torchvision, Pillow).
    """

    strength: float = 1.0
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    brightness_mode: str = "multiply"
    contrast_mean: str = "channel"
    saturation_mode: str = "hsv"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("strength", "brightness", "contrast", "saturation", "hue"):
            check_number(self, name, 0)
        check_choice(self, "brightness_mode", ("multiply", "add"))
        check_choice(self, "contrast_mean", ("channel", "gray"))
        check_choice(self, "saturation_mode", ("hsv", "blend"))

    @property
    def words(self) -> int:
        """One for the order and one for each step."""
        return 5

    def draw(self, bits: jax.Array, shape: Shape) -> Params:
        """Draws ``"order"`` i32[4] (first step first) and one f[] for each of the four steps."""

        def factor(bits: jax.Array, amount: float) -> jax.Array:
            return uniform(bits, max(0.0, 1 - amount), 1 + amount)

        amounts = [
            self.strength * amount
            for amount in (self.brightness, self.contrast, self.saturation, self.hue)
        ]
        if self.brightness_mode == "add":
            brightness = uniform(bits[1], -amounts[0], amounts[0])
        else:
            brightness = factor(bits[1], amounts[0])
        return {
            "order": jnp.asarray(_ORDERS)[uniform_index(bits[0], len(_ORDERS))],
            "brightness": brightness,
            "contrast": factor(bits[2], amounts[1]),
            "saturation": factor(bits[3], amounts[2]),
            "hue": uniform(bits[4], -amounts[3], amounts[3]),
        }

    @functools.partial(jax.jit, static_argnums=0)  # else each un-jitted call compiles the loop anew
    def transform(self, image: jax.Array, params: Params) -> jax.Array:
        """Applies the four steps in ``"order"``."""
        # A loop and not four copies: under vmap each copy computes all steps, and compilers then
        # recompute one copy within the next.
        planes, _ = jax.lax.scan(
            lambda planes, step: (self._step(planes, step, params), None),
            _planes(image, self),
            params["order"],
        )
        return jnp.stack(planes, axis=-1)

    def _step(self, planes: Planes, step: jax.Array, params: Params) -> Planes:
        """One of the four steps, chosen by the traced number `step`."""
        dtype = planes[0].dtype
        gray = _luma(planes)
        brightness, contrast, saturation, hue = (
            params[name].astype(dtype) for name in ("brightness", "contrast", "saturation", "hue")
        )
        # Brightness, contrast and saturation are all factor * x + (1 - factor) * base.
        addend = jnp.zeros((), dtype)
        if self.brightness_mode == "add":
            addend = jnp.where(step == BRIGHTNESS, brightness, 0)
            brightness = jnp.ones((), dtype)
        if self.contrast_mean == "gray":
            means = [jnp.mean(gray)] * len(planes)
        else:
            means = [jnp.mean(plane) for plane in planes]
        if len(planes) == 1:
            saturation = jnp.ones((), dtype)
            saturation_base = planes[0]
        elif self.saturation_mode == "blend":
            saturation_base = gray
        else:
            # At equal hue and value a pixel's distance to its maximum is proportional to its
            # saturation, which cannot exceed 1.
            saturation_base = jnp.maximum(jnp.maximum(planes[0], planes[1]), planes[2])
            chroma = saturation_base - jnp.minimum(jnp.minimum(planes[0], planes[1]), planes[2])
            limit = saturation_base / jnp.where(chroma > 0, chroma, 1)
            saturation = jnp.where(chroma > 0, jnp.minimum(saturation, limit), saturation)
        factor = jnp.where(
            step == BRIGHTNESS,
            brightness,
            jnp.where(step == CONTRAST, contrast, jnp.where(step == SATURATION, saturation, 1)),
        )
        result = []
        for plane, mean in zip(planes, means, strict=True):
            base = jnp.where(
                step == CONTRAST, mean, jnp.where(step == SATURATION, saturation_base, 0)
            )
            result.append(factor * plane + (1 - factor) * base + addend)
        if len(planes) == 3 and self.strength * self.hue > 0:
            turned = rotate_hue(planes, hue)
            result = [jnp.where(step == HUE, t, r) for t, r in zip(turned, result, strict=True)]
        return tuple(jnp.clip(plane, 0, 1) for plane in result)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gray(Op):
    """Grayscale, the colour dropped and the channels kept; gray images (C = 1) stay as they are."""

    def transform(self, image: jax.Array, params: Params) -> jax.Array:
        """Sets each channel to the luma."""
        planes = _planes(image, self)
        return jnp.broadcast_to(_luma(planes)[..., None], image.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solarize(Op):
    """Inverts the values from `threshold` on.

    Attributes:
      threshold: smallest inverted value; 0.5 is Pillow's 128.
    """

    threshold: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "threshold", 0, 1)

    def transform(self, image: jax.Array, params: Params) -> jax.Array:
        """Inverts the bright values."""
        return jnp.where(image < self.threshold, image, 1 - image)
