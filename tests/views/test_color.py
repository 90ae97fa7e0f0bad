"""Jitter, gray and solarize against colorsys, Pillow and NumPy float64, and their distributions."""

import colorsys
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jaxcl import views

LUMA = np.array([0.2989, 0.5870, 0.1140])


def colorful(shape=(6, 5, 3), seed=0):
    """Random colours, with black, white, gray and saturated pixels among them."""
    image = np.random.default_rng(seed).random(shape)
    special = [(0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5), (1, 0, 0), (0, 0.3, 0.3), (0.2, 0.2, 0.9)]
    image[0, : shape[1]] = np.array(special)[: shape[1], : shape[2]]
    return image


def loop_hsv(image, change):
    """Applies change(h, s, v) to every pixel, through colorsys."""
    out = np.empty_like(image)
    for y, x in itertools.product(*map(range, image.shape[:2])):
        out[y, x] = colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*image[y, x])))
    return out


def loop_jitter(image, params, op):
    """The four steps one after the other, in float64."""
    x = image.astype(np.float64)
    for step in np.asarray(params["order"]):
        name = ("brightness", "contrast", "saturation", "hue")[step]
        amount = float(params[name])
        if name == "brightness":
            x = x * amount if op.brightness_mode == "multiply" else x + amount
        elif name == "contrast":
            gray = (x @ LUMA).mean()
            mean = x.mean(axis=(0, 1)) if op.contrast_mean == "channel" else gray
            x = (x - mean) * amount + mean
        elif name == "saturation" and op.saturation_mode == "blend":
            gray = (x @ LUMA)[..., None]
            x = amount * x + (1 - amount) * gray
        elif name == "saturation":
            x = loop_hsv(x, lambda h, s, v, a=amount: (h, min(s * a, 1), v))
        else:
            x = loop_hsv(x, lambda h, s, v, a=amount: ((h + a) % 1, s, v))
        x = np.clip(x, 0, 1)
    return x


MODES = list(itertools.product(("multiply", "add"), ("channel", "gray"), ("hsv", "blend")))


@pytest.mark.parametrize(("brightness", "contrast", "saturation"), MODES)
def test_jitter_equals_the_loop(brightness, contrast, saturation):
    op = views.Jitter(
        brightness_mode=brightness, contrast_mean=contrast, saturation_mode=saturation
    )
    image = colorful()
    apply, sample = jax.jit(op.apply), jax.jit(lambda key: op.sample(key, image.shape))
    for seed in range(24):
        params = sample(jax.random.key(seed))
        made = apply(image.astype(np.float32), params)
        np.testing.assert_allclose(made, loop_jitter(image, params, op), atol=1e-5)


def test_jitter_in_float64_is_exact():
    op = views.Jitter()
    image = colorful(seed=1)
    with jax.enable_x64(True):
        apply = jax.jit(op.apply)
        for seed in range(8):
            params = op.sample(jax.random.key(seed), image.shape)
            made = apply(image, params)
            assert made.dtype == jnp.float64
            np.testing.assert_allclose(made, loop_jitter(image, params, op), atol=1e-13)


def test_every_order_is_applied_as_recorded():
    op = views.Jitter()
    image = colorful(seed=2)
    params = op.sample(jax.random.key(3), image.shape)
    apply = jax.jit(op.apply)
    results = []
    for order in itertools.permutations(range(4)):
        params["order"] = jnp.array(order)
        made = np.asarray(apply(image.astype(np.float32), params))
        np.testing.assert_allclose(made, loop_jitter(image, params, op), atol=1e-5)
        results.append(made.tobytes())
    assert len(set(results)) == 24


@pytest.mark.parametrize(
    ("field", "enhance"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ],
)
def test_jitter_equals_pillow(field, enhance):
    amounts = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0)
    op = views.Jitter(**{**amounts, field: 0.8}, contrast_mean="gray", saturation_mode="blend")
    image = np.random.default_rng(4).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for seed in range(5):
        params = op.sample(jax.random.key(seed), image.shape)
        made = 255 * np.asarray(op.apply(image, params))
        expected = np.asarray(enhance(Image.fromarray(image)).enhance(float(params[field])))
        np.testing.assert_allclose(made, expected.astype(float), atol=2)  # Pillow rounds twice


def test_zero_strength_is_the_identity():
    image = colorful(seed=5).astype(np.float32)
    for modes in MODES:
        fields = dict(
            zip(("brightness_mode", "contrast_mean", "saturation_mode"), modes, strict=True)
        )
        op = views.Jitter(strength=0.0, **fields)
        params = jax.jit(lambda key, op=op: op.sample(key, image.shape))(jax.random.key(0))
        assert bool(params["on"])
        np.testing.assert_array_equal(op.apply(image, params), image)


def test_hue_is_a_fraction_of_the_circle():
    op = views.Jitter(strength=1.0, brightness=0, contrast=0, saturation=0, hue=0.5)
    red = np.zeros((1, 1, 3), np.float32)
    red[..., 0] = 1
    params = op.sample(jax.random.key(0), red.shape)
    for shift, expected in (
        (1 / 3, (0, 1, 0)),
        (-1 / 3, (0, 0, 1)),
        (1 / 6, (1, 1, 0)),
        (0.5, (0, 1, 1)),
        (1.0, (1, 0, 0)),
        (-7 / 3, (0, 0, 1)),
    ):
        made = op.apply(red, {**params, "hue": jnp.float32(shift)})
        np.testing.assert_allclose(made[0, 0], expected, atol=2e-6)


