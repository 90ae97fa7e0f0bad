"""From the bytes of an image file to pixels, for files that nobody has looked at before."""

from __future__ import annotations

import io
import os
import stat

import numpy as np
import numpy.typing as npt
from PIL import Image

from jaxcl.data.base import BadExample

Pixels = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that are decoded, told by content. None of them starts a program, as EPS would."""

EXTENSIONS = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
    )
)
"""File names that are taken for images when a folder is listed (in any case of letters)."""

MAX_PIXELS = 50_000_000
MAX_BYTES = 256 * 2**20

# EXIF orientation -> what brings the image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112


def read_file(path: str | os.PathLike[str], name: str, expected_size: int | None = None) -> bytes:
    """Reads a regular file; never waits on a FIFO or device.

    Args:
      path: the file.
      name: what to call it in errors.
      expected_size: bytes that it had when it was listed, None if that is not known.

    Raises:
      BadExample: missing, unreadable, no regular file, empty, too large, or of another size.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise BadExample(name, "not a regular file")
            if status.st_size == 0:
                raise BadExample(name, "the file is empty (0 bytes)")
            if status.st_size > MAX_BYTES:
                raise BadExample(name, f"{status.st_size} bytes, more than {MAX_BYTES}")
            if expected_size is not None and status.st_size != expected_size:
                raise BadExample(
                    name,
                    f"has changed: {status.st_size} bytes, {expected_size} when it was listed",
                )
            return file.read()
    except OSError as error:
        raise BadExample(name, error.strerror or str(error)) from error
    except ValueError as error:  # a null byte in the path
        raise BadExample(name, str(error)) from error


def decode(data: bytes, name: str, channels: int = 3, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decodes an image file of any of `FORMATS`.

    The EXIF orientation is applied (an EXIF block that cannot be read counts as absent),
    transparent pixels are put on white, 16 bits are cut to their upper 8, of animations and
    multi-page files the first image is taken.

    Args:
      data: the whole file.
      name: what to call it in errors.
      channels: 3 for RGB, 1 for luma (ITU-R 601).
      max_pixels: larger images are refused before any pixel is decoded.

    Returns:
      u8[h, w, channels].

    Raises:
      BadExample: the file is damaged, of another kind, or too large.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadExample(name, f"{width}x{height} pixels, more than {max_pixels}")
            if image.format == "PNG":
                _verify(data)
            upright = _UPRIGHT.get(_orientation(image))
            plain = _to_eight_bits(image, name, channels)
    except BadExample:
        raise
    except Image.UnidentifiedImageError as error:
        raise BadExample(
            name, f"not an image in one of the formats {', '.join(FORMATS)}"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadExample(name, f"too many pixels: {error}") from error
    # A damaged file may raise anything at all, from struct.error to SyntaxError.
    except Exception as error:
        raise BadExample(name, f"cannot be decoded: {error}") from error
    if upright is not None:
        plain = plain.transpose(upright)
    pixels = np.asarray(plain)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _verify(data: bytes) -> None:
    """Checks the checksum of every chunk of a PNG, which decoding alone does not."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        image.verify()


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # the block is damaged: an unknown orientation is no orientation
        return 1


def _to_eight_bits(image: Image.Image, name: str, channels: int) -> Image.Image:
    """Mode "RGB" or "L" from any mode."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise BadExample(name, f"pixels of mode {image.mode!r} (32 bits), whose range is unknown")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    mode = "RGB" if channels == 3 else "L"
    if mode == "L" and image.mode not in ("L", "1", "RGB"):
        image = image.convert("RGB")  # palettes, CMYK and alpha have no direct way to luma
    return image.convert(mode)


def set_channels(image: Pixels, channels: int) -> Pixels:
    """u8[h, w, 1 or 3] -> u8[h, w, channels]: grey is repeated, colour becomes luma."""
    if image.shape[-1] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=-1)
    return np.asarray(Image.fromarray(image).convert("L"))[..., None]


def fit(image: Pixels, height: int, width: int, channels: int) -> Pixels:
    """Makes u8[height, width, channels] of any image u8[h, w, 1 or 3].

    The image is resized (bicubic, antialiased) until it just covers the shape, and cropped at the
    centre, in one step. An image of this size is returned as it is.
    """
    h, w = image.shape[:2]
    if (h, w) != (height, width):
        scale = min(h / height, w / width)
        box_h, box_w = min(scale * height, h), min(scale * width, w)
        top, left = (h - box_h) / 2, (w - box_w) / 2
        box = (left, top, left + box_w, top + box_h)
        image = resize(image, height, width, box=box)
    return set_channels(image, channels)


def resize(
    image: Pixels,
    height: int,
    width: int,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
    box: tuple[float, float, float, float] | None = None,
) -> Pixels:
    """Resizes u8[h, w, C], or the box (left, top, right, bottom) of it, antialiased.

    At the edges of a box the filter sees the pixels outside of it.

    Returns:
      u8[height, width, C].
    """
    flat = image[..., 0] if image.shape[-1] == 1 else image
    pixels = np.asarray(Image.fromarray(flat).resize((width, height), resample, box=box))
    return pixels if pixels.ndim == 3 else pixels[..., None]
