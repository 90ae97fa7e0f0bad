"""Vision transformers (Dosovitskiy et al., 2021) in the form of MoCo v3 (Chen et al., ICCV 2021).

Where implementations differ, this one does the following:

* Positions are fixed 2-D sine-cosine codes, so that the parameters do not depend on the image size.
* The patch projection may be fixed at its random values (stem "fixed_patches"), which MoCo v3 found to make training stable.
  No gradient reaches it then; weight decay is the optimizer's matter (`optim.frozen`).
* h is the class token after the last LayerNorm.
* ViT-S has 12 heads (DeiT: 6).
* Dense layers start from Xavier's uniform distribution, with q, k and v each as a layer of its own, the class token from almost
  zero; LayerNorm's eps is 1e-6, GELU exact.
"""

import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcl.models.init import scaled

# Size -> (width of a token, blocks, heads).
SIZES: dict[str, tuple[int, int, int]] = {
    "t": (192, 12, 3),
    "s": (384, 12, 12),
    "b": (768, 12, 12),
}
NAMES = tuple(f"vit_{size}16" for size in SIZES)
STEMS = ("patches", "fixed_patches")
HIDDEN = 4  # width of a block's hidden layer / width of a token
TEMPERATURE = 10_000.0  # of the positions: the longest wave length / (2 pi)


class Size(NamedTuple):
    """What a name like "vit_s16" says.

    Attributes:
      width: of a token.
      depth: number of blocks.
      heads: of each attention.
      patch: side of a patch in pixels.
    """

    width: int
    depth: int
    heads: int
    patch: int


def parse(name: str) -> Size | None:
    """The size that a name says; None if it names no ViT."""
    found = re.fullmatch(rf"vit_([{''.join(SIZES)}])([1-9]\d*)", name)
    return Size(*SIZES[found[1]], int(found[2])) if found else None


def positions(rows: int, columns: int, width: int) -> jax.Array:
    """Codes float[rows * columns, width] of the places of a grid, row by row.

    A quarter of the width each: sine and cosine of the row, sine and cosine of the column, times frequencies that fall
    geometrically from 1 to almost 1 / TEMPERATURE.

    Raises:
      ValueError: the width is not divisible by 4.
    """
    if width % 4:
        raise ValueError(
            f"width={width}: expected a multiple of 4, for sines and cosines of two axes"
        )
    frequency = TEMPERATURE ** -(jnp.arange(width // 4, dtype=float) / (width // 4))
    row, column = (jnp.arange(count, dtype=float)[:, None] * frequency for count in (rows, columns))
    row, column = jnp.repeat(row, columns, axis=0), jnp.tile(column, (rows, 1))
    return jnp.concatenate([jnp.sin(row), jnp.cos(row), jnp.sin(column), jnp.cos(column)], axis=1)


class Linear(nn.Module):
    """A dense layer with a bias; Xavier's uniform distribution.

    Attributes:
      features: output width.
      dtype: compute type; parameters are kept in at least float32.
      layers: number of equal layers that it consists of, for the initial values (3 for q, k and v).
      fixed: no gradient reaches the parameters.
      fan_in: what counts as the input's width for the initial values; 0: its width.
    """

    features: int
    dtype: Any
    layers: int = 1
    fixed: bool = False
    fan_in: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x[...,I] -> dtype[...,features]."""
        wide = jnp.promote_types(self.dtype, jnp.float32)
        fan = (self.fan_in or x.shape[-1]) + self.features // self.layers
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", scaled("uniform", (6 / fan) ** 0.5), shape, wide)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), wide)
        if self.fixed:
            kernel, bias = jax.lax.stop_gradient((kernel, bias))
        return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)


class Attention(nn.Module):
    """Multi-head self-attention.

    Attributes:
      heads: number of heads.
      dtype: compute type; the softmax is in at least float32.
    """

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x[N,T,D] -> dtype[N,T,D]."""
        n, t, d = x.shape
        qkv = Linear(3 * d, self.dtype, layers=3, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(n, t, 3, self.heads, d // self.heads), 2, 0)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        s = jnp.einsum("nqhd,nkhd->nhqk", q, k, preferred_element_type=wide)
        weights = jax.nn.softmax(s * (d // self.heads) ** -0.5, axis=-1).astype(self.dtype)
        x = jnp.einsum("nhqk,nkhd->nqhd", weights, v)
        return Linear(d, self.dtype, name="out")(x.reshape(n, t, d))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Attributes:
      heads: of the attention.
      dtype: compute type.
    """

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x[N,T,D] -> dtype[N,T,D]."""
        x = x + Attention(self.heads, self.dtype, name="attention")(_norm(self.dtype, "norm1")(x))
        y = Linear(HIDDEN * x.shape[-1], self.dtype, name="mlp1")(_norm(self.dtype, "norm2")(x))
        y = nn.gelu(y, approximate=False)
        return x + Linear(x.shape[-1], self.dtype, name="mlp2")(y)


class ViT(nn.Module):
    """A vision transformer. Paths: `patches`, `class_token`, `block<1..>`, `norm`.

    Attributes:
      patch: side of a patch in pixels.
      features: width of a token, a multiple of 4 and of `heads`.
      depth: number of blocks.
      heads: of each attention.
      fixed_patches: no gradient reaches the patch projection.
      dtype: compute type.
      remat: keep only the blocks' inputs for the backward pass and compute the rest again.
    """

    patch: int
    features: int
    depth: int
    heads: int
    fixed_patches: bool
    dtype: Any
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Images x[N,H,W,C] -> h[N,features], at least float32; the same in training and evaluation.

        Raises:
          ValueError: the images cannot be cut into whole patches.
        """
        del train
        n, height, width, channels = x.shape
        p = self.patch
        if height % p or width % p:
            raise ValueError(
                f"images of {height}x{width} pixels cannot be cut into patches of {p}x{p}: choose another size of the views, or"
                " of the patches (the number at the end of the backbone's name)"
            )
        rows, columns = height // p, width // p
        wide = jnp.promote_types(self.dtype, jnp.float32)
        x = x.reshape(n, rows, p, columns, p, channels).swapaxes(2, 3)
        x = x.reshape(n, rows * columns, p * p * channels)
        # As in MoCo v3's code, the initial values are those for three channels.
        embed = Linear(
            self.features, self.dtype, fixed=self.fixed_patches, fan_in=3 * p * p, name="patches"
        )
        x = embed(x) + positions(rows, columns, self.features).astype(self.dtype)
        token = self.param("class_token", scaled("normal", 1e-6), (self.features,), wide)
        token = jnp.broadcast_to(token.astype(self.dtype), (n, 1, self.features))
        x = jnp.concatenate([token, x], axis=1)
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            x = block(self.heads, self.dtype, name=f"block{i + 1}")(x)
        return _norm(self.dtype, "norm")(x[:, 0]).astype(wide)


def _norm(dtype: Any, name: str) -> nn.LayerNorm:
    wide = jnp.promote_types(dtype, jnp.float32)
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, param_dtype=wide, name=name)
