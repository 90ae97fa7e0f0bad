"""Projection and prediction heads: small multi-layer perceptrons, described by data."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcl.models.init import scaled
from jaxcl.models.norm import BatchNorm


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """A head: dense layers with ReLU between them, and BatchNorm where asked.

    The defaults are SimCLR's.

    | head | spec |
    |---|---|
    | SimCLR, 2 or 3 layers | `layers=(2048, 128)` or `(2048, 2048, 128)` |
    | SimCLR "linear" | `layers=(128,)` |
    | none | `layers=()`: z is h |
    | MoCo v1 | `layers=(128,), batch_norm=False, bias=True, init_std=None` |
    | MoCo v2, SupCon | `layers=(2048, 128), batch_norm=False, bias=True, init_std=None` |
    | MoCo v3 projector | `layers=(4096, 256), last_bn_scale=False, init_std=None` |
    | MoCo v3 ResNet predictor | `layers=(4096, 256), last_batch_norm=False, init_std=None` |

    Attributes:
      layers: output width of each dense layer, hidden ones first; -1 is the width of h. Empty: the
        identity.
      batch_norm: BatchNorm (with scale and bias) before the ReLU of each hidden layer.
      bias: the dense layers have a bias.
      last_batch_norm: BatchNorm after the last layer; None means as `batch_norm`.
      last_bn_scale: this last BatchNorm has a trained scale.
      last_bn_bias: this last BatchNorm has a trained bias.
      init_std: standard deviation of the normal initialisation of the kernels, with biases of 0;
        None is PyTorch's default: kernels and biases uniform in +-1/sqrt(fan-in).
    """

    layers: tuple[int, ...]
    batch_norm: bool = True
    bias: bool = False
    last_batch_norm: bool | None = None
    last_bn_scale: bool = True
    last_bn_bias: bool = False
    init_std: float | None = 0.01

    def __post_init__(self) -> None:
        if any(width < 1 and width != -1 for width in self.layers):
            raise ValueError(
                f"HeadSpec.layers={self.layers}: expected positive widths (or -1, the width of h)"
            )
        if self.init_std is not None and self.init_std <= 0:
            raise ValueError(
                f"HeadSpec.init_std={self.init_std}: expected a number above 0, or None "
                "(uniform, by fan-in)"
            )

    def width(self, h: int) -> int:
        """D, the width of z, for an h of this width."""
        return self.layers[-1] if self.layers and self.layers[-1] != -1 else h


@dataclasses.dataclass(frozen=True)
class HeadOn:
    """A head on top of another head, whose z it reads in the place of h: a predictor.

    Attributes:
      head: name of the other head.
      spec: what this one consists of; a width of -1 is that of the other's z.
    """

    head: str
    spec: HeadSpec


class Head(nn.Module):
    """The network of a `HeadSpec`.

    Attributes:
      spec: what it consists of.
      groups, momentum, eps: of its BatchNorms.
      dtype: compute type, at least float32: heads are small, and what follows them is sensitive.
    """

    spec: HeadSpec
    groups: int = 1
    momentum: float = 0.9
    eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, train: bool) -> tuple[jax.Array, ...]:
        """h[N,F] -> the output of each layer, after BatchNorm and ReLU; the last one is z[N,D].

        Without layers it is (h,).
        """
        spec = self.spec
        x = h.astype(self.dtype)
        outputs: list[jax.Array] = []
        for i, width in enumerate(spec.layers):
            last = i == len(spec.layers) - 1
            if spec.init_std is None:
                kernel_init = bias_init = scaled("uniform", x.shape[-1] ** -0.5)
            else:
                kernel_init, bias_init = scaled("normal", spec.init_std), nn.initializers.zeros
            x = nn.Dense(
                h.shape[-1] if width == -1 else width,
                use_bias=spec.bias,
                kernel_init=kernel_init,
                bias_init=bias_init,
                dtype=self.dtype,
                param_dtype=self.dtype,
                name=f"dense{i + 1}",
            )(x)
            last_norm = spec.batch_norm if spec.last_batch_norm is None else spec.last_batch_norm
            if last_norm if last else spec.batch_norm:
                x = BatchNorm(
                    self.groups,
                    self.momentum,
                    self.eps,
                    use_scale=spec.last_bn_scale if last else True,
                    use_bias=spec.last_bn_bias if last else True,
                    dtype=self.dtype,
                    name=f"bn{i + 1}",
                )(x, train)
            if not last:
                x = nn.relu(x)
            outputs.append(x)
        return tuple(outputs) or (x,)
