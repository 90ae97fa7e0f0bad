"""The one convolution of the networks."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcl.models.init import scaled


def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolution of x[N,H,W,I] with kernel[k,k,I,O], k odd -> [N,ceil(H/stride),ceil(W/stride),O].

    The input is padded with k // 2 zeros on each side whatever the stride, so that output pixel i
    looks at input pixel i * stride (TensorFlow's SAME shifts this by one pixel for even sizes and
    stride 2). A 1x1 kernel is a matrix product. The gradient of others has a rule of its own, so that
    reverse mode alone can differentiate them (`jax.jvp` raises TypeError).
    """
    if kernel.shape[0] == 1:
        x = x[:, ::stride, ::stride] if stride > 1 else x
        return jax.lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))
    return _conv(x, kernel, stride)


def _plain(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    pad = (kernel.shape[0] // 2,) * 2
    return _convolve(x, kernel, (stride, stride), (pad, pad))


_convolve = partial(jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
_conv = jax.custom_vjp(_plain, nondiff_argnums=(2,))


def _forward(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, Any]:
    return _plain(x, kernel, stride), (x, kernel)


def _backward(stride: int, kept: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """On CPU, XLA computes a convolution by matrix products if it is NHWC, HWIO -> NHWC, and else by plain loops, 17 times slower.

    It brings others into this form, but not inside of a loop, such as that over micro-batches.
    """
    branches = {"cpu": partial(_in_order, stride), "default": partial(_any_order, stride)}
    return jax.lax.platform_dependent(*kept, dy, **branches)


def _any_order(
    stride: int, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return jax.vjp(partial(_plain, stride=stride), x, kernel)[1](dy)


def _in_order(
    stride: int, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    size, pad = kernel.shape[0], kernel.shape[0] // 2
    # Of the padded input, what the last step of the kernel leaves over.
    rest = [(n + 2 * pad - size) % stride for n in x.shape[1:3]]
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    dx = _convolve(
        dy,
        turned,
        (1, 1),
        [(size - 1 - pad, size - 1 - pad + r) for r in rest],
        lhs_dilation=(stride, stride),
    )
    # Channels are the batch here, and the images what is summed over.
    dkernel = _convolve(
        x.transpose(3, 1, 2, 0),
        dy.transpose(1, 2, 0, 3),
        (1, 1),
        [(pad, pad - r) for r in rest],
        rhs_dilation=(stride, stride),
    )
    return dx, dkernel.transpose(1, 2, 0, 3)


_conv.defvjp(_forward, _backward)


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
