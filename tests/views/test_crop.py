"""Random resized crop against Pillow, a NumPy oracle and the distributions that it promises."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxcl import views

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def draw(op, shape, count=10_000, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    params = jax.jit(jax.vmap(lambda key: op.sample(key, shape)))(keys)
    return {name: np.asarray(values) for name, values in params.items()}


def pillow_crop(image, box, size, method):
    """Crop, then resize, of each channel as a 32-bit float image."""
    top, left, h, w = box
    channels = []
    for channel in range(image.shape[-1]):
        whole = Image.fromarray(image[..., channel].astype(np.float32))
        part = whole.crop((left, top, left + w, top + h))
        channels.append(np.asarray(part.resize((size, size), FILTERS[method])))
    return np.clip(np.stack(channels, -1), 0, 1)


def loop_resize(signal, size, method):
    """1-D resize without antialiasing (half-pixel centres, weights renormalised at the border)."""

    def kernel(x):
        x = abs(x)
        if method == "bilinear":
            return max(0.0, 1 - x)
        if x < 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    out = []
    for i in range(size):
        center = (i + 0.5) * len(signal) / size - 0.5
        weights = [kernel(j - center) for j in range(len(signal))]
        out.append(sum(w * v for w, v in zip(weights, signal, strict=True)) / sum(weights))
    return np.array(out)


@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [5, 16, 40])
def test_equals_pillows_crop_and_resize(method, size):
    rng = np.random.default_rng(size)
    image = rng.random((31, 23, 3)).astype(np.float32)
    op = views.Crop(size=size, method=method)
    apply = jax.jit(op.apply)
    boxes = [(0, 0, 31, 23), (3, 5, 7, 11), (30, 22, 1, 1), (0, 12, 31, 2), (8, 0, 16, 16)]
    for box in boxes:
        made = apply(image, {"on": jnp.asarray(True), "box": jnp.asarray(box)})
        np.testing.assert_allclose(made, pillow_crop(image, box, size, method), atol=1e-5)


@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [6, 30])
def test_without_antialiasing_equals_loops(method, size):
    image = np.random.default_rng(0).random((20, 17, 1))
    top, left, h, w = 4, 3, 13, 11
    op = views.Crop(size=size, method=method, antialias=False)
    made = jax.jit(op.apply)(
        image.astype(np.float32), {"on": True, "box": jnp.array([top, left, h, w])}
    )
    part = image[top : top + h, left : left + w, 0]
    rows = np.stack([loop_resize(column, size, method) for column in part.T], 1)
    expected = np.stack([loop_resize(row, size, method) for row in rows])
    np.testing.assert_allclose(made[..., 0], np.clip(expected, 0, 1), atol=2e-6)


def test_result_does_not_depend_on_pixels_outside_the_box():
    rng = np.random.default_rng(1)
    image = rng.random((12, 12, 3)).astype(np.float32)
    other = rng.random((12, 12, 3)).astype(np.float32)
    other[2:9, 3:8] = image[2:9, 3:8]
    params = {"on": jnp.asarray(True), "box": jnp.array([2, 3, 7, 5])}
    apply = jax.jit(views.Crop(size=8).apply)
    np.testing.assert_array_equal(apply(image, params), apply(other, params))


def test_coin_off_resizes_the_whole_image():
    image = np.random.default_rng(2).random((14, 9, 3)).astype(np.float32)
    params = {"on": jnp.asarray(False), "box": jnp.array([2, 3, 7, 5])}
    made = jax.jit(views.Crop(size=8).apply)(image, params)
    np.testing.assert_allclose(made, pillow_crop(image, (0, 0, 14, 9), 8, "bicubic"), atol=1e-5)


def test_whole_image_at_its_own_size_is_the_identity():
    image = np.random.default_rng(3).random((16, 16, 3)).astype(np.float32)
    op = views.Crop(size=16, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    params = jax.jit(lambda key: op.sample(key, image.shape))(jax.random.key(0))
    np.testing.assert_array_equal(params["box"], [0, 0, 16, 16])
    np.testing.assert_allclose(jax.jit(op.apply)(image, params), image, atol=1e-6)


@pytest.mark.parametrize("extent", ["area", "height"])
@pytest.mark.parametrize("shape", [(224, 224, 3), (150, 240, 3)])
def test_boxes_are_in_range_and_inside(extent, shape):
    op = views.Crop(size=8, extent=extent, aspect="log" if extent == "area" else "uniform")
    top, left, h, w = draw(op, shape)["box"].T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= shape[0]).all()
    assert (left + w <= shape[1]).all()
    area = h * w / (shape[0] * shape[1])
    # Whole pixels: each side is off by half a pixel at most.
    rounding = 0.5 * (1 / h + 1 / w)
    assert (area >= 0.08 * (1 - 1.1 * rounding)).all()
    assert area.max() <= 1
    assert (np.abs(np.log(w / h)) <= math.log(4 / 3) + 1.1 * rounding).all()
    assert area.min() < 0.1  # the range is used down to its ends
    largest = min(shape[:2]) / max(shape[:2]) * 4 / 3  # of a box as wide as its ratio lets it
    assert area.max() > 0.98 * min(largest, 1)
    assert np.log(w / h).min() < math.log(3 / 4) + 0.01
    assert np.log(w / h).max() > math.log(4 / 3) - 0.01


def test_area_is_uniform_and_the_place_too():
    op = views.Crop(size=8, ratio=(1.0, 1.0))
    top, left, h, w = draw(op, (1000, 1000, 3), seed=1)["box"].T
    area = (h * w / 1e6 - 0.08) / 0.92
    for sample in (area, (top + 0.5) / (1000 - h + 1), (left + 0.5) / (1000 - w + 1)):
        counts, _ = np.histogram(sample, bins=10, range=(0, 1))
        assert counts.sum() == 10_000
        assert np.sum((counts - 1000) ** 2 / 1000) < 33.7  # chi-square, 9 degrees, p = 1e-4


def test_aspect_is_log_uniform_or_uniform():
    # A small range of the area, so that every aspect ratio fits.
    shape = (2000, 2000, 3)
    for aspect, sample in (
        ("log", lambda r: (np.log(r) - np.log(0.5)) / np.log(4)),
        ("uniform", lambda r: (r - 0.5) / 1.5),
    ):
        op = views.Crop(size=8, scale=(0.3, 0.4), ratio=(0.5, 2.0), aspect=aspect)
        _, _, h, w = draw(op, shape, seed=2)["box"].T
        counts, _ = np.histogram(np.clip(sample(w / h), 0, 0.999), bins=8, range=(0, 1))
        assert counts.sum() == 10_000
        assert np.sum((counts - 1250) ** 2 / 1250) < 29.9  # 7 degrees, p = 1e-4


def tensorflow_box(rng, height, width, scale, ratio, min_covered):
    """The rejection loop of TensorFlow's sample_distorted_bounding_box for the whole image."""
    low, high = (fraction * height * width for fraction in scale)
    for _ in range(100):
        aspect = rng.uniform(*ratio)
        h = round(math.sqrt(low / aspect))
        tallest = round(math.sqrt(high / aspect))
        if round(tallest * aspect) > width:
            tallest = int((width + 0.5 - 1e-7) / aspect)
        tallest = min(tallest, height)
        h = min(h, tallest)
        h += int(rng.integers(tallest - h + 1))
        if h * round(h * aspect) < low:
            h += 1
        if h * round(h * aspect) > high:
            h -= 1
        w = round(h * aspect)
        fits = low <= h * w <= high and 0 < w <= width and 0 < h <= height
        if fits and h * w >= min_covered * height * width:
            return h, w
    return height, width


