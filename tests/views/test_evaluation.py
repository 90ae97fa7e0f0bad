"""The evaluation view against Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxcl import views


def pillow_center(image, side, size):
    height, width = image.shape[:2]
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    channels = [
        Image.fromarray(image[..., c].astype(np.float32))
        .crop((left, top, left + side, top + side))
        .resize((size, size), Image.Resampling.BICUBIC)
        for c in range(image.shape[-1])
    ]
    return np.clip(np.stack([np.asarray(channel) for channel in channels], -1), 0, 1)


@pytest.mark.parametrize(
    ("shape", "size", "side"),
    [((64, 64), 48, 56), ((100, 70), 40, 61), ((50, 81), 64, 44), ((40, 60), 32, 40)],
)
def test_equals_pillows_centre_crop_and_resize(shape, size, side):
    image = np.random.default_rng(0).random((*shape, 3)).astype(np.float32)
    view = views.EvalView(size)
    made = jax.jit(view)(image[None])
    assert made.shape == (1, size, size, 3)
    assert view.output_shape((*shape, 3)) == (size, size, 3)
    np.testing.assert_allclose(made[0], pillow_center(image, side, size), atol=1e-5)


def test_small_images_pass_unchanged():
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    made = views.EvalView(32)(images)
    assert made.dtype == jnp.float32
    np.testing.assert_allclose(made, images / 255, atol=1e-7)
    assert views.EvalView(32).fraction == 1.0
    assert views.EvalView(224).fraction == 0.875
    assert views.EvalView(224, crop_fraction=1.0).fraction == 1.0


def test_a_crop_of_a_small_image_is_made_when_asked_for():
    image = np.random.default_rng(2).random((32, 32, 1)).astype(np.float32)
    made = views.EvalView(32, crop_fraction=0.5).apply(image)
    np.testing.assert_allclose(made, pillow_center(image, 16, 32), atol=1e-5)


def test_bad_fields_are_named():
    with pytest.raises(ValueError, match=r"EvalView.crop_fraction = 0.0"):
        views.EvalView(32, crop_fraction=0.0)
    with pytest.raises(ValueError, match=r"EvalView.method = 'cubic'"):
        views.EvalView(32, method="cubic")


@pytest.mark.parametrize("size", [8, 32, 33, 48, 64, 96, 128, 224, 300])
def test_of_an_image_of_its_source_size_a_square_is_cut_out(size):
    view = views.EvalView(size)
    side = view.source_size
    assert side == (size if size <= 32 else round(size / 0.875))
    image = np.random.default_rng(3).random((side, side, 1)).astype(np.float32)
    first = (side - size + 1) // 2
    np.testing.assert_array_equal(
        view.apply(image), image[first : first + size, first : first + size]
    )
