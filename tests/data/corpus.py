"""Image files, good and bad, made with Pillow and by hand."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def picture(height=24, width=32, channels=3):
    """A smooth picture u8[h, w, C] whose four corners differ."""
    y, x = np.mgrid[:height, :width]
    planes = [255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1), 255 - 127 * (x + y) / 60]
    return np.clip(np.stack(planes[:channels], axis=-1), 0, 255).astype(np.uint8)


def encode(image, kind, **options):
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(image):
    return encode(image, "PNG")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width, height, depth, color, rows, extra=b""):
    """A PNG from its parts, for what Pillow does not write."""
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + extra
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )


def png_bomb(side=20_000):
    """A valid one-bit PNG of side x side pixels in 50 kB."""
    row = b"\0" + bytes(-(-side // 8))
    return raw_png(side, side, 1, 0, row * side)


def text_bomb():
    """A small PNG whose compressed text unpacks to 64 MB."""
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(64 * 2**20), 9))
    return raw_png(2, 2, 8, 0, b"\0\x10\x20\0\x30\x40", text)
