"""The network as the rest of jaxcl sees it: pure functions on trees of arrays."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcl.models import gradient_cache, vit
from jaxcl.models.heads import Head, HeadOn, HeadSpec
from jaxcl.models.init import initialize
from jaxcl.models.resnet import DEPTHS, EXPANSION, STEMS, ResNet

PyTree = Any
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """The encoder f.

    Attributes:
      name: "resnet18", "resnet34", "resnet50", "resnet101", "resnet152" or "resnet200"; or a vision
        transformer "vit_t16", "vit_s16" or "vit_b16", with any side of a patch at the end.
      width: factor of the number of channels; 1 is 64 in the first stage, and 192, 384 or 768 for
        "vit_t", "vit_s" and "vit_b".
      stem: "imagenet", "cifar" or "resnet_d"; see `resnet.Stem`. Of a ViT "patches" or
        "fixed_patches"; see `vit`.
      selective_kernels: SimCLR v2's selective kernels and average-pooled shortcuts (from ResNet-50
        on); its networks have the stem "resnet_d" with them.
      zero_init_residual: the last BatchNorm of each block starts with scale 0 (no matter to a ViT).
      bn_groups: 1 takes BatchNorm's statistics over the global batch, G over each of G parts; see
        `norm.BatchNorm`. A ViT has BatchNorm in its heads only.
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
        size = vit.parse(self.name)
        if size:
            self._check_vit(size)
        else:
            self._check_resnet()
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

    def _check_resnet(self) -> None:
        names = [f"resnet{d}" for d in DEPTHS]
        if self.name not in names:
            known = ", ".join([*names, *vit.NAMES])
            raise ValueError(f"backbone.name={self.name!r}: expected one of {known}")
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

    def _check_vit(self, size: vit.Size) -> None:
        exact, multiple = size.width * self.width, math.lcm(4, size.heads)
        if self.features < 1 or self.features != exact or self.features % multiple:
            raise ValueError(
                f"backbone.width={self.width}: expected {size.width} * width to be a positive "
                f"multiple of {multiple}, for {self.name}'s {size.heads} heads and its positions"
            )
        if self.stem not in vit.STEMS:
            raise ValueError(
                f"backbone.stem={self.stem!r}: expected one of {', '.join(vit.STEMS)} for {self.name}"
            )
        if self.selective_kernels:
            raise ValueError(
                f"backbone.selective_kernels=True with {self.name}: a ViT has none; set it to False"
            )

    @property
    def depth(self) -> int:
        """Number of layers, as in the name of a ResNet."""
        return int(self.name.removeprefix("resnet"))

    @property
    def features(self) -> int:
        """Channels of the first stage, or of a token."""
        size = vit.parse(self.name)
        return int((size.width if size else 64) * self.width)

    @property
    def groups_in_backbone(self) -> int:
        """bn_groups; 1 where the backbone has no BatchNorm."""
        return 1 if vit.parse(self.name) else self.bn_groups

    @property
    def feature_dim(self) -> int:
        """F, the width of h."""
        if vit.parse(self.name):
            return self.features
        bottleneck = DEPTHS[self.depth][1]
        return self.features * 8 * (EXPANSION if bottleneck else 1)


