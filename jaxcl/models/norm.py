"""Batch normalisation whose groups are a setting, not a consequence of the number of devices."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy, 2015) over groups of rows.

    The rows of the batch are split into `groups` contiguous groups of N / groups rows, and each
    group is normalised by its own mean and variance. Under `jit` the batch is the global one: 1 is
    cross-replica BN on any number of devices, and 8 is the per-device BN of a machine with 8
    devices, wherever it runs. Rows are reduced first, and only the results ([C], or [N,C] where
    groups and devices do not fit) meet over devices; activations stay where they are.

    The variance is the mean of squared deviations from the mean, in at least float32. The running
    statistics take new = momentum * old + (1 - momentum) * batch, where "batch" is the mean over
    the groups of their means and of their biased variances (divided by n, as in the SimCLR code and
    flax; PyTorch divides the running one by n - 1).

    Attributes:
      groups: number of groups, a divisor of the batch size.
      momentum: decay of the running statistics (0.9 is PyTorch's 0.1).
      eps: added to the variance.
      use_scale: a trained factor gamma per channel.
      use_bias: a trained offset beta per channel.
      zero_scale: initialise gamma with 0 instead of 1.
      dtype: type of the result.
    """

    groups: int = 1
    momentum: float = 0.9
    eps: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    zero_scale: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x[N,...,C] -> dtype[N,...,C], by the running statistics.

        If `train`, by the batch's own, with which it updates the running ones. If not, and the
        collection "moments" is mutable, it puts the mean and variance of x there.

        Raises:
          ValueError: N is not divisible by `groups` (in training).
        """
        wide = jnp.promote_types(self.dtype, jnp.float32)
        shape = (x.shape[-1],)
        scale = bias = None
        if self.use_scale:
            init = nn.initializers.zeros if self.zero_scale else nn.initializers.ones
            scale = self.param("scale", init, shape, wide)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, shape, wide)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, wide)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, wide)

        if not train:
            factor = jax.lax.rsqrt(running_var.value + self.eps)
            factor = factor if scale is None else factor * scale
            y = (x.astype(wide) - running_mean.value) * factor
            if self.is_mutable_collection("moments") and not self.is_initializing():
                for name, value in zip(
                    ("mean", "var"), group_moments(x.astype(wide), 1), strict=True
                ):
                    self.put_variable("moments", name, value[0])
            return (y if bias is None else y + bias).astype(self.dtype)

        y, mean, var = normalize(x, scale, bias, self.groups, self.eps, self.dtype)
        if not self.is_initializing():
            for running, batch in ((running_mean, mean), (running_var, var)):
                batch = jax.lax.stop_gradient(batch.mean(0))
                running.value = moving_average(self.momentum, running.value, batch)
        return y


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalize(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    groups: int,
    eps: float,
    dtype: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises x[N,...,C] by the statistics of each of `groups` groups of rows.

    Its gradient is written out: it keeps x as it is (autodiff keeps wider copies), and reads it in
    one reduction and one pass (autodiff: several). The gradient through the two statistics that it
    returns is left out, as nothing is trained by the running statistics.

    Args:
      x: the batch; N is divisible by `groups`.
      scale: [C], or None for ones.
      bias: [C], or None for zeros.
      groups: number of groups.
      eps: added to the variance.
      dtype: type of the result.

    Returns:
      y dtype[N,...,C]; mean and variance of the groups, [groups,C] in at least float32.
    """
    return _normalize_forward(x, scale, bias, groups, eps, dtype)[0]


def _normalize_forward(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    groups: int,
    eps: float,
    dtype: Any,
) -> tuple[Any, Any]:
    wide = x.astype(jnp.promote_types(dtype, jnp.float32))
    mean, var = group_moments(wide, groups)
    inverse = jax.lax.rsqrt(var + eps)
    factor = inverse if scale is None else inverse * scale
    y = (wide - per_row(mean, x)) * per_row(factor, x)
    y = y if bias is None else y + bias
    return (y.astype(dtype), mean, var), (x, scale, bias, mean, inverse)


def _normalize_backward(
    groups: int, eps: float, dtype: Any, kept: Any, gradients: Any
) -> tuple[Any, Any, Any]:
    """With u = (x - mean) / std: dx = (dy - mean(dy) - u * mean(dy * u)) * scale / std."""
    x, scale, bias, mean, inverse = kept
    dy = gradients[0].astype(mean.dtype)
    centered = x.astype(mean.dtype) - per_row(mean, x)
    count = x.size // (x.shape[-1] * groups)
    # Means over a group of dy and of dy * u.
    shift = group_mean(dy, groups)
    slope = group_mean(dy * centered, groups) * inverse
    factor = inverse if scale is None else inverse * scale
    dx = dy - per_row(shift, x) - centered * per_row(slope * inverse, x)
    dx = (dx * per_row(factor, x)).astype(x.dtype)
    dscale = None if scale is None else slope.sum(0) * count
    return dx, dscale, None if bias is None else shift.sum(0) * count


normalize.defvjp(_normalize_forward, _normalize_backward)


def moving_average(momentum: float, old: jax.Array, batch: jax.Array) -> jax.Array:
    """The running statistics after a batch."""
    return momentum * old + (1 - momentum) * batch


def group_moments(x: jax.Array, groups: int) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of x[N,...,C] in each of `groups` groups of rows: two [groups,C].

    Raises:
      ValueError: N is not divisible by `groups`.
    """
    if x.shape[0] % groups:
        raise ValueError(
            f"BatchNorm: {x.shape[0]} rows cannot be split into groups={groups} equal groups: "
            f"pass a number of rows divisible by {groups} (batch size times views), or set other "
            "groups"
        )

    mean = group_mean(x, groups)
    return mean, group_mean(jnp.square(x - per_row(mean, x)), groups)


def group_mean(x: jax.Array, groups: int) -> jax.Array:
    """Mean of x[N,...,C] over the rows of each group and all inner axes: [groups,C].

    Rows first: what is then brought together over devices is [N,C].
    """
    rows = x.mean(tuple(range(1, x.ndim - 1)))
    return rows.reshape(groups, -1, rows.shape[-1]).mean(1)


def per_row(stats: jax.Array, x: jax.Array) -> jax.Array:
    """stats[G,C] of the groups as [N,1,...,C], each row its group's ([1,1,...,C] for one group)."""
    if stats.shape[0] > 1:
        stats = jnp.repeat(stats, x.shape[0] // stats.shape[0], axis=0)
    return stats.reshape(stats.shape[0], *(1,) * (x.ndim - 2), stats.shape[-1])
