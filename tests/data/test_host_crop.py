"""Crops on the host against the definition of the op, with draws and pixels checked apart."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from corpus import picture
from PIL import Image
from scipy import stats

from jaxcl.data.host_crop import HostCrop
from jaxcl.views import Crop, View, ViewProgram


def host_crop(views=2, seed=0, **options):
    return HostCrop(Crop(**options), (1.0,) * views, tuple(range(views)), seed)


def boxes(crop, height, width, n=1000):
    return np.stack([crop.sample(height, width, step, 0)[1][0] for step in range(n)]).astype(float)


@pytest.mark.parametrize("extent", ["area", "height"])
@pytest.mark.parametrize("aspect", ["log", "uniform"])
@pytest.mark.parametrize(("height", "width"), [(60, 90), (90, 60), (33, 33)])
def test_boxes_are_in_range(extent, aspect, height, width):
    crop = host_crop(extent=extent, aspect=aspect, scale=(0.2, 0.7))
    top, left, h, w = boxes(crop, height, width, 300).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    area = h * w / (height * width)
    ratio = w / h
    slack = 1.5 * (1 / h + 1 / w)  # sides are whole pixels
    assert (area >= 0.2 - slack * area).all()
    assert (area <= 0.7 + slack * area).all()
    assert (ratio >= 3 / 4 - slack * ratio).all()
    assert (ratio <= 4 / 3 + slack * ratio).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"aspect": "uniform", "extent": "height", "min_covered": 0.1},
        {"scale": (0.5, 0.9), "ratio": (1.0, 1.0)},
        {"scale": (0.3, 1.0), "ratio": (0.5, 0.6), "fallback": "center", "attempts": 2},
    ],
)
def test_draws_have_the_distribution_of_the_op(options):
    """Two samples, one of the host and one of the device: Kolmogorov-Smirnov for each number."""
    height, width, n = 200, 300, 1000
    op = Crop(**options)
    keys = jax.random.split(jax.random.key(1), n)
    device = jax.jit(jax.vmap(lambda key: op.sample(key, (height, width, 3))["box"]))(keys)
    device = np.asarray(device, float)
    host = boxes(host_crop(**options), height, width, n)
    area = [b[:, 2] * b[:, 3] for b in (host, device)]
    ratio = [b[:, 3] / b[:, 2] for b in (host, device)]
    for name, (a, b) in {
        "area": area,
        "ratio": ratio,
        "top": (host[:, 0], device[:, 0]),
        "left": (host[:, 1], device[:, 1]),
    }.items():
        assert stats.ks_2samp(a, b).pvalue > 1e-3, name


def test_area_and_ratio_are_drawn_as_declared():
    top, left, h, w = boxes(host_crop(scale=(0.1, 0.5)), 1000, 1000).T
    area = h * w / 1e6
    assert stats.kstest(area, stats.uniform(0.1, 0.4).cdf).pvalue > 1e-3
    low, high = math.log(3 / 4), math.log(4 / 3)
    assert stats.kstest(np.log(w / h), stats.uniform(low, high - low).cdf).pvalue > 1e-3
    assert stats.kstest((top + 0.5) / (1001 - h), "uniform").pvalue > 1e-3
    assert stats.kstest((left + 0.5) / (1001 - w), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("fallback", "size", "expected"),
    [
        ("whole", (10, 1000), (0, 0, 10, 1000)),
        ("center", (10, 1000), (0, 493, 10, 13)),
        ("center", (1000, 10), (493, 0, 13, 10)),
        ("center", (1, 1), (0, 0, 1, 1)),
    ],
)
def test_fallback(fallback, size, expected):
    crop = host_crop(fallback=fallback, attempts=3, scale=(0.9, 1.0))
    on, box = crop.sample(*size, 0, 0)
    assert box.tolist() == [list(expected)] * 2
    assert on.all()


def test_draws_are_a_function_of_seed_step_row_and_view():
    crop = host_crop(views=3, seed=4)
    on, box = crop.sample(50, 60, 7, 8)
    assert on.dtype == bool
    assert box.dtype == np.int32
    np.testing.assert_array_equal(crop.sample(50, 60, 7, 8)[1], box)
    others = [crop.sample(50, 60, 8, 7)[1], crop.sample(50, 60, 7, 9)[1]]
    others.append(dataclasses.replace(crop, seed=5).sample(50, 60, 7, 8)[1])
    rows = {tuple(row) for other in [box, *others] for row in other.tolist()}
    assert len(rows) == 12
    np.testing.assert_array_equal(host_crop(views=2, seed=4).sample(50, 60, 7, 8)[1], box[:2])


def test_views_of_a_program():
    program = ViewProgram(
        (("zoom", Crop(size=8, prob=0.5)),),
        (View(), View(share={"zoom": 0}), View(prob={"zoom": 1.0}), View(share={"zoom": 1})),
    )
    crop = HostCrop.of(program, 3)
    assert crop.shape == (4, 8, 8)
    drawn = [crop.sample(50, 60, step, 0) for step in range(400)]
    on, box = np.stack([on for on, _ in drawn]), np.stack([box for _, box in drawn])
    for view in (1, 3):
        np.testing.assert_array_equal(on[:, view], on[:, 0])
        np.testing.assert_array_equal(box[:, view], box[:, 0])
    assert abs(on[:, 0].mean() - 0.5) < 0.1
    assert on[:, 2].all()
    assert (box[:, 2] != box[:, 0]).any(axis=1).mean() > 0.9


def test_programs_without_a_crop_first():
    with pytest.raises(ValueError, match="views that begin with a crop"):
        HostCrop.of(ViewProgram((), (View(),)), 0)


BOX = np.array([[3, 5, 11, 20], [0, 0, 24, 32], [23, 31, 1, 1], [10, 2, 14, 6]], np.int32)


@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [8, 40])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_pillow(method, size, channels):
    image = picture(channels=channels)
    crop = host_crop(views=4, size=size, method=method)
    made = crop.apply(image, np.array([True, False, True, True]), BOX)
    flat = Image.fromarray(image[..., 0] if channels == 1 else image)
    for view, (top, left, h, w) in zip(made, BOX.tolist(), strict=True):
        cut = flat.crop((left, top, left + w, top + h))
        expected = np.asarray(cut.resize((size, size), Image.Resampling[method.upper()]))
        np.testing.assert_array_equal(view, expected.reshape(size, size, channels))


@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [8, 40])
def test_pixels_are_those_of_the_op(method, antialias, size):
    """The device computes in floats, so that rounding to bytes is all that may differ.

    Pillow also clips between its two passes; contrast is low here, so that nothing overshoots.
    """
    image = np.random.default_rng(0).integers(70, 186, (24, 32, 3), dtype=np.uint8)
    crop = host_crop(views=4, size=size, method=method, antialias=antialias)
    made = crop.apply(image, np.ones(4, bool), BOX)
    params = {"on": np.ones(4, bool), "box": BOX}
    expected = jax.jit(jax.vmap(crop.crop.apply, (None, 0)))(image.astype(np.float32) / 255, params)
    difference = np.abs(made - 255 * np.asarray(expected))
    assert difference.max() < (1.6 if antialias else 0.51)


def test_switched_off_shows_the_whole_image():
    image = picture()
    crop = host_crop(views=2, size=12)
    box = np.array([[1, 2, 3, 4], [1, 2, 3, 4]], np.int32)
    off, on = crop.apply(image, np.array([False, True]), box)
    np.testing.assert_array_equal(off, np.asarray(Image.fromarray(image).resize((12, 12), 3)))
    assert not np.array_equal(off, on)
