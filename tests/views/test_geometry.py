"""Flip and rotate against NumPy and Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxcl import views

ON = {"on": jnp.asarray(True)}


def draw(op, count, shape=(8, 8, 3)):
    keys = jax.random.split(jax.random.key(0), count)
    params = jax.jit(jax.vmap(lambda key: op.sample(key, shape)))(keys)
    return {name: np.asarray(values) for name, values in params.items()}


def test_flip_reverses_columns_half_of_the_time():
    image = np.random.default_rng(0).random((5, 7, 3)).astype(np.float32)
    np.testing.assert_array_equal(views.Flip().apply(image, ON), image[:, ::-1])
    off = {"on": jnp.asarray(False)}
    np.testing.assert_array_equal(views.Flip().apply(image, off), image)
    assert abs(draw(views.Flip(), 10_000)["on"].mean() - 0.5) < 0.02


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_quarter_turns_move_pixels_exactly(turns):
    image = np.random.default_rng(1).random((6, 6, 3)).astype(np.float32)
    op = views.Rotate()
    made = jax.jit(op.apply)(image, {**ON, "angle": jnp.float32(90 * turns)})
    np.testing.assert_array_equal(made, np.rot90(image, turns))


@pytest.mark.parametrize("angles", [(0.0, 90.0, 180.0, 270.0), (90.0, 180.0, 270.0), (-90.0,)])
def test_angles_are_equally_likely(angles):
    drawn = draw(views.Rotate(angles=angles), 12_000)["angle"]
    kinds, counts = np.unique(drawn, return_counts=True)
    assert kinds.tolist() == sorted(angles)
    expected = 12_000 / len(angles)
    assert np.sum((counts - expected) ** 2 / expected) < 21.2  # 3 degrees, p = 1e-4


def test_half_turns_work_on_any_shape_and_quarter_turns_ask_for_a_square():
    image = np.random.default_rng(2).random((4, 7, 3)).astype(np.float32)
    half = views.Rotate(angles=(0.0, 180.0))
    made = half.apply(image, {**ON, "angle": jnp.float32(180)})
    np.testing.assert_array_equal(made, image[::-1, ::-1])
    with pytest.raises(ValueError, match="needs a square image, got height 4 and width 7"):
        views.Rotate().apply(image, {**ON, "angle": jnp.float32(180)})


@pytest.mark.parametrize("shape", [(16, 16), (13, 20)])
@pytest.mark.parametrize("angle", [10.0, -33.0, 45.0, 117.0])
def test_any_angle_equals_pillow(shape, angle):
    rng = np.random.default_rng(3)
    image = rng.random(shape).astype(np.float32)
    op = views.Rotate(between=(-180.0, 180.0))
    made = np.asarray(op.apply(image[..., None], {**ON, "angle": jnp.float32(angle)})[..., 0])
    expected = Image.fromarray(image).rotate(angle, resample=Image.Resampling.BILINEAR)
    close = np.abs(made - np.asarray(expected)) < 1e-4
    assert close.mean() > 0.99  # a pixel centre on the border may fall on either side
    assert (made == 0).any()


def test_drawn_angles_fill_the_range():
    drawn = draw(views.Rotate(between=(-30.0, 30.0)), 10_000)["angle"]
    counts, _ = np.histogram(drawn, bins=10, range=(-30, 30))
    assert counts.sum() == 10_000
    assert np.sum((counts - 1000) ** 2 / 1000) < 33.7  # 9 degrees, p = 1e-4


def test_bad_fields_are_named():
    with pytest.raises(ValueError, match=r"Rotate.angles = \(\)"):
        views.Rotate(angles=())
    with pytest.raises(ValueError, match=r"Rotate.between = \(30.0, -30.0\)"):
        views.Rotate(between=(30.0, -30.0))
