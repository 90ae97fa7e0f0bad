"""Random resized crops on the host, from images of any size.

The draws follow `jaxcl.views.Crop`, field by field, with random numbers of the host, and the record
has the same entries: "on" bool[V] and "box" i32[V, 4] (top, left, height, width in pixels of the
full image).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from jaxcl.data.decode import Pixels, resize
from jaxcl.data.philox import uniforms
from jaxcl.views import Crop, ViewProgram

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_TAPS = {"bicubic": (-1, 0, 1, 2), "bilinear": (0, 1)}


@dataclasses.dataclass(frozen=True)
class HostCrop:
    """The crops of all views of an image.

    Attributes:
      crop: the op that is followed.
      probs: probability of the crop in each view.
      sources: for each view the view whose draw it uses, itself unless the program shares it.
      seed: of the random numbers.
    """

    crop: Crop
    probs: tuple[float, ...]
    sources: tuple[int, ...]
    seed: int

    @classmethod
    def of(cls, program: ViewProgram, seed: int) -> HostCrop:
        """The crops of a program, whose first op must be a crop.

        Raises:
          ValueError: it is not.
        """
        names = [name for name, _ in program.ops]
        name, crop = program.ops[0] if program.ops else ("", None)
        if not isinstance(crop, Crop):
            raise ValueError(
                f"data.crop='host' needs views that begin with a crop, got {names}; put the crop "
                f"first, or set data.crop='device'"
            )
        sources: list[int] = []
        for index, view in enumerate(program.views):
            sources.append(sources[view.share[name]] if name in view.share else index)
        probs = tuple(view.prob.get(name, crop.prob) for view in program.views)
        return cls(crop, probs, tuple(sources), seed)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(V, h, w) of the crops of an image."""
        return (len(self.probs), self.crop.size, self.crop.size)

    def sample(
        self, height: int, width: int, step: int, row: int
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int32]]:
        """Draws the crops of one image, a pure function of seed, step and row of the global batch.

        Returns:
          on bool[V], box i32[V, 4].
        """
        draws = [
            self._draw(height, width, prob, uniforms(self._numbers, self.seed, step, row, view))
            for view, prob in enumerate(self.probs)
        ]
        chosen = [draws[source] for source in self.sources]
        return np.array([on for on, _ in chosen]), np.array([box for _, box in chosen], np.int32)

    def apply(self, image: Pixels, on: npt.NDArray[np.bool_], box: npt.NDArray[np.int32]) -> Pixels:
        """Cuts and resizes: u8[H, W, C] -> u8[V, h, w, C]."""
        whole = (0, 0, *image.shape[:2])
        boxes = [b if o else whole for o, b in zip(on.tolist(), box.tolist(), strict=True)]
        return np.stack([self._resize(image, *b) for b in boxes])

    @property
    def _numbers(self) -> int:
        return 3 + 2 * self.crop.attempts

    def _draw(
        self, height: int, width: int, prob: float, u: npt.NDArray[np.float64]
    ) -> tuple[bool, tuple[int, int, int, int]]:
        crop = self.crop
        coin, top_at, left_at = u[:3]
        ratio_at, extent_at = u[3:].reshape(2, crop.attempts)
        low, high = crop.ratio
        if crop.aspect == "log":
            ratio = np.exp(math.log(low) + ratio_at * (math.log(high) - math.log(low)))
        else:
            ratio = low + ratio_at * (high - low)
        min_area, max_area = (share * height * width for share in crop.scale)
        if crop.extent == "area":
            area = min_area + extent_at * (max_area - min_area)
            h, w = np.round(np.sqrt(area / ratio)), np.round(np.sqrt(area * ratio))
            fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
        else:
            lowest, highest = (
                np.round(np.sqrt(min_area / ratio)),
                np.round(np.sqrt(max_area / ratio)),
            )
            # The tallest box whose rounded width still fits the image.
            widest = np.floor((width + 0.5 - 1e-7) / ratio)
            highest = np.where(np.round(highest * ratio) > width, widest, highest)
            highest = np.minimum(highest, height)
            lowest = np.minimum(lowest, highest)
            h = lowest + np.floor(extent_at * (highest - lowest + 1))
            w = np.round(h * ratio)
            fits = (h > 0) & (w > 0) & (w <= width) & (h * w >= min_area) & (h * w <= max_area)
        fits &= h * w >= crop.min_covered * height * width
        if not fits.any():
            box_h, box_w = self._fallback(height, width)
            box = ((height - box_h) // 2, (width - box_w) // 2, box_h, box_w)
        else:
            first = int(np.argmax(fits))
            box_h, box_w = int(h[first]), int(w[first])
            top, left = int(top_at * (height - box_h + 1)), int(left_at * (width - box_w + 1))
            box = (top, left, box_h, box_w)
        return bool(coin < prob), box

    def _fallback(self, height: int, width: int) -> tuple[int, int]:
        low, high = self.crop.ratio
        if self.crop.fallback == "center" and width / height < low:
            return max(1, round(width / low)), width
        if self.crop.fallback == "center" and width / height > high:
            return height, max(1, round(height * high))
        return height, width

    def _resize(self, image: Pixels, top: int, left: int, height: int, width: int) -> Pixels:
        size, method = self.crop.size, self.crop.method
        cut = image[top : top + height, left : left + width]
        if self.crop.antialias:
            return resize(cut, size, size, _FILTERS[method])
        tall = _resize_axis(cut.astype(np.float32), size, method)
        wide = _resize_axis(tall.swapaxes(0, 1), size, method).swapaxes(0, 1)
        return np.clip(np.floor(wide + 0.5), 0, 255).astype(np.uint8)


def _resize_axis(image: npt.NDArray[np.float32], size: int, method: str) -> npt.NDArray[np.float32]:
    """Resizes the first axis of f[n, m, C] with the bare filter, without antialiasing."""
    length = len(image)
    center = (np.arange(size) + 0.5) * (length / size) - 0.5
    taps = np.floor(center)[:, None].astype(np.int64) + np.array(_TAPS[method])
    x = np.abs(taps - center[:, None])
    if method == "bicubic":  # Keys' filter with a = -0.5
        inner, outer = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = np.where(x < 1, inner, np.where(x < 2, outer, 0))
    else:
        weights = np.maximum(1 - x, 0)
    weights = np.where((taps >= 0) & (taps < length), weights, 0)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    taps = np.clip(taps, 0, length - 1)
    return np.einsum("st,stmc->smc", weights, image[taps])
