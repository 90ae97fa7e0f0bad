"""Texture against a cosine transform by SciPy, and what it keeps and changes, measured on the built-in images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.fft import dctn, idctn

from jaxcl import data, views
from jaxcl.views import Texture

ON = {"on": jnp.asarray(True)}


def loop_gain(height, width, gains):
    """The gain of each frequency, one by one: tents over octaves and angles, in the logarithm."""
    scales = len(gains)
    out = np.ones((height, width))
    for y in range(height):
        for x in range(width):
            if x == y == 0:
                continue
            octave = max(-np.log2(np.hypot(y / height, x / width)), 0)
            angle = np.arctan2(x / width, y / height) / (np.pi / 4)
            for s in range(scales):
                for o in range(3):
                    weight = max(1 - abs(octave - s), 0) * max(1 - abs(angle - o), 0)
                    out[y, x] *= gains[s][o] ** weight
    return out


def loop_texture(image, gains):
    """f64[H,W,C], before the clipping."""
    spectrum = dctn(image, axes=(0, 1), norm="ortho")
    new = spectrum * loop_gain(*image.shape[:2], gains)[..., None]
    new[0, 0] = 0
    old = spectrum.copy()
    old[0, 0] = 0
    new *= np.sqrt((old**2).sum() / (new**2).sum())
    new[0, 0] = spectrum[0, 0]
    return idctn(new, axes=(0, 1), norm="ortho")


def faint(shape, seed=0):
    """An image that no gain drives out of [0,1]."""
    return 0.5 + 0.05 * np.random.default_rng(seed).uniform(-1, 1, shape)


@pytest.mark.parametrize(("shape", "scales"), [((16, 16, 3), 3), ((13, 20, 1), 2), ((8, 6, 3), 5)])
def test_it_equals_the_cosine_transform(shape, scales):
    gains = np.exp(np.random.default_rng(1).uniform(-1.4, 1.4, (scales, 3)))
    image = faint(shape)
    op = Texture(scales=scales)
    with jax.enable_x64(True):
        made = jax.jit(op.apply)(image, {**ON, "gains": gains})
        assert made.dtype == jnp.float64
        np.testing.assert_allclose(made, loop_texture(image, gains), atol=1e-7)
    made = op.apply(image.astype(np.float32), {**ON, "gains": gains.astype(np.float32)})
    assert made.dtype == jnp.float32
    np.testing.assert_allclose(made, loop_texture(image, gains), atol=2e-6)


def test_mean_contrast_and_the_signs_of_all_frequencies_stay():
    gains = np.array([[4, 0.25, 1], [0.25, 4, 4], [2, 2, 0.5]], np.float32)
    image = faint((24, 24, 3)).astype(np.float32)
    made = np.asarray(Texture().apply(image, {**ON, "gains": gains}))
    np.testing.assert_allclose(made.mean((0, 1)), image.mean((0, 1)), atol=1e-6)
    centred = [x - x.mean((0, 1)) for x in (made, image)]
    np.testing.assert_allclose(*[np.sqrt((x**2).mean()) for x in centred], rtol=1e-4)
    old, new = (dctn(x.astype(float), axes=(0, 1), norm="ortho") for x in (image, made))
    seen = np.abs(old) > 1e-3
    assert seen.mean() > 0.9
    np.testing.assert_array_equal(np.sign(new[seen]), np.sign(old[seen]))


def test_what_changes_nothing():
    image = np.random.default_rng(2).random((12, 12, 3)).astype(np.float32)
    flat = {"gains": jnp.ones((3, 3))}
    np.testing.assert_allclose(Texture().apply(image, {**ON, **flat}), image, atol=1e-6)
    off = {"on": jnp.asarray(False), "gains": jnp.full((3, 3), 3.0)}
    np.testing.assert_array_equal(Texture().apply(image, off), image)
    constant = np.full((12, 12, 3), 0.3, np.float32)
    uneven = jnp.asarray(np.random.default_rng(3).uniform(0.3, 3, (3, 3)), jnp.float32)
    made = Texture().apply(constant, {**ON, "gains": uneven})
    np.testing.assert_allclose(made, constant, atol=1e-5)


def test_coarse_structure_is_left_alone():
    """Stripes of a period of 32 pixels do not change beside stripes of 2 that do."""
    y = np.arange(64) + 0.5
    coarse, fine = np.cos(np.pi * 4 * y / 64), np.cos(np.pi * 60 * y / 64)
    image = np.broadcast_to((0.5 + 0.1 * coarse + 0.01 * fine)[:, None, None], (64, 64, 1))
    gains = np.full((3, 3), 4.0, np.float32)
    made = np.asarray(Texture().apply(image.astype(np.float32), {**ON, "gains": gains}))
    old, new = (dctn(x[..., 0].astype(float), norm="ortho") for x in (image, made))
    ratio = new[[4, 60], 0] / old[[4, 60], 0]
    np.testing.assert_allclose(ratio[1] / ratio[0], 4, rtol=0.01)
    np.testing.assert_allclose(ratio[0], 1 / np.sqrt((1 + 0.01 * 16) / 1.01), rtol=0.01)


def test_gains_are_drawn_log_uniformly_and_apart():
    op = Texture(gains=(0.25, 4.0), scales=2, prob=0.5)
    keys = jax.random.split(jax.random.key(0), 10_000)
    drawn = jax.jit(jax.vmap(lambda key: op.sample(key, (8, 8, 3))))(keys)
    logs = np.log2(np.asarray(drawn["gains"])).reshape(10_000, 6)
    assert drawn["gains"].shape == (10_000, 2, 3)
    assert -2 <= logs.min() < -1.99
    assert 1.99 < logs.max() <= 2
    for column in logs.T:
        counts, _ = np.histogram(column, bins=10, range=(-2, 2))
        assert np.sum((counts - 1000) ** 2 / 1000) < 33.7  # 9 degrees, p = 1e-4
    assert np.abs(np.corrcoef(logs.T) - np.eye(6)).max() < 0.05
    assert abs(np.asarray(drawn["on"]).mean() - 0.5) < 0.02


def edges(image):
    """The length of the gradient of the gray image, f64[H,W]."""
    dy, dx = np.gradient(image.mean(-1))
    return np.hypot(dy, dx)


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


def test_it_keeps_edges_and_changes_the_spectrum():
    """On emoji: edges stay where they are while the energy of scales and orientations goes up and down.

    A control of the same amplitudes with signs at random has the spectrum and loses the edges: these are in the signs.
    """
    images = data.emoji.load("val").images[::12].astype(np.float32) / 255
    op, rng = Texture(), np.random.default_rng(0)
    keys = jax.random.split(jax.random.key(1), len(images))

    @jax.jit
    def run(keys, images):
        params = jax.vmap(lambda key: op.sample(key, images.shape[1:]))(keys)
        return jax.vmap(op.apply)(images, params)

    made = np.asarray(run(keys, images), float)
    kept, control, moved = [], [], []
    y, x = np.mgrid[:32, :32] / 32
    octave = np.floor(-np.log2(np.maximum(np.hypot(y, x), 1e-9)))
    bands = [octave == n for n in (0, 1, 2)]
    for image, new in zip(images, made, strict=True):
        kept.append(correlation(edges(image), edges(new)))
        spectrum = dctn(new, axes=(0, 1), norm="ortho")
        signs = rng.choice([-1.0, 1.0], (32, 32, 1))
        signs[0, 0] = 1
        control.append(
            correlation(edges(image), edges(idctn(spectrum * signs, axes=(0, 1), norm="ortho")))
        )
        energy = [
            [(dctn(z, axes=(0, 1), norm="ortho")[band] ** 2).sum() for band in bands]
            for z in (image.astype(float), new)
        ]
        moved.append(np.abs(np.log2(energy[1]) - np.log2(energy[0])))
    assert len(kept) > 25
    assert np.mean(kept) > 0.85, np.mean(kept)
    assert np.mean(control) < 0.1, np.mean(control)
    assert np.mean(moved) > 0.35, np.mean(moved)  # octaves of energy, at each scale
    difference = np.abs(made - images).mean((1, 2, 3))
    assert np.median(difference) > 0.02


def test_bad_fields_are_named():
    with pytest.raises(ValueError, match=r"Texture.gains = \(0, 4.0\)"):
        Texture(gains=(0, 4.0))
    with pytest.raises(ValueError, match=r"Texture.scales = 0"):
        Texture(scales=0)
    with pytest.raises(ValueError, match=r"Texture.prob = 2"):
        views.OPS["texture"](prob=2)
