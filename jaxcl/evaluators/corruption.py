"""Robustness: what a classifier of clean features still knows of corrupted images.

A linear probe is trained on clean features and asked about test images that are corrupted in ten
ways at five severities, in the spirit of ImageNet-C and CIFAR-10-C (Hendrycks and Dietterich 2019):
the strengths are theirs for each kind, the corruptions are our own, made on the device, so that the
numbers compare networks here and not with published ones. Images of up to 64 pixels take the
strengths of CIFAR-10-C, larger ones those of ImageNet-C.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.evaluators.base import Alter, Features
from jaxcl.evaluators.linear import LogisticModel
from jaxcl.views import Blur, Jitter, Noise
from jaxcl.views.resample import separable

Corrupt = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(key, image f[H,W,C] in [0,1], strength f[...]) -> image of the same shape in [0,1]."""

SMALL = 64
"""Side in pixels up to which images take the strengths for small ones."""


@dataclasses.dataclass(frozen=True)
class Corruption:
    """One way to corrupt images.

    Attributes:
        apply: what it does to one image.
        small: strengths at severity 1 to 5 for small images.
        large: those for large ones.
        color: whether it does nothing to gray images.
    """

    apply: Corrupt
    small: tuple[float | tuple[float, float], ...]
    large: tuple[float | tuple[float, float], ...]
    color: bool = False

    def strengths(self, side: int) -> tuple[float | tuple[float, float], ...]:
        """Those for images of `side` pixels."""
        return self.small if side <= SMALL else self.large


def gaussian_noise(key: jax.Array, image: jax.Array, std: jax.Array) -> jax.Array:
    """Adds Gaussian noise."""
    return Noise().transform(image, {"std": std, "seed": jax.random.bits(key)})


def shot_noise(key: jax.Array, image: jax.Array, photons: jax.Array) -> jax.Array:
    """Counts photons: a Poisson number of mean `photons` times the value, for each value."""
    counted = jax.random.poisson(key, image * photons, dtype=jnp.int32)
    return jnp.clip(counted / photons, 0, 1).astype(image.dtype)


def impulse_noise(key: jax.Array, image: jax.Array, share: jax.Array) -> jax.Array:
    """Sets a share of the values to 0 or 1, equally likely (salt and pepper)."""
    drawn = jax.random.uniform(key, image.shape, image.dtype)
    return jnp.where(drawn < share / 2, 0, jnp.where(drawn < share, 1, image))


def speckle_noise(key: jax.Array, image: jax.Array, std: jax.Array) -> jax.Array:
    """Adds Gaussian noise in proportion to the value."""
    noise = jax.random.normal(key, image.shape, image.dtype)
    return jnp.clip(image * (1 + std * noise), 0, 1)


def gaussian_blur(key: jax.Array, image: jax.Array, sigma: jax.Array) -> jax.Array:
    """Blurs; sigma is in pixels."""
    del key
    return Blur(fraction=None, padding="edge").transform(image, {"sigma": sigma})


def motion_blur(key: jax.Array, image: jax.Array, shape: jax.Array) -> jax.Array:
    """Smears along a line up to 45 degrees from the horizontal, to one side, the image's edge repeated.

    Args:
        key: of the angle.
        image: to be smeared.
        shape: (length in pixels, sigma of the Gaussian weights along it).
    """
    length, sigma = shape
    angle = jax.random.uniform(key, (), image.dtype, -jnp.pi / 4, jnp.pi / 4)
    height, width, _ = image.shape
    taps = jnp.arange(_LONGEST)
    weight = jnp.where(taps <= length, jnp.exp(-(taps**2) / (2 * sigma**2)), 0)
    weight = (weight / weight.sum()).astype(image.dtype)
    rows = jnp.round(taps * jnp.sin(angle)).astype(jnp.int32)
    columns = jnp.round(taps * jnp.cos(angle)).astype(jnp.int32)

    def add(
        total: jax.Array, tap: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, None]:
        w, dy, dx = tap
        y = jnp.clip(jnp.arange(height) + dy, 0, height - 1)
        x = jnp.clip(jnp.arange(width) + dx, 0, width - 1)
        return total + w * image[y][:, x], None

    total, _ = jax.lax.scan(add, jnp.zeros_like(image), (weight, rows, columns))
    return jnp.clip(total, 0, 1)


_LONGEST = 21
"""Taps of the longest motion blur."""


def brightness(key: jax.Array, image: jax.Array, addend: jax.Array) -> jax.Array:
    """Raises the value of HSV, at equal hue and saturation."""
    del key
    value = image.max(-1, keepdims=True)
    brighter = jnp.minimum(value + addend, 1)
    scaled = image * brighter / jnp.where(value > 0, value, 1)
    return jnp.where(value > 0, scaled, brighter)


