"""Resampling as matrix products: a resize, or a crop and a resize, is one small matrix per axis."""

import functools

import jax
import jax.numpy as jnp

METHODS = ("bicubic", "bilinear")
"""Names of the filters."""


def _bicubic(x: jax.Array) -> jax.Array:
    """Keys' cubic filter with a = -0.5, as Pillow and TensorFlow have it; x = |distance|."""
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, inner, jnp.where(x < 2, outer, 0))


def _bilinear(x: jax.Array) -> jax.Array:
    return jnp.maximum(1 - x, 0)


def resize_weights(
    start: jax.Array | float,
    length: jax.Array | float,
    size_in: int,
    size_out: int,
    *,
    method: str = "bicubic",
    antialias: bool = True,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    """Weights f[size_out, size_in] that cut [start, start + length) out of an axis and resize it.

    The result is that of cropping first and resizing then: pixels outside the crop have no weight
    and each row sums to 1, also at the border (Pillow; TensorFlow with half-pixel centres).

    Args:
      start: first pixel of the crop; may be traced.
      length: pixels of the crop, at least 1; may be traced.
      size_in: pixels of the axis.
      size_out: pixels of the result.
      method: "bicubic" (a = -0.5) or "bilinear".
      antialias: widen the filter by length / size_out where that is above 1, as Pillow does.
        TensorFlow's `tf.image.resize` does not, by default.
      dtype: float type of the weights.
    """
    kernel = {"bicubic": _bicubic, "bilinear": _bilinear}[method]
    start, length = jnp.asarray(start, dtype), jnp.asarray(length, dtype)
    scale = length / size_out
    stretch = jnp.maximum(scale, 1) if antialias else jnp.ones_like(scale)
    center = (jnp.arange(size_out, dtype=dtype) + 0.5) * scale
    position = jnp.arange(size_in, dtype=dtype) - start
    distance = jnp.abs(position[None, :] + 0.5 - center[:, None]) / stretch
    inside = (position >= 0) & (position < length)
    weights = jnp.where(inside[None, :], kernel(distance), 0)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def separable(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Applies `rows` f[h,H] and `columns` f[w,W] to f[H,W,C]: f[h,w,C].

    Products are full float32 on every device (a TPU would round the pixels to bfloat16).
    """
    tall = jnp.einsum("hH,HWC->hWC", rows, image, precision="highest")
    return jnp.einsum("wW,hWC->hwC", columns, tall, precision="highest")


def crop_resize(
    image: jax.Array,
    box: tuple[jax.Array | int, ...],
    size: int,
    *,
    method: str = "bicubic",
    antialias: bool = True,
) -> jax.Array:
    """Cuts `box` (top, left, height, width) out of f[H,W,C] and resizes it: f[size,size,C].

    The cubic filter overshoots at edges; the result is clipped to [0,1].
    """
    weights = functools.partial(
        resize_weights, size_out=size, method=method, antialias=antialias, dtype=image.dtype
    )
    top, left, height, width = box
    rows = weights(top, height, image.shape[0])
    columns = weights(left, width, image.shape[1])
    return jnp.clip(separable(image, rows, columns), 0, 1)