def largest_gap(a, b):
    """Kolmogorov-Smirnov distance of two samples."""
    grid = np.sort(np.concatenate([a, b]))
    a, b = np.sort(a), np.sort(b)
    return np.abs(
        np.searchsorted(a, grid, "right") / len(a) - np.searchsorted(b, grid, "right") / len(b)
    ).max()


@pytest.mark.parametrize("shape", [(32, 32, 3), (150, 240, 3)])
def test_extent_height_has_tensorflows_distribution(shape):
    settings = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "min_covered": 0.1}
    rng = np.random.default_rng(0)
    expected = np.array([tensorflow_box(rng, *shape[:2], **settings) for _ in range(10_000)])
    limit = 2.2 * math.sqrt(2 / 10_000)  # p about 1e-4
    gaps = {}
    for extent in ("height", "area"):
        op = views.Crop(size=8, aspect="uniform", extent=extent, **settings)
        _, _, h, w = draw(op, shape, seed=3)["box"].T
        gaps[extent] = max(
            largest_gap(h, expected[:, 0]),
            largest_gap(w, expected[:, 1]),
            largest_gap(h * w, expected.prod(1)),
        )
    assert gaps["height"] < limit
    assert gaps["area"] > 2 * limit  # the other way of drawing is told apart


def test_min_covered_is_the_effective_floor():
    for floor, extent in ((0.1, "height"), (0.3, "area")):
        op = views.Crop(size=8, min_covered=floor, extent=extent)
        _, _, h, w = draw(op, (224, 224, 3), seed=4)["box"].T
        assert (h * w >= floor * 224 * 224).all()
        assert (h * w).min() < (floor + 0.02) * 224 * 224


@pytest.mark.parametrize(
    ("fallback", "shape", "expected"),
    [
        ("whole", (10, 100), [0, 0, 10, 100]),
        ("center", (10, 100), [0, 43, 10, 13]),
        ("center", (100, 10), [43, 0, 13, 10]),
        ("center", (90, 100), [0, 0, 90, 100]),
    ],
)
def test_fallback_when_no_attempt_fits(fallback, shape, expected):
    op = views.Crop(size=8, scale=(1.0, 1.0), attempts=5, fallback=fallback)
    boxes = draw(op, (*shape, 3), count=20)["box"]
    if shape != (90, 100):  # there, some attempts may fit
        np.testing.assert_array_equal(boxes, [expected] * 20)
    else:
        assert expected in boxes.tolist()


def test_more_attempts_change_nothing_for_those_that_fitted():
    few = draw(views.Crop(size=8, attempts=10), (64, 64, 3), count=500)["box"]
    many = draw(views.Crop(size=8, attempts=100), (64, 64, 3), count=500)["box"]
    same = (few == many).all(1)
    assert same.mean() > 0.99
    assert (few[~same] == [0, 0, 64, 64]).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 0}, r"Crop.size = 0: expected a number in \[1, inf\]"),
        ({"scale": (0.5, 0.2)}, r"Crop.scale = \(0.5, 0.2\)"),
        ({"scale": (0.5, 1.2)}, r"0 <= low <= high <= 1"),
        ({"ratio": (0.0, 1.0)}, r"Crop.ratio"),
        ({"aspect": "logarithm"}, r"Crop.aspect = 'logarithm': expected one of \('log', 'uniform'"),
        ({"method": "lanczos"}, r"Crop.method = 'lanczos': expected one of"),
        ({"prob": 1.5}, r"Crop.prob = 1.5"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        views.Crop(**{"size": 8, **fields})