def draw(op, count, shape=(8, 8, 3), seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    params = jax.jit(jax.vmap(lambda key: op.sample(key, shape)))(keys)
    return {name: np.asarray(values) for name, values in params.items()}


def test_order_is_a_uniform_permutation():
    order = draw(views.Jitter(), 24_000)["order"]
    kinds, counts = np.unique(order, axis=0, return_counts=True)
    assert sorted(map(tuple, kinds)) == list(itertools.permutations(range(4)))
    assert np.sum((counts - 1000) ** 2 / 1000) < 59.0  # 23 degrees of freedom, p = 5e-5


def test_rates_and_ranges():
    params = draw(views.Jitter(strength=0.5, prob=0.8), 20_000)
    assert abs(params["on"].mean() - 0.8) < 0.02
    assert abs(draw(views.Gray(prob=0.2), 20_000)["on"].mean() - 0.2) < 0.02
    for name, low, high in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.6, 1.4),
        ("saturation", 0.6, 1.4),
        ("hue", -0.1, 0.1),
    ):
        unit = (params[name] - low) / (high - low)
        assert unit.min() > -1e-6
        assert unit.max() < 1 + 1e-6
        counts, _ = np.histogram(unit, bins=10, range=(0, 1))
        assert np.sum((counts - 2000) ** 2 / 2000) < 33.7  # 9 degrees, p = 1e-4
    # Nothing that is drawn goes together.
    names = ("on", "brightness", "contrast", "saturation", "hue")
    correlation = np.corrcoef([params[name] for name in names])
    assert np.abs(correlation - np.eye(5)).max() < 0.03


def test_factors_stop_at_zero_and_addends_are_symmetric():
    params = draw(views.Jitter(strength=2.0), 5000)
    assert params["contrast"].min() >= 0
    assert params["contrast"].max() > 2.5
    added = draw(views.Jitter(strength=0.5, brightness_mode="add"), 5000)["brightness"]
    assert -0.4 <= added.min() < -0.39
    assert 0.39 < added.max() <= 0.4


def test_output_is_in_range_and_coin_off_passes():
    image = colorful(seed=6).astype(np.float32)
    op = views.Jitter(strength=2.0)
    sample = jax.jit(lambda key: op.sample(key, image.shape))
    for seed in range(10):
        params = sample(jax.random.key(seed))
        made = np.asarray(op.apply(image, params))
        assert made.min() >= 0
        assert made.max() <= 1
        off = {**params, "on": jnp.asarray(False)}
        np.testing.assert_array_equal(op.apply(image, off), image)


def test_gray_images_know_brightness_and_contrast_only():
    image = np.random.default_rng(7).random((6, 6, 1)).astype(np.float32)
    op = views.Jitter()
    params = op.sample(jax.random.key(0), image.shape)
    neutral = {"brightness": jnp.float32(1), "contrast": jnp.float32(1)}
    np.testing.assert_array_equal(op.apply(image, {**params, **neutral}), image)
    made = op.apply(image, {**params, "order": jnp.array([3, 0, 2, 1])})
    x = np.clip(image.astype(float) * float(params["brightness"]), 0, 1)
    x = np.clip((x - x.mean()) * float(params["contrast"]) + x.mean(), 0, 1)
    np.testing.assert_allclose(made, x, atol=1e-6)
    np.testing.assert_array_equal(views.Gray().apply(image, {"on": jnp.asarray(True)}), image)


def test_gray_is_the_luma_on_all_channels():
    image = colorful(seed=8)
    made = views.Gray().apply(image.astype(np.float32), {"on": jnp.asarray(True)})
    expected = np.repeat((image @ LUMA)[..., None], 3, axis=-1)
    np.testing.assert_allclose(made, expected, atol=1e-6)
    bytes_ = (255 * image).astype(np.uint8)
    pillow = np.asarray(Image.fromarray(bytes_).convert("L"))
    made = views.Gray().apply(bytes_, {"on": jnp.asarray(True)})
    np.testing.assert_allclose(255 * np.asarray(made[..., 0]), pillow.astype(float), atol=0.7)


def test_solarize_equals_pillow():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = np.asarray(ImageOps.solarize(Image.fromarray(image), 128))
    made = views.Solarize().apply(image[..., None], {"on": jnp.asarray(True)})
    np.testing.assert_allclose(255 * np.asarray(made[..., 0]), expected.astype(float), atol=1e-4)


@pytest.mark.parametrize("op", [views.Jitter(), views.Gray()])
def test_other_channel_counts_are_refused(op):
    image = jnp.zeros((4, 4, 2))
    with pytest.raises(
        ValueError, match=r"needs 1 \(gray\) or 3 \(RGB\) channels, the image has 2"
    ):
        op.apply(image, op.sample(jax.random.key(0), image.shape))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: views.Jitter(hue=-0.1), r"Jitter.hue = -0.1: expected a number in \[0, inf\]"),
        (lambda: views.Jitter(contrast_mean="grey"), r"Jitter.contrast_mean = 'grey'"),
        (lambda: views.Solarize(threshold=128), r"Solarize.threshold = 128"),
    ],
)
def test_bad_fields_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
