"""Residual networks (He et al., 2015, post-activation), with the options of SimCLR v1 and v2.

Where implementations differ, this one does the following:

* The stride of a bottleneck block is in its 3x3 convolution ("v1.5", as in the SimCLR code, PyTorch
  and most others; the paper has it in the first 1x1).
* A block has a projection shortcut where the shape changes and nowhere else (the SimCLR code also
  projects in the first block of ResNet-18 and -34, whose shape does not change).
* Convolutions and the max pool are padded symmetrically, k // 2 on each side (TensorFlow's SAME max
  pool is not).
* With selective kernels, a projection shortcut is average pooling and a 1x1 convolution (ResNet-D),
  as in SimCLR v2.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcl.models.conv import Conv
from jaxcl.models.norm import BatchNorm

# Depth -> (blocks in each of the four stages, bottleneck blocks or basic ones).
DEPTHS: dict[int, tuple[tuple[int, int, int, int], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
    200: ((3, 24, 36, 3), True),
}
STEMS = ("imagenet", "cifar", "resnet_d")
EXPANSION = 4  # of a bottleneck block: output channels / inner channels

SK_RATIO = 1 / 16  # width of the layer that mixes the two streams / channels of a stream
SK_MIN_WIDTH = 32

Norm = Callable[..., BatchNorm]


class SelectiveKernel(nn.Module):
    """Two 3x3 streams, mixed by softmax weights for each image and channel.

    Li et al., "Selective Kernel Networks", 2019, in the form of SimCLR v2's code.

    Attributes:
      features: output channels.
      stride: of the 3x3 convolutions.
      norm: makes a BatchNorm.
      dtype: compute type.
    """

    features: int
    stride: int
    norm: Norm
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x[N,H,W,I] -> [N,H',W',features], after BatchNorm and ReLU."""
        conv = partial(Conv, dtype=self.dtype)
        x = conv(2 * self.features, 3, self.stride, name="conv")(x)
        x = nn.relu(self.norm(name="bn")(x, train))
        streams = jnp.stack(jnp.split(x, 2, axis=-1))
        wide = jnp.promote_types(self.dtype, jnp.float32)
        pooled = streams.sum(0).astype(wide).mean((1, 2), keepdims=True)
        width = max(int(self.features * SK_RATIO), SK_MIN_WIDTH)
        mixing = conv(width, 1, name="mix_conv1")(pooled)
        mixing = nn.relu(self.norm(name="mix_bn")(mixing, train))
        mixing = conv(2 * self.features, 1, name="mix_conv2")(mixing)
        mixing = jnp.stack(jnp.split(mixing, 2, axis=-1)).astype(wide)
        weights = jax.nn.softmax(mixing, axis=0).astype(self.dtype)
        return (streams * weights).sum(0)


