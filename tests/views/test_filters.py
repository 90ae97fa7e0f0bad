"""Blur, sobel, cutout and noise against NumPy loops and Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFilter

from jaxcl import views

ON = {"on": jnp.asarray(True)}


def draw(op, count, shape=(8, 8, 3)):
    keys = jax.random.split(jax.random.key(0), count)
    params = jax.jit(jax.vmap(lambda key: op.sample(key, shape)))(keys)
    return {name: np.asarray(values) for name, values in params.items()}


def loop_blur(image, sigma, radius, padding):
    """Separable Gaussian blur of f64[H,W,C]: pad, then add up shifted images."""
    taps = np.arange(-radius, radius + 1)
    kernel = np.exp(-(taps**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    mode = {"zero": "constant", "edge": "edge"}[padding]
    for axis in (0, 1):
        width = [(0, 0)] * 3
        width[axis] = (radius, radius)
        padded = np.pad(image, width, mode=mode)
        size = image.shape[axis]
        image = sum(
            weight * np.take(padded, np.arange(t, t + size), axis)
            for t, weight in enumerate(kernel)
        )
    return image


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_impulse_response_at_224_has_23_taps_that_sum_to_one(sigma):
    image = np.zeros((224, 224, 1), np.float32)
    image[100, 60] = 1
    op = views.Blur()
    made = np.asarray(op.apply(image, {**ON, "sigma": jnp.float32(sigma)}))[..., 0]
    taps = np.exp(-(np.arange(-11.0, 12.0) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    expected = np.zeros((224, 224))
    expected[89:112, 49:72] = np.outer(taps, taps)
    np.testing.assert_allclose(made, expected, atol=1e-7)
    assert abs(made.sum() - 1) < 1e-5
    assert op.radius(224) == 11


def test_wide_sigma_shows_the_truncation_at_23_taps():
    image = np.zeros((224, 224, 1), np.float32)
    image[100, 60] = 1
    made = np.asarray(views.Blur().apply(image, {**ON, "sigma": jnp.float32(50)}))[..., 0]
    rows, columns = np.nonzero(made)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (89, 111, 49, 71)


@pytest.mark.parametrize(("height", "radius"), [(32, 1), (64, 3), (96, 4), (160, 8), (224, 11)])
def test_kernel_is_a_tenth_of_the_side_made_odd(height, radius):
    assert views.Blur().radius(height) == radius == (height // 10) // 2


@pytest.mark.parametrize("padding", ["zero", "edge"])
@pytest.mark.parametrize("shape", [(32, 32, 3), (30, 21, 1)])
@pytest.mark.parametrize("fraction", [0.1, 0.3, None])
def test_blur_equals_loops(padding, shape, fraction):
    image = np.random.default_rng(0).random(shape)
    op = views.Blur(fraction=fraction, padding=padding)
    radius = shape[0] if fraction is None else int(shape[0] * fraction) // 2
    for sigma in (0.1, 1.1, 2.0):
        made = op.apply(image.astype(np.float32), {**ON, "sigma": jnp.float32(sigma)})
        np.testing.assert_allclose(made, loop_blur(image, sigma, radius, padding), atol=2e-6)


def test_blur_without_truncation_is_pillows_up_to_its_boxes():
    image = np.zeros((64, 64), np.uint8)
    image[:, 32] = 255
    blur = jax.jit(views.Blur(fraction=None, padding="edge").apply)
    for radius in (1.0, 2.0, 3.0):
        expected = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
        gaps = []
        for sigma in (radius, 1.2 * radius):
            made = 255 * blur(image[..., None], {**ON, "sigma": jnp.float32(sigma)})[..., 0]
            gaps.append(np.abs(np.asarray(made) - expected).max() / expected.max())
        assert gaps[0] < 0.06
        assert gaps[1] > 0.1  # another sigma is told apart


def test_edges_keep_a_constant_image_and_zeros_darken_it():
    image = np.full((32, 32, 3), 0.6, np.float32)
    params = {**ON, "sigma": jnp.float32(2)}
    edge = np.asarray(views.Blur(padding="edge").apply(image, params))
    zero = np.asarray(views.Blur(padding="zero").apply(image, params))
    np.testing.assert_allclose(edge, 0.6, atol=1e-6)
    np.testing.assert_allclose(zero[5:-5, 5:-5], 0.6, atol=1e-6)
    assert zero[0, 0, 0] < 0.4


def test_blur_rate_and_sigma():
    params = draw(views.Blur(prob=0.5), 10_000)
    assert abs(params["on"].mean() - 0.5) < 0.02
    counts, _ = np.histogram(params["sigma"], bins=10, range=(0.1, 2.0))
    assert counts.sum() == 10_000
    assert np.sum((counts - 1000) ** 2 / 1000) < 33.7  # 9 degrees, p = 1e-4


def test_sobel_equals_loops():
    image = np.random.default_rng(2).random((7, 9, 3))
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    expected = np.empty_like(image)
    for y in range(7):
        for x in range(9):
            window = padded[y : y + 3, x : x + 3]
            across = np.einsum("ij,ijc->c", kernel, window)
            down = np.einsum("ij,ijc->c", kernel.T, window)
            expected[y, x] = np.hypot(across, down) / 4
    made = views.Sobel().apply(image.astype(np.float32), ON)
    np.testing.assert_allclose(made, np.clip(expected, 0, 1), atol=1e-6)


def test_sobel_of_a_unit_step_is_one():
    image = np.zeros((6, 6, 1), np.float32)
    image[:, 3:] = 1
    made = np.asarray(views.Sobel().apply(image, ON))[..., 0]
    np.testing.assert_array_equal(made, [[0, 0, 1, 1, 0, 0]] * 6)


def test_cutout_fills_its_box_and_nothing_else():
    op = views.Cutout(side=(0.25, 0.75), fill=0.5)
    image = np.random.default_rng(3).random((16, 20, 3)).astype(np.float32)
    reached = set()
    for seed in range(40):
        params = op.sample(jax.random.key(seed), image.shape)
        top, left, h, w = (int(v) for v in params["box"])
        assert h == w
        assert 4 <= h <= 12
        expected = image.copy()
        expected[max(top, 0) : max(top + h, 0), max(left, 0) : max(left + w, 0)] = 0.5
        np.testing.assert_array_equal(op.apply(image, params), expected)
        reached.add(top < 0 or left < 0 or top + h > 16 or left + w > 20)
    assert reached == {True, False}


def test_cutouts_centre_is_uniform():
    box = draw(views.Cutout(side=(0.5, 0.5)), 16_000, shape=(16, 16, 3))["box"]
    assert (box[:, 2:] == 8).all()
    for start in box[:, :2].T:
        counts = np.bincount(start + 4, minlength=16)
        assert len(counts) == 16
        assert np.sum((counts - 1000) ** 2 / 1000) < 44.3  # 15 degrees, p = 1e-4


def test_noise_has_the_drawn_deviation_and_is_made_again():
    op = views.Noise(std=(0.02, 0.05))
    image = np.full((64, 64, 3), 0.5, np.float32)
    seen = []
    for seed in range(3):
        params = op.sample(jax.random.key(seed), image.shape)
        noise = np.asarray(op.apply(image, params)) - 0.5
        assert 0.02 <= float(params["std"]) <= 0.05
        assert abs(noise.std() / float(params["std"]) - 1) < 0.03
        assert abs(noise.mean()) < 0.002
        np.testing.assert_array_equal(op.apply(image, params), noise + np.float32(0.5))
        seen.append(noise.tobytes())
    assert len(set(seen)) == 3
    assert np.abs(np.corrcoef(noise.reshape(-1, 3).T) - np.eye(3)).max() < 0.06


def test_noise_is_clipped():
    op = views.Noise(std=(3.0, 3.0))
    image = np.full((16, 16, 1), 0.5, np.float32)
    made = np.asarray(op.apply(image, op.sample(jax.random.key(0), image.shape)))
    assert made.min() == 0
    assert made.max() == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: views.Blur(sigma=(0.0, 1.0)), r"Blur.sigma = \(0.0, 1.0\)"),
        (lambda: views.Blur(padding="reflect"), r"Blur.padding = 'reflect'"),
        (lambda: views.Blur(fraction=2.0), r"Blur.fraction = 2.0"),
        (lambda: views.Cutout(side=(0.5, 1.5)), r"Cutout.side"),
        (lambda: views.Noise(std=(-1.0, 1.0)), r"Noise.std"),
    ],
)
def test_bad_fields_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
