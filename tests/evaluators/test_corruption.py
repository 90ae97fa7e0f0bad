"""Corruptions against NumPy, and the classifier that meets them."""

import colorsys
import functools
import sys

import jax
import numpy as np
import pytest

from jaxcl.evaluators import CORRUPTIONS, Features, altered, corruption, logistic_regression
from jaxcl.evaluators.corruption import alter

KEY = jax.random.key(3)


def picture(side=16, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / (side - 1)
    planes = np.stack([0.2 + 0.6 * x, 0.9 - 0.7 * y, 0.3 + 0.3 * x * y], -1)[..., :channels]
    return np.clip(planes + rng.normal(0, 0.05, planes.shape), 0, 1).astype(np.float32)


@functools.cache
def compiled(name):
    return jax.jit(CORRUPTIONS[name].apply)


def apply(name, image, strength):
    return np.asarray(compiled(name)(KEY, image, np.asarray(strength, np.float32)))


def hsv(image, change):
    out = np.empty_like(image)
    for index in np.ndindex(image.shape[:2]):
        out[index] = colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*map(float, image[index]))))
    return out


def test_brightness_and_saturation_are_those_of_hsv():
    image = picture()
    image[0, 0], image[0, 1], image[0, 2] = 0.0, 0.4, 1.0  # black, gray, white
    for c in (0.05, 0.3, 0.5):
        expected = hsv(image, lambda h, s, v, c=c: (h, s, min(v + c, 1)))
        np.testing.assert_allclose(apply("brightness", image, c), expected, atol=1e-5)
    for c in CORRUPTIONS["saturate"].small + CORRUPTIONS["saturate"].large:
        expected = hsv(image, lambda h, s, v, c=c: (h, min(max(s * c[0] + c[1], 0), 1), v))
        np.testing.assert_allclose(apply("saturate", image, c), expected, atol=1e-5)


def test_contrast_and_blur_and_pixelate():
    image = picture()
    mean = image.mean((0, 1))
    got = apply("contrast", image, 0.3)
    np.testing.assert_allclose(got, (image - mean) * 0.3 + mean, atol=1e-5)
    impulse = np.zeros((15, 15, 1), np.float32)
    impulse[7, 7] = 1
    taps = np.exp(-((np.arange(15) - 7.0) ** 2) / 2)
    expected = np.outer(taps, taps) / taps.sum() ** 2
    np.testing.assert_allclose(apply("gaussian_blur", impulse, 1.0)[..., 0], expected, atol=1e-4)
    # 16 -> 4 -> 16 by the mean of each block.
    blocks = image.reshape(4, 4, 4, 4, 3).mean((1, 3))
    np.testing.assert_allclose(
        apply("pixelate", image, 0.25), blocks.repeat(4, 0).repeat(4, 1), atol=1e-5
    )
    # 16 -> 12 -> 16: in twelfths of a pixel, a block is 16 of them.
    fine = image.astype(np.float64).repeat(12, 0).repeat(12, 1)
    blocks = fine.reshape(12, 16, 12, 16, 3).mean((1, 3))
    place = [int((i + 0.5) * 12 / 16) for i in range(16)]
    np.testing.assert_allclose(apply("pixelate", image, 0.75), blocks[place][:, place], atol=1e-5)


def test_motion_blur_smears_to_one_side_along_a_line():
    impulse = np.zeros((41, 41, 1), np.float32)
    impulse[20, 20] = 1
    got = apply("motion_blur", impulse, (15, 5))[..., 0]
    assert got.sum() == pytest.approx(1, abs=1e-4)
    rows, columns = np.nonzero(got > 1e-6)
    assert columns.max() == 20
    assert 20 - 15 <= columns.min() <= 20 - 9
    away = np.hypot(rows - 20, columns - 20)
    weight = got[rows, columns]
    assert weight[away < 7.5].sum() > 3 * weight[away >= 7.5].sum()
    slope = np.polyfit(columns, rows, 1)[0]
    assert abs(slope) <= 1.05
    flat = np.full((9, 9, 3), 0.25, np.float32)
    np.testing.assert_allclose(apply("motion_blur", flat, (9, 2.5)), flat, atol=1e-6)


