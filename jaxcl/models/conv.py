"""The one convolution of the networks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcl.models.init import scaled


def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolution of x[N,H,W,I] with kernel[k,k,I,O], k odd -> [N,ceil(H/stride),ceil(W/stride),O].

    The input is padded with k // 2 zeros on each side whatever the stride, so that output pixel i
    looks at input pixel i * stride (TensorFlow's SAME shifts this by one pixel for even sizes and
    stride 2). A 1x1 kernel is a matrix product.
    """
    size = kernel.shape[0]
    if size == 1:
        x = x[:, ::stride, ::stride] if stride > 1 else x
        return jax.lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))
    pad = (size // 2, size // 2)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


class Conv(nn.Module):
    """`conv2d` without bias, as a BatchNorm follows.

    The kernel starts from a truncated normal distribution of variance 1 / fan-in, as in the SimCLR
    code.

    Attributes:
      features: output channels.
      size: kernel side, odd.
      stride: step of the output pixels on the input.
      dtype: compute type; the kernel is kept in at least float32.
    """

    features: int
    size: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x[N,H,W,I] -> dtype[N,H',W',features]."""
        fan_in = self.size**2 * x.shape[-1]
        kernel = self.param(
            "kernel",
            scaled("truncated_normal", fan_in**-0.5),
            (self.size, self.size, x.shape[-1], self.features),
            jnp.promote_types(self.dtype, jnp.float32),
        )
        return conv2d(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
