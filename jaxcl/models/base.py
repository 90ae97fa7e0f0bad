"""The network as the rest of jaxcl sees it: pure functions on trees of arrays."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcl.models.heads import Head, HeadSpec
from jaxcl.models.init import initialize
from jaxcl.models.resnet import DEPTHS, EXPANSION, STEMS, ResNet

PyTree = Any
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """The encoder f.

    Attributes:
      name: "resnet18", "resnet34", "resnet50", "resnet101", "resnet152" or "resnet200".
      width: factor of the number of channels; 1 is 64 in the first stage.
      stem: "imagenet", "cifar" or "resnet_d"; see `resnet.Stem`.
      selective_kernels: SimCLR v2's selective kernels and average-pooled shortcuts (from ResNet-50
        on); its networks have the stem "resnet_d" with them.
      zero_init_residual: the last BatchNorm of each block starts with scale 0.
      bn_groups: 1 takes BatchNorm's statistics over the global batch, G over each of G parts; see
        `norm.BatchNorm`.
      bn_momentum: decay of the running statistics.
      bn_eps: added to the variance.
      dtype: compute type of the backbone; parameters, statistics, heads and what comes out are in
        at least float32.
      remat: compute the blocks' inner activations again in the backward pass, to save memory.
      mean: subtracted from the images, per channel; empty for no normalisation (as SimCLR).
      std: divides the images after that, per channel.
    """

    name: str = "resnet18"
    width: float = 1.0
    stem: str = "imagenet"
    selective_kernels: bool = False
    zero_init_residual: bool = True
    bn_groups: int = 1
    bn_momentum: float = 0.9
    bn_eps: float = 1e-5
    dtype: str = "float32"
    remat: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        names = {f"resnet{d}": d for d in DEPTHS}
        if self.name not in names:
            raise ValueError(f"backbone.name={self.name!r}: expected one of {', '.join(names)}")
        if self.features < 2 or self.features != 64 * self.width or self.features % 2:
            raise ValueError(
                f"backbone.width={self.width}: expected 64 * width to be a positive even whole "
                "number of channels (0.25 is 16)"
            )
        if self.stem not in STEMS:
            raise ValueError(f"backbone.stem={self.stem!r}: expected one of {', '.join(STEMS)}")
        if self.selective_kernels and not DEPTHS[self.depth][1]:
            raise ValueError(
                f"backbone.selective_kernels=True with {self.name}: selective kernels replace the "
                "3x3 convolution of bottleneck blocks; use resnet50 or deeper"
            )
        if self.bn_groups < 1:
            raise ValueError(f"backbone.bn_groups={self.bn_groups}: expected 1 or more")
        if not 0 <= self.bn_momentum < 1:
            raise ValueError(f"backbone.bn_momentum={self.bn_momentum}: expected 0 <= value < 1")
        if self.bn_eps <= 0:
            raise ValueError(f"backbone.bn_eps={self.bn_eps}: expected a number above 0")
        if self.dtype not in DTYPES:
            raise ValueError(f"backbone.dtype={self.dtype!r}: expected one of {', '.join(DTYPES)}")
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"backbone.mean={self.mean} and backbone.std={self.std}: expected one number per "
                "channel in both, or neither"
            )
        if any(s <= 0 for s in self.std):
            raise ValueError(f"backbone.std={self.std}: expected numbers above 0")

    @property
    def depth(self) -> int:
        """Number of layers, as in the name."""
        return int(self.name.removeprefix("resnet"))

    @property
    def features(self) -> int:
        """Channels of the first stage."""
        return int(64 * self.width)


@dataclasses.dataclass(frozen=True)
class Model:
    """A backbone with named heads; made by `build`.

    Attributes:
      config: of the backbone.
      backbone: the linen module of f.
      heads: (name, linen module) of each head.
    """

    config: BackboneConfig
    backbone: ResNet
    heads: tuple[tuple[str, Head], ...]

    @property
    def feature_dim(self) -> int:
        """F, the width of h."""
        bottleneck = DEPTHS[self.config.depth][1]
        return self.config.features * 8 * (EXPANSION if bottleneck else 1)

    def init(self, key: jax.Array, image_shape: tuple[int, int, int]) -> dict[str, PyTree]:
        """Draws the parameters: {"params": ..., "batch_stats": ...}.

        Both have the entries "backbone" and "head_<name>"; a head without parameters (or without
        statistics) has no entry.

        Args:
          key: PRNG key.
          image_shape: (h, w, C) of the images; the parameters depend on C only.
        """
        self._check_channels(image_shape[-1])
        wide = jnp.promote_types(self.backbone.dtype, jnp.float32)
        keys = jax.random.split(key, 1 + len(self.heads))
        images = jnp.zeros((1, *image_shape), wide)
        # What is computed again makes no difference to the parameters, only to the work here.
        parts = {"backbone": initialize(self.backbone.clone(remat=False), keys[0], images, False)}
        h = jnp.zeros((1, self.feature_dim), wide)
        for (name, head), head_key in zip(self.heads, keys[1:], strict=True):
            parts[f"head_{name}"] = initialize(head, head_key, h, False)
        return {
            kind: {name: part[kind] for name, part in parts.items() if part.get(kind)}
            for kind in ("params", "batch_stats")
        }

    def apply(
        self,
        params: PyTree,
        batch_stats: PyTree,
        images: jax.Array,
        train: bool,
        key: jax.Array | None = None,
    ) -> tuple[tuple[jax.Array, dict[str, tuple[jax.Array, ...]]], PyTree]:
        """The forward pass.

        Args:
          params: as from `init`; other entries are ignored.
          batch_stats: as from `init`.
          images: float[N,h,w,C] in [0,1].
          train: normalise by the batch's statistics and update the running ones.
          key: for networks that draw random numbers; this one draws none.

        Returns:
          ((h[N,F], {head: (output of each layer, ..., z[N,D])}), batch_stats), arrays in at least
          float32; the batch_stats are the given ones if not `train`.

        Raises:
          ValueError: images are no floats, or have another number of channels than mean and std;
            or N is not divisible by bn_groups (in training).
        """
        del key
        h, backbone_stats = self._features(params, batch_stats, images, train)
        stats = {**batch_stats, "backbone": backbone_stats}
        outputs = {}
        for name, head in self.heads:
            part = f"head_{name}"
            outputs[name], head_stats = _forward(
                head, params.get(part, {}), batch_stats.get(part, {}), h, train
            )
            if part in batch_stats:
                stats[part] = head_stats
        return (h, outputs), stats

    def encode(self, params: PyTree, batch_stats: PyTree, images: jax.Array) -> jax.Array:
        """h[N,F] of images[N,h,w,C] in [0,1], in evaluation mode.

        The trees need to have the backbone's part only.
        """
        return self._features(params, batch_stats, images, False)[0]

    def _features(
        self, params: PyTree, batch_stats: PyTree, images: jax.Array, train: bool
    ) -> tuple[jax.Array, PyTree]:
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images are {images.dtype}: expected floats in [0,1]; divide 8-bit images by 255"
            )
        self._check_channels(images.shape[-1])
        if self.config.mean:
            wide = jnp.promote_types(self.backbone.dtype, jnp.float32)
            mean, std = (jnp.asarray(v, wide) for v in (self.config.mean, self.config.std))
            images = (images.astype(wide) - mean) / std
        return _forward(self.backbone, params["backbone"], batch_stats["backbone"], images, train)

    def _check_channels(self, channels: int) -> None:
        if self.config.mean and len(self.config.mean) != channels:
            raise ValueError(
                f"backbone.mean has {len(self.config.mean)} numbers and the images have "
                f"{channels} channels: expected one number per channel"
            )


def _forward(
    module: Any, params: PyTree, batch_stats: PyTree, x: jax.Array, train: bool
) -> tuple[Any, PyTree]:
    variables = {"params": params, "batch_stats": batch_stats}
    if not train:
        return module.apply(variables, x, False), batch_stats
    out, new = module.apply(variables, x, True, mutable=["batch_stats"])
    return out, new.get("batch_stats", {})


def build(backbone: BackboneConfig, heads: Mapping[str, HeadSpec]) -> Model:
    """Makes a model of a backbone and heads by name.

    Raises:
      ValueError: dtype is "float64" and JAX's 64-bit mode is off.
    """
    dtype = jnp.dtype(backbone.dtype)
    if backbone.dtype == "float64" and jnp.result_type(float) != dtype:
        raise ValueError(
            "backbone.dtype='float64' needs JAX's 64-bit mode: set mesh.x64=True (JAX_ENABLE_X64=1)"
        )
    norm = (backbone.bn_groups, backbone.bn_momentum, backbone.bn_eps)
    network = ResNet(
        backbone.depth,
        backbone.features,
        backbone.stem,
        backbone.selective_kernels,
        backbone.zero_init_residual,
        *norm,
        dtype,
        backbone.remat,
    )
    wide = jnp.promote_types(dtype, jnp.float32)
    return Model(
        backbone, network, tuple((name, Head(spec, *norm, wide)) for name, spec in heads.items())
    )