def contrast(key: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Brings every value nearer to the mean of its channel."""
    del key
    still = {"brightness": jnp.ones(()), "saturation": jnp.ones(()), "hue": jnp.zeros(())}
    params = {"order": jnp.arange(4), "contrast": factor, **still}
    return Jitter(hue=0.0).transform(image, params)


def saturate(key: jax.Array, image: jax.Array, change: jax.Array) -> jax.Array:
    """Multiplies the saturation of HSV and adds to it, at equal hue and value.

    Args:
        key: not used.
        image: to be changed.
        change: (factor, addend).
    """
    del key
    factor, addend = change
    value = image.max(-1, keepdims=True)
    chroma = value - image.min(-1, keepdims=True)
    saturation = chroma / jnp.where(value > 0, value, 1)
    wanted = jnp.clip(saturation * factor + addend, 0, 1)
    # Gray has no hue; as in HSV it becomes red.
    below_red = _BELOW_RED[: image.shape[-1]].astype(image.dtype)
    unit = jnp.where(chroma > 0, (value - image) / jnp.where(chroma > 0, chroma, 1), below_red)
    return jnp.clip(value - unit * wanted * value, 0, 1)


_BELOW_RED = np.array([0.0, 1.0, 1.0])
"""How far the channels of red are below its value, in units of the chroma."""


def pixelate(key: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Shrinks by `factor` with a box filter and enlarges again by repeating pixels."""
    del key
    height, width, _ = image.shape
    rows = _blocks(height, jnp.floor(height * factor)).astype(image.dtype)
    columns = rows if width == height else _blocks(width, jnp.floor(width * factor))
    return jnp.clip(separable(image, rows, columns.astype(image.dtype)), 0, 1)


def _blocks(size: int, blocks: jax.Array) -> jax.Array:
    """The matrix f[size, size] that averages over `blocks` equal parts and repeats the averages."""
    blocks = jnp.maximum(blocks, 1)
    block = jnp.floor((jnp.arange(size) + 0.5) * blocks / size)  # of each pixel of the result
    low, high = block * size / blocks, (block + 1) * size / blocks
    pixel = jnp.arange(size)
    covered = jnp.minimum(high[:, None], pixel + 1) - jnp.maximum(low[:, None], pixel)
    return jnp.maximum(covered, 0) * blocks / size


CORRUPTIONS: Mapping[str, Corruption] = MappingProxyType(
    {
        "gaussian_noise": Corruption(
            gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)
        ),
        "shot_noise": Corruption(shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
        "impulse_noise": Corruption(
            impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)
        ),
        "speckle_noise": Corruption(
            speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.35, 0.45, 0.6)
        ),
        "gaussian_blur": Corruption(gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1), (1, 2, 3, 4, 6)),
        "motion_blur": Corruption(
            motion_blur,
            ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
            ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        ),
        "brightness": Corruption(
            brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)
        ),
        "contrast": Corruption(contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
        "saturate": Corruption(
            saturate,
            ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
            ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
            color=True,
        ),
        "pixelate": Corruption(pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    }
)
"""Every corruption by name."""


@dataclasses.dataclass(frozen=True)
class CorruptionResult:
    """Accuracies of one classifier on corrupted images.

    Attributes:
        clean: accuracy on the images as they are.
        mean: mean over corruptions and severities.
        accuracy: corruption -> mean over the severities.
        severities: corruption -> accuracy at severity 1 to 5.
        queries: test images scored, in each of them.
        unlabelled: test images left out, having no label at this level.
    """

    clean: float
    mean: float
    accuracy: dict[str, float]
    severities: dict[str, tuple[float, ...]]
    queries: int
    unlabelled: int

    def scalars(self, prefix: str = "corruption/") -> dict[str, float]:
        """{prefix + "clean"|"mean"|"<corruption>": accuracy}, for a log or a table."""
        return {
            f"{prefix}clean": self.clean,
            f"{prefix}mean": self.mean,
            **{f"{prefix}{name}": value for name, value in self.accuracy.items()},
        }


def corruption(
    models: Mapping[str, LogisticModel],
    test: Features,
    take: Callable[[Alter], Features],
    image_shape: tuple[int, int, int],
    seed: int = 0,
) -> dict[str, CorruptionResult]:
    """Scores classifiers of clean features on corrupted test images.

    Args:
        models: by name (of the level), fitted on clean features.
        test: features of the clean test images.
        take: features of the altered test images, in the same order.
        image_shape: (H, W, C) of the images that are altered, before they are resized for a network.
        seed: of noises and angles; an image is corrupted alike for every network.

    Returns:
        name -> result.

    Raises:
        ValueError: no test image has a label at the level of a model.
    """
    found: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    for kind, made in CORRUPTIONS.items():
        if made.color and image_shape[2] == 1:
            continue
        for strength in made.strengths(min(image_shape[:2])):
            features = take(alter(kind, strength, seed))
            for name, model in models.items():
                found[name].setdefault(kind, []).append(model.accuracy(features)[0])
    results = {}
    for name, model in models.items():
        clean, queries, unlabelled, _ = model.accuracy(test)
        results[name] = CorruptionResult(
            clean=clean,
            mean=float(np.mean([*found[name].values()])),
            accuracy={kind: float(np.mean(values)) for kind, values in found[name].items()},
            severities={kind: tuple(values) for kind, values in found[name].items()},
            queries=queries,
            unlabelled=unlabelled,
        )
    return results


def alter(name: str, strength: float | tuple[float, float], seed: int = 0) -> Alter:
    """The corruption as a change of batches that keeps their labels; compiled once a corruption."""

    def changed(images: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        return _corrupted(images, index, jnp.asarray(strength, images.dtype), seed, name=name), None

    return changed


@functools.partial(jax.jit, static_argnames="name")
def _corrupted(
    images: jax.Array, index: jax.Array, strength: jax.Array, seed: jax.Array, *, name: str
) -> jax.Array:
    # The corruption's number keeps two kinds of noise apart; the strength does not: a stronger one
    # is more of the same.
    key = jax.random.fold_in(jax.random.key(seed), list(CORRUPTIONS).index(name))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    return jax.vmap(CORRUPTIONS[name].apply, (0, 0, None))(keys, images, strength)
