"""Images of noise, to measure computation without input."""

from __future__ import annotations

import numpy as np

from jaxcl.data.arrays import ArraySource
from jaxcl.data.philox import words

EXAMPLES = 4096


def load_noise(split: str, size: int, channels: int, examples: int = EXAMPLES) -> ArraySource:
    """Independent bytes u8[examples, size, size, channels] in memory, without labels.

    Args:
      split: any name; other splits have other noise.
      size: height and width.
      channels: 1 or 3.
      examples: number of images.
    """
    shape = (examples, size, size, channels)
    count = -(-int(np.prod(shape)) // 8)
    seed = int.from_bytes(split.encode()[:8], "little")
    # Little-endian words, so that the bytes are the same on every machine.
    data = words(count, seed).astype("<u8").view(np.uint8)
    return ArraySource(data[: int(np.prod(shape))].reshape(shape))