def test_noises_have_their_moments():
    gray = np.full((120, 120, 3), 0.4, np.float32)
    count = gray.size
    got = apply("gaussian_noise", gray, 0.08)
    assert got.mean() == pytest.approx(0.4, abs=4 * 0.08 / count**0.5)
    assert got.std() == pytest.approx(0.08, rel=0.03)
    got = apply("speckle_noise", gray, 0.2)
    assert got.std() == pytest.approx(0.4 * 0.2, rel=0.03)
    got = apply("shot_noise", gray, 60)
    assert got.mean() == pytest.approx(0.4, abs=0.005)
    assert got.std() == pytest.approx((0.4 / 60) ** 0.5, rel=0.03)
    np.testing.assert_allclose(got * 60, np.round(got * 60), atol=1e-4)
    got = apply("impulse_noise", gray, 0.1)
    assert (got == 0).mean() == pytest.approx(0.05, abs=0.006)
    assert (got == 1).mean() == pytest.approx(0.05, abs=0.006)
    np.testing.assert_array_equal(np.unique(got.round(6)), np.array([0, 0.4, 1], np.float32))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_is_farther_from_the_image(name):
    made = CORRUPTIONS[name]
    assert len(made.small) == len(made.large) == 5
    assert made.strengths(32) == made.small
    assert made.strengths(224) == made.large
    image = picture()
    for strengths in (made.small, made.large):
        far = []
        for strength in strengths:
            got = apply(name, image, strength)
            assert got.shape == image.shape
            assert got.dtype == np.float32
            assert 0 <= got.min() <= got.max() <= 1
            far.append(np.abs(got - image).mean())
        assert far[0] > 1e-3
        if name != "saturate":  # first paler, then more colourful
            assert (np.diff(far) > -6e-3).all(), far
            assert far[-1] > far[0]


def test_gray_images_are_kept_gray():
    image = picture(16, channels=1)
    for name in ("saturate", "brightness", "contrast", "pixelate"):
        assert apply(name, image, CORRUPTIONS[name].small[-1]).shape == image.shape
    np.testing.assert_allclose(apply("saturate", image, (0.3, 0)), image, atol=1e-6)


def batch(images, first=0):
    return {
        "image": images,
        "label": np.zeros((len(images), 1), np.int32),
        "index": np.arange(first, first + len(images)),
    }


def test_an_image_is_corrupted_alike_in_every_batch():
    images = np.round(255 * np.stack([picture(seed=s) for s in range(4)])).astype(np.uint8)
    for name in ("gaussian_noise", "motion_blur"):
        change = alter(name, CORRUPTIONS[name].small[4])
        (whole,) = altered([batch(images)], change)
        (part,) = altered([batch(images[2:], first=2)], change)
        np.testing.assert_array_equal(whole["image"][2:], part["image"])
        assert whole["image"].dtype == np.uint8
        (other,) = altered([batch(images)], alter(name, CORRUPTIONS[name].small[4], seed=1))
        assert (other["image"] != whole["image"]).any()
    same = np.repeat(images[:1], 2, axis=0)
    (made,) = altered([batch(same)], alter("gaussian_noise", 0.1))
    assert (made["image"][0] != made["image"][1]).any()


def test_result_is_the_classifier_on_each_corrupted_set(monkeypatch):
    """A feature that noise destroys: the value of one pixel."""
    kinds = ("gaussian_noise", "saturate", "pixelate")
    module = sys.modules["jaxcl.evaluators.corruption"]
    monkeypatch.setattr(module, "CORRUPTIONS", {kind: CORRUPTIONS[kind] for kind in kinds})
    rng = np.random.default_rng(0)
    truth = np.arange(80) % 2
    images = rng.integers(110, 146, (80, 8, 8, 3)).astype(np.uint8)
    images[:, 0, 0] += np.where(truth, 12, 0).astype(np.uint8)[:, None]
    labels = np.stack([truth, np.arange(80) % 4], 1).astype(np.int32)
    labels[:5, 1] = -1

    def features(made):
        return Features(made["image"].reshape(80, -1).astype(np.float32), made["label"])

    clean = features({"image": images, "label": labels})
    seen = []

    def take(change):
        (made,) = altered([batch(images) | {"label": labels}], change)
        seen.append(features(made))
        return seen[-1]

    models = {"truth": logistic_regression(clean, 0), "both": logistic_regression(clean, 1)}
    results = corruption(models, clean, take, (8, 8, 3))
    assert len(seen) == 5 * len(kinds)
    result = results["truth"]
    assert result.clean == models["truth"].accuracy(clean)[0] > 0.95
    by_hand = [models["truth"].accuracy(f)[0] for f in seen]
    got = [value for name in kinds for value in result.severities[name]]
    assert got == by_hand
    assert result.mean == pytest.approx(np.mean(by_hand))
    assert result.accuracy["gaussian_noise"] == pytest.approx(np.mean(by_hand[:5]))
    assert result.accuracy["pixelate"] < result.clean
    assert (result.queries, results["both"].queries, results["both"].unlabelled) == (80, 75, 5)
    assert result.scalars()["corruption/mean"] == result.mean
    asked = len(seen)
    found = corruption({"truth": models["truth"]}, clean, lambda change: clean, (8, 8, 1))["truth"]
    assert set(found.severities) == {"gaussian_noise", "pixelate"}  # gray images have no colour
    assert found.mean == found.clean
    assert len(seen) == asked
