"""Files as they are found in the wild: what can be read is read right, the rest is named."""

import io
import os

import numpy as np
import pytest
from corpus import chunk, encode, picture, png, png_bomb, raw_png, text_bomb
from PIL import Image

from jaxcl.data.base import BadExample
from jaxcl.data.decode import decode, fit, read_file, set_channels


def close(image, expected, tolerance):
    """Mean and maximum are bounded: lossy files differ a little everywhere, no more."""
    difference = np.abs(image.astype(int) - expected.astype(int))
    assert image.shape == expected.shape
    assert difference.mean() < tolerance
    assert difference.max() < 12 * tolerance


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_pixels(kind):
    image = picture()
    np.testing.assert_array_equal(decode(encode(image, kind), "x.jpg"), image)


def test_lossless_webp_gives_the_pixels():
    image = picture()
    np.testing.assert_array_equal(decode(encode(image, "WEBP", lossless=True), "x.jpg"), image)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}])
def test_jpeg(options):
    image = picture()
    close(decode(encode(image, "JPEG", quality=95, **options), "x.jpg"), image, 4)


def test_gif_takes_the_first_frame():
    frames = [Image.new("P", (8, 6), i) for i in (1, 2, 3)]
    for frame in frames:
        frame.putpalette([0, 0, 0, 250, 10, 20, 0, 255, 0, 0, 0, 255])
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    image = decode(data, "x.gif")
    assert image.shape == (6, 8, 3)
    assert (image == (250, 10, 20)).all()


def test_multi_page_tiff_takes_the_first_page():
    pages = [Image.new("RGB", (8, 6), color) for color in ((9, 8, 7), (1, 2, 3))]
    image = decode(encode(pages[0], "TIFF", save_all=True, append_images=pages[1:]), "x.tif")
    assert (image == (9, 8, 7)).all()


def test_grey_becomes_colour_and_colour_grey():
    grey = picture(channels=1)
    np.testing.assert_array_equal(decode(png(grey), "x"), np.repeat(grey, 3, axis=-1))
    np.testing.assert_array_equal(decode(png(grey), "x", channels=1), grey)
    image = picture()
    luma = image.astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(decode(png(image), "x", channels=1)[..., 0] - luma).max() <= 1
    assert np.abs(set_channels(image, 1)[..., 0] - luma).max() <= 1


def on_white(rgb, alpha):
    a = alpha.astype(float)[..., None] / 255
    return rgb * a + 255 * (1 - a)


@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_put_on_white(channels):
    rgb, alpha = picture(), picture()[..., 0]
    expected = on_white(rgb, alpha)
    if channels == 1:
        expected = expected @ np.array([[0.299], [0.587], [0.114]])
    image = decode(png(np.dstack([rgb, alpha])), "x", channels)
    assert np.abs(image - expected).max() <= 1.5


def test_grey_with_alpha_is_put_on_white():
    grey, alpha = picture()[..., 0], picture()[..., 1]
    data = png(Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]))
    expected = np.repeat(on_white(grey[..., None], alpha), 3, axis=-1)
    assert np.abs(decode(data, "x") - expected).max() <= 1.5


def test_palette_with_transparency_is_put_on_white():
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "L").convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    data = encode(image, "PNG", transparency=bytes([255, 0, 255]))
    expected = [[[10, 20, 30], [255, 255, 255]], [[70, 80, 90], [255, 255, 255]]]
    np.testing.assert_array_equal(decode(data, "x"), expected)


def test_one_bit():
    bits = np.eye(8, dtype=bool)
    image = decode(png(Image.fromarray(bits)), "x", channels=1)
    np.testing.assert_array_equal(image[..., 0], bits * 255)