@dataclasses.dataclass(frozen=True)
class Model:
    """A backbone with named heads; made by `build`.

    Attributes:
      config: of the backbone.
      backbone: the linen module of f.
      heads: (name, linen module) of each head.
      inputs: (name, name of the head whose z it reads) of each head that does not read h.
      pieces: number of micro-batches in which `apply` goes through the backbone, with the same
        results; see `gradient_cache`.
    """

    config: BackboneConfig
    backbone: Any
    heads: tuple[tuple[str, Head], ...]
    inputs: tuple[tuple[str, str], ...] = ()
    pieces: int = 1

    @property
    def feature_dim(self) -> int:
        """F, the width of h."""
        return self.config.feature_dim

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
        widths, inputs = {"": self.feature_dim}, dict(self.inputs)
        for (name, head), head_key in zip(self.heads, keys[1:], strict=True):
            width = widths[inputs.get(name, "")]
            parts[f"head_{name}"] = initialize(head, head_key, jnp.zeros((1, width), wide), False)
            widths[name] = head.spec.width(width)
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
        heads: Collection[str] | None = None,
    ) -> tuple[tuple[jax.Array, dict[str, tuple[jax.Array, ...]]], PyTree]:
        """The forward pass.

        Args:
          params: as from `init`; other entries are ignored.
          batch_stats: as from `init`.
          images: float[N,h,w,C] in [0,1].
          train: normalise by the batch's statistics and update the running ones.
          key: for networks that draw random numbers; this one draws none.
          heads: names of the heads to go through; None: all. Of others no parameters are needed, and
            their statistics stay as they are.

        Returns:
          ((h[N,F], {head: (output of each layer, ..., z[N,D])}), batch_stats), arrays in at least
          float32; the batch_stats are the given ones if not `train`.

        Raises:
          ValueError: images are no floats, or have another number of channels than mean and std;
            or N is not divisible by bn_groups (in training), or by `pieces`.
        """
        del key
        h, backbone_stats = self._features(params, batch_stats, images, train, self.pieces)
        new = {"backbone": backbone_stats}
        outputs: dict[str, tuple[jax.Array, ...]] = {}
        inputs = dict(self.inputs)
        for name, head in self.heads:
            if heads is not None and name not in heads:
                continue
            part = f"head_{name}"
            x = outputs[inputs[name]][-1] if name in inputs else h
            outputs[name], new[part] = _forward(
                head, params.get(part, {}), batch_stats.get(part, {}), x, train
            )
        return (h, outputs), batch_stats | {part: new[part] for part in new if part in batch_stats}

    def encode(self, params: PyTree, batch_stats: PyTree, images: jax.Array) -> jax.Array:
        """h[N,F] of images[N,h,w,C] in [0,1], in evaluation mode.

        The trees need to have the backbone's part only.
        """
        return self._features(params, batch_stats, images, False, 1)[0]

    def _features(
        self, params: PyTree, batch_stats: PyTree, images: jax.Array, train: bool, pieces: int
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
        stats = batch_stats.get("backbone", {})
        args = (self.backbone, params["backbone"], stats, images, train)
        return _forward(*args) if pieces == 1 else gradient_cache.forward(*args, pieces)

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


def build(backbone: BackboneConfig, heads: Mapping[str, HeadSpec | HeadOn]) -> Model:
    """Makes a model of a backbone and heads by name.

    Raises:
      ValueError: dtype is "float64" and JAX's 64-bit mode is off; a head on top of one that does not
        come before it.
    """
    dtype = jnp.dtype(backbone.dtype)
    if backbone.dtype == "float64" and jnp.result_type(float) != dtype:
        raise ValueError(
            "backbone.dtype='float64' needs JAX's 64-bit mode: set mesh.x64=True (JAX_ENABLE_X64=1)"
        )
    norm = (backbone.bn_groups, backbone.bn_momentum, backbone.bn_eps)
    size = vit.parse(backbone.name)
    network: ResNet | vit.ViT
    if size:
        fixed = backbone.stem == "fixed_patches"
        layout = (size.patch, backbone.features, size.depth, size.heads)
        network = vit.ViT(*layout, fixed, dtype, backbone.remat)
    else:
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
    modules: dict[str, Head] = {}
    inputs: dict[str, str] = {}
    for name, head in heads.items():
        if isinstance(head, HeadOn):
            if head.head not in modules:
                raise ValueError(
                    f"head {name!r} reads head {head.head!r}: expected one of those before it, {list(modules)}"
                )
            inputs[name], head = head.head, head.spec
        modules[name] = Head(head, *norm, wide)
    return Model(backbone, network, tuple(modules.items()), inputs=tuple(inputs.items()))