class Block(nn.Module):
    """A residual block: basic (3x3, 3x3) or bottleneck (1x1, 3x3, 1x1).

    Attributes:
      features: channels of the 3x3 convolutions.
      stride: of the block.
      bottleneck: bottleneck block, with EXPANSION * features output channels.
      selective_kernels: a `SelectiveKernel` in place of a bottleneck block's 3x3 convolution.
      zero_init: the block's last BatchNorm starts with scale 0, and so the block as its shortcut.
      norm: makes a BatchNorm.
      dtype: compute type.
    """

    features: int
    stride: int
    bottleneck: bool
    selective_kernels: bool
    zero_init: bool
    norm: Norm
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x[N,H,W,I] -> [N,H',W',O], after the last ReLU."""
        conv = partial(Conv, dtype=self.dtype)
        last_norm = partial(self.norm, zero_scale=self.zero_init)
        out = self.features * (EXPANSION if self.bottleneck else 1)

        shortcut = x
        if self.stride > 1 or x.shape[-1] != out:
            stride = self.stride
            if self.selective_kernels:
                # At the border a strided window counts the zeros that pad it, an unstrided one not.
                shortcut = nn.avg_pool(
                    shortcut,
                    (2, 2),
                    (stride, stride),
                    ((0, 1), (0, 1)),
                    count_include_pad=stride > 1,
                )
                stride = 1
            shortcut = conv(out, 1, stride, name="shortcut_conv")(shortcut)
            shortcut = self.norm(name="shortcut_bn")(shortcut, train)

        if self.bottleneck:
            y = conv(self.features, 1, name="conv1")(x)
            y = nn.relu(self.norm(name="bn1")(y, train))
            if self.selective_kernels:
                y = SelectiveKernel(self.features, self.stride, self.norm, self.dtype, name="sk")(
                    y, train
                )
            else:
                y = conv(self.features, 3, self.stride, name="conv2")(y)
                y = nn.relu(self.norm(name="bn2")(y, train))
            y = conv(out, 1, name="conv3")(y)
            y = last_norm(name="bn3")(y, train)
        else:
            y = conv(self.features, 3, self.stride, name="conv1")(x)
            y = nn.relu(self.norm(name="bn1")(y, train))
            y = conv(out, 3, name="conv2")(y)
            y = last_norm(name="bn2")(y, train)
        return nn.relu(y + shortcut)


class Stem(nn.Module):
    """What comes before the residual blocks.

    Attributes:
      kind: "imagenet" (7x7/2, max pool), "cifar" (3x3/1, no pool: for images of 32 pixels and the
        like) or "resnet_d" (three 3x3, the first of stride 2, max pool; He et al., 2018).
      features: output channels.
      norm: makes a BatchNorm.
      dtype: compute type.
    """

    kind: str
    features: int
    norm: Norm
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x[N,H,W,C] -> [N,H',W',features]; H' is H for "cifar", else H / 4 (rounded up)."""
        conv = partial(Conv, dtype=self.dtype)
        if self.kind == "cifar":
            x = conv(self.features, 3, name="conv")(x)
        elif self.kind == "imagenet":
            x = conv(self.features, 7, 2, name="conv")(x)
        else:
            x = conv(self.features // 2, 3, 2, name="conv1")(x)
            x = nn.relu(self.norm(name="bn1")(x, train))
            x = conv(self.features // 2, 3, name="conv2")(x)
            x = nn.relu(self.norm(name="bn2")(x, train))
            x = conv(self.features, 3, name="conv")(x)
        x = nn.relu(self.norm(name="bn")(x, train))
        if self.kind != "cifar":
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        return x


class ResNet(nn.Module):
    """A residual network up to its global average pooling. Paths: `stem`, `stage<1..4>_block<1..>`.

    Attributes:
      depth: a key of DEPTHS.
      features: channels of the first stage (64 in the paper); each stage doubles them.
      stem: one of STEMS.
      selective_kernels: see `SelectiveKernel`.
      zero_init: see `Block`.
      groups, momentum, eps: of all BatchNorms.
      dtype: compute type.
      remat: keep only the blocks' inputs for the backward pass and compute the rest again: less
        memory, more time.
    """

    depth: int
    features: int
    stem: str
    selective_kernels: bool
    zero_init: bool
    groups: int
    momentum: float
    eps: float
    dtype: Any
    remat: bool

    @property
    def segments(self) -> tuple[tuple[str, ...], ...]:
        """Names of the parts, in runs; from the third stage on each block is one by itself.

        What lies between the runs is at most half as large as the activations of the first stage.
        """
        names = [
            [f"stage{stage}_block{i + 1}" for i in range(count)]
            for stage, count in enumerate(DEPTHS[self.depth][0], 1)
        ]
        return ("stem", *names[0], *names[1]), *((name,) for name in (*names[2], *names[3]))

    def norms_in_a_row(self, names: Sequence[str]) -> int:
        """How many BatchNorms lie behind one another in these parts.

        A shortcut's does not count: it sees the block's input, as the block's first one does.
        """
        stem = 3 if self.stem == "resnet_d" else 1
        bottleneck = DEPTHS[self.depth][1]
        block = (4 if self.selective_kernels else 3) if bottleneck else 2
        return sum(stem if name == "stem" else block for name in names)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, names: Sequence[str] | None = None) -> jax.Array:
        """Images x[N,H,W,C] -> h[N,F], at least float32.

        Args:
          x: images; or the output of the parts before `names`.
          train: of `BatchNorm`.
          names: only these parts, one of `segments`; None: all.
        """
        norm = partial(BatchNorm, self.groups, self.momentum, self.eps, dtype=self.dtype)
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        blocks, bottleneck = DEPTHS[self.depth]
        if names is None or "stem" in names:
            x = Stem(self.stem, self.features, norm, self.dtype, name="stem")(x, train)
        for stage, count in enumerate(blocks):
            for i in range(count):
                name = f"stage{stage + 1}_block{i + 1}"
                if names is not None and name not in names:
                    continue
                x = block(
                    self.features * 2**stage,
                    2 if stage > 0 and i == 0 else 1,
                    bottleneck,
                    self.selective_kernels,
                    self.zero_init,
                    norm,
                    self.dtype,
                    name=name,
                )(x, train)
        if names is not None and name not in names:
            return x
        return x.astype(jnp.promote_types(self.dtype, jnp.float32)).mean((1, 2))