def test_sixteen_bit_grey_keeps_the_upper_byte():
    values = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4369
    data = raw_png(4, 4, 16, 0, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    np.testing.assert_array_equal(decode(data, "x", channels=1)[..., 0], values >> 8)


def test_sixteen_bit_colour_keeps_the_upper_byte():
    values = np.arange(48, dtype=np.uint16).reshape(4, 4, 3) * 1365
    data = raw_png(4, 4, 16, 2, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    np.testing.assert_array_equal(decode(data, "x"), values >> 8)


@pytest.mark.parametrize("quality", [95])
def test_cmyk_jpeg(quality):
    rgb = picture()
    data = encode(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=quality)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "CMYK"
    close(decode(data, "x.jpg"), rgb, 5)
    assert decode(data, "x.jpg", channels=1).shape == (24, 32, 1)


# What the eight orientations mean: where row 0 and column 0 of the file belong (EXIF 2.32, 4.6.4).
ORIENTED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(orientation, kind):
    upright = picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(ORIENTED[orientation](upright))
    data = encode(stored, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    close(decode(data, "x"), upright, 4)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow says so, and goes on
@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b""])
def test_damaged_exif_counts_as_absent(exif):
    image = picture()
    close(decode(encode(image, "JPEG", quality=95, exif=exif), "x"), image, 4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 65_000), (65_000, 1), (2, 3)])
def test_extreme_shapes(shape):
    image = np.full((*shape, 3), 77, np.uint8)
    decoded = decode(png(image), "x")
    np.testing.assert_array_equal(decoded, image)
    np.testing.assert_array_equal(fit(decoded, 32, 32, 3), np.full((32, 32, 3), 77))


def jpeg():
    return encode(picture(120, 160), "JPEG", quality=90)


def damaged_png():
    data = bytearray(png(picture()))
    data[data.index(b"IDAT") + 30] ^= 0x10
    return bytes(data)


def wrong_checksum_png():
    data = bytearray(png(picture()))
    data[-13] ^= 0x01  # the last byte of the checksum of the image data
    return bytes(data)


