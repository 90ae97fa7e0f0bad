"""Texture: other amounts of fine structure at the same places.

Style randomisation repaints an image in another texture, by a network that transfers styles (as in stylised ImageNet, Geirhos
et al., ICLR 2019). `Texture` is a stand-in in its spirit that needs nothing but the image: what it changes is how much energy
the image has at each scale and orientation, which is what describes a texture since the steerable pyramids (Portilla and
Simoncelli, 2000). It paints no texture that is not there.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.views import resample
from jaxcl.views.op import Op, Params, Shape, check_number, check_range, uniform

ORIENTATIONS = 3
"""Horizontal stripes, diagonal ones, vertical ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texture(Op):
    """Multiplies the image's amplitudes by random gains, by scale and orientation; phases stay.

    A filter of positive gains moves no edge: it makes the fine structure at an edge stronger or
    weaker. The gains are drawn log-uniformly for bands an octave apart, from the finest scale (a
    period of 2 pixels) on, in three orientations each, and interpolated between bands; coarser
    structure stays as it is. The mean of each channel and the contrast (the standard deviation over
    all pixels and channels) stay what they were, up to the clipping to [0,1] at the end.

    The amplitudes are those of the discrete cosine transform, whose borders are mirrored and which
    is two matrix products. A constant image stays as it is.

    Attributes:
      gains: range of the gains; (1, 1) changes nothing.
      scales: bands, so that structure of a period up to 2 ** scales pixels is changed.
    """

    gains: tuple[float, float] = (0.25, 4.0)
    scales: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "gains", 1e-3, 1e3)
        check_number(self, "scales", 1, 16)

    @property
    def words(self) -> int:
        """One for each band."""
        return self.scales * ORIENTATIONS

    def draw(self, bits: jax.Array, shape: Shape) -> Params:
        """Draws ``"gains"`` f[scales,3], from the finest scale on; orientations as in `ORIENTATIONS`."""
        low, high = (math.log(gain) for gain in self.gains)
        return {"gains": jnp.exp(uniform(bits, low, high)).reshape(self.scales, ORIENTATIONS)}

    def transform(self, image: jax.Array, params: Params) -> jax.Array:
        """Filters f[H,W,C] by ``"gains"`` and clips to [0,1]."""
        height, width, _ = image.shape
        scale, orientation = _bands(height, width, self.scales)
        logs = jnp.log(params["gains"]).astype(image.dtype)
        gain = jnp.exp(jnp.einsum("so,shw,ohw->hw", logs, scale, orientation, precision="highest"))
        rows, columns = _cosines(height), _cosines(width)
        old = resample.separable(image, *(jnp.asarray(x, image.dtype) for x in (rows, columns)))
        new = old * gain[..., None]
        # By Parseval the energy of all but the mean is the variance of the image.
        mean = np.zeros((height, width, 1), bool)
        mean[0, 0] = True
        before, after = (jnp.sum(jnp.where(mean, 0, x * x)) for x in (old, new))
        contrast = jnp.sqrt(before / jnp.where(after > 0, after, 1))
        new = jnp.where(mean, old, new * contrast)
        back = resample.separable(new, *(jnp.asarray(x.T, image.dtype) for x in (rows, columns)))
        return jnp.clip(back, 0, 1)


@functools.cache
def _cosines(size: int) -> np.ndarray:
    """The orthonormal matrix f64[size,size] of the discrete cosine transform (DCT-II), a row a frequency."""
    frequency, position = np.arange(size)[:, None], np.arange(size)[None, :] + 0.5
    matrix = np.cos(np.pi * frequency * position / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


@functools.cache
def _bands(height: int, width: int, scales: int) -> tuple[np.ndarray, np.ndarray]:
    """How much each coefficient belongs to each band: scale f32[scales,H,W], orientation f32[3,H,W].

    Both are tents over the logarithm of the frequency and over its angle. The scales of a coefficient
    sum to 1 above the coarsest band and fall to 0 within the octave below it; orientations sum to 1.
    """
    # Of cycles a pixel, as a part of the highest: 1 is a period of 2 pixels.
    y = (np.arange(height) / height)[:, None] * np.ones((1, width))
    x = (np.arange(width) / width)[None, :] * np.ones((height, 1))
    octave = -np.log2(np.maximum(np.hypot(y, x), 1e-9))
    octave = np.maximum(octave, 0)  # the corners are finer than any stripe
    band = np.arange(scales)[:, None, None]
    scale = np.maximum(1 - np.abs(octave - band), 0)
    angle = np.arctan2(x, y) / (np.pi / 4)  # 0, 1, 2
    orientation = np.maximum(1 - np.abs(angle - np.arange(ORIENTATIONS)[:, None, None]), 0)
    return scale.astype(np.float32), orientation.astype(np.float32)