BAD = {
    "empty": lambda: b"",
    "one byte": lambda: b"\xff",
    "text": lambda: b"this is no image, whatever its name says\n" * 20,
    "html": lambda: b"<!doctype html><html><body>404 Not Found</body></html>",
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
    "eps": lambda: encode(picture(), "EPS"),
    "pdf": lambda: b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n",
    "ico": lambda: encode(picture(), "ICO"),
    "wrong magic": lambda: b"\x00\x00" + jpeg()[2:],
    "zeros": lambda: bytes(5000),
    "jpeg 10 %": lambda: jpeg()[: len(jpeg()) // 10],
    "jpeg 50 %": lambda: jpeg()[: len(jpeg()) // 2],
    "jpeg 99 %": lambda: jpeg()[: len(jpeg()) * 99 // 100],
    "progressive 50 %": lambda: encode(picture(120, 160), "JPEG", progressive=True)[:900],
    "png 50 %": lambda: png(picture())[: len(png(picture())) // 2],
    "png 99 %": lambda: png(picture())[:-20],
    "png damaged": damaged_png,
    "png wrong checksum": wrong_checksum_png,
    "png without data": lambda: raw_png(4, 4, 8, 0, b""),
    "png of no width": lambda: raw_png(0, 4, 8, 0, b""),
    "gif 50 %": lambda: encode(picture(64, 64), "GIF")[:900],
    "bmp 50 %": lambda: encode(picture(), "BMP")[:1000],
    "tiff 50 %": lambda: encode(picture(), "TIFF")[:1000],
    "webp 50 %": lambda: encode(picture(), "WEBP", lossless=True)[:100],
    "bomb": png_bomb,
    "text bomb": text_bomb,
    "float tiff": lambda: encode(Image.new("F", (4, 4), 0.5), "TIFF"),
    "32-bit tiff": lambda: encode(Image.new("I", (4, 4), 70_000), "TIFF"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_named(kind):
    with pytest.raises(BadExample, match=r"cats/1\.jpg") as caught:
        decode(BAD[kind](), "cats/1.jpg")
    assert caught.value.name == "cats/1.jpg"
    assert caught.value.reason


def test_too_many_pixels_are_refused_before_decoding(monkeypatch):
    data = encode(Image.new("L", (1200, 1000)), "PNG")
    assert decode(data, "x", channels=1, max_pixels=1_200_000).shape == (1000, 1200, 1)

    def load(image):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(BadExample, match="1200x1000 pixels, more than 1199999"):
        decode(data, "x", max_pixels=1_199_999)
    with pytest.raises(BadExample, match="too many pixels"):
        decode(png_bomb(), "x", max_pixels=10**10)  # Pillow's own limit stays


def test_eps_starts_no_program(monkeypatch):
    def start(*args, **kwargs):
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", start)
    monkeypatch.setattr("os.system", start)
    with pytest.raises(BadExample, match="not an image in one of the formats"):
        decode(encode(picture(), "EPS"), "x.jpg")


def test_unused_chunks_do_no_harm():
    extra = chunk(b"tEXt", b"Comment\0" + b"x" * 500) + chunk(b"prVt", b"private")
    data = raw_png(2, 2, 8, 0, b"\0\x10\x20\0\x30\x40", extra)
    np.testing.assert_array_equal(decode(data, "x", 1)[..., 0], [[0x10, 0x20], [0x30, 0x40]])


def test_fault_text_escapes_the_name():
    assert str(BadExample("a\nb\udcff.jpg", "broken")) == r"'a\nb\udcff.jpg': broken"


def test_read_file(tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(b"12345")
    assert read_file(path, "x") == b"12345"
    assert read_file(path, "x", 5) == b"12345"
    with pytest.raises(BadExample, match="has changed: 5 bytes, 6 when"):
        read_file(path, "x", 6)


def test_read_file_refuses_what_is_no_file(tmp_path):
    (tmp_path / "dir.jpg").mkdir()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    os.mkfifo(tmp_path / "fifo.jpg")
    for name, reason in {
        "dir.jpg": "director",
        "empty.jpg": "empty",
        "broken.jpg": "No such file",
        "circle.jpg": "symbolic links",
        "fifo.jpg": "not a regular file",
        "missing.jpg": "No such file",
        "x" * 300 + ".jpg": "too long",
        "nul\0.jpg": "null",
    }.items():
        with pytest.raises(BadExample, match=reason) as caught:
            read_file(tmp_path / name, name)
        assert caught.value.name == name
    with pytest.raises(BadExample, match="not a regular file"):
        read_file("/dev/zero", "zero.jpg")


def test_read_file_names_one_without_permission(tmp_path, monkeypatch):
    # Tests may run as root, whom permissions do not stop.
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(BadExample, match="'x': Permission denied"):
        read_file(tmp_path / "x.jpg", "x")


def test_read_file_refuses_huge_files(tmp_path):
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(BadExample, match="1099511627776 bytes, more than"):
        read_file(tmp_path / "huge.jpg", "huge.jpg")


def test_fit_keeps_an_image_of_the_size():
    image = picture(32, 32)
    assert fit(image, 32, 32, 3) is image


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 64), (64, 100)])
def test_fit_averages_the_centre(height, width):
    """Far from edges a linear ramp stays one, so each pixel is the ramp at its centre."""
    y, x = np.mgrid[:height, :width].astype(float)
    image = np.stack([x * 2, y * 2, x + y], axis=-1).astype(np.uint8)
    result = fit(image, 32, 32, 3).astype(float)
    scale = min(height, width) / 32
    center = (np.arange(32) + 0.5) * scale - 0.5
    xs = (width - min(height, width)) / 2 + center
    ys = (height - min(height, width)) / 2 + center
    inner = slice(3, -3)
    assert np.abs(result[..., 0] - 2 * xs)[inner, inner].max() <= 1
    assert np.abs(result[..., 1] - 2 * ys[:, None])[inner, inner].max() <= 1


def test_fit_to_other_proportions():
    image = np.zeros((40, 40, 3), np.uint8)
    image[10:30] = 200  # the middle half in height is all that a 2:1 shape shows
    result = fit(image, 20, 40, 3)
    assert result.shape == (20, 40, 3)
    assert (result[2:-2] == 200).all()
