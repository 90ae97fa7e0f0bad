"""The published view programs, as plain dicts for `ViewsConfig(**preset)`.

Probabilities and strengths are those of the released code. Normalisation by mean and standard
deviation, where a method has it, belongs to the model.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcl.views.ops import OPS

Preset = dict[str, Any]

_PILLOW_BLUR = {"sigma": (0.1, 2.0), "fraction": None, "padding": "edge", "prob": 0.5}
_PILLOW_JITTER = {
    "brightness_mode": "multiply",
    "contrast_mean": "gray",
    "saturation_mode": "blend",
}


def _preset(ops: dict[str, dict[str, Any]], views: int = 2) -> Preset:
    """Ops in their order of application, for views that differ in nothing but what they draw."""
    return {"order": tuple(ops), "ops": ops, "views": tuple({} for _ in range(views))}


def _pillow_jitter(
    brightness: float, contrast: float, saturation: float, hue: float, prob: float
) -> dict[str, Any]:
    """torchvision's ColorJitter."""
    return {
        "brightness": brightness,
        "contrast": contrast,
        "saturation": saturation,
        "hue": hue,
        "prob": prob,
        **_PILLOW_JITTER,
    }


def _pillow_crop(size: int, smallest: float) -> dict[str, Any]:
    """torchvision's RandomResizedCrop."""
    return {
        "size": size,
        "scale": (smallest, 1.0),
        "attempts": 10,
        "fallback": "center",
        "method": "bilinear",
    }


def simclr(
    size: int = 224, strength: float = 1.0, blur: bool = True, brightness: str = "multiply"
) -> Preset:
    """SimCLR (Chen et al., 2020), the released code; CIFAR: `simclr_cifar`.

    Crop (at least 0.10 of the image), flip, jitter with probability 0.8, gray 0.2, blur 0.5. The
    released code draws one sigma for all images of a replica's batch; here each has its own, as the
    paper says.

    Args:
      size: side of the views in pixels.
      strength: s of the colour jitter.
      blur: whether the views are blurred.
      brightness: "multiply" is version 2, "add" version 1.
    """
    ops: dict[str, dict[str, Any]] = {
        "crop": {
            "size": size,
            "scale": (0.08, 1.0),
            "aspect": "uniform",
            "extent": "height",
            "min_covered": 0.1,
            "antialias": False,
        },
        "flip": {"prob": 0.5},
        "jitter": {"strength": strength, "brightness_mode": brightness, "prob": 0.8},
        "gray": {"prob": 0.2},
    }
    if blur:
        ops["blur"] = {"sigma": (0.1, 2.0), "fraction": 0.1, "padding": "zero", "prob": 0.5}
    return _preset(ops)


def simclr_v1(size: int = 224, strength: float = 1.0, blur: bool = True) -> Preset:
    """SimCLR with version 1's brightness, which adds instead of multiplying."""
    return simclr(size, strength, blur, brightness="add")


def simclr_cifar(size: int = 32) -> Preset:
    """SimCLR for CIFAR: half the colour strength and no blur."""
    return simclr(size, strength=0.5, blur=False)


def moco_v1(size: int = 224) -> Preset:
    """MoCo v1 (He et al., 2020): crop (0.2, 1), gray 0.2, jitter always, flip."""
    return _preset(
        {
            "crop": _pillow_crop(size, 0.2),
            "gray": {"prob": 0.2},
            "jitter": _pillow_jitter(0.4, 0.4, 0.4, 0.4, prob=1.0),
            "flip": {"prob": 0.5},
        }
    )


def moco_v2(size: int = 224) -> Preset:
    """MoCo v2 (Chen et al., 2020): crop (0.2, 1), jitter 0.8, gray 0.2, blur 0.5, flip."""
    return _preset(
        {
            "crop": _pillow_crop(size, 0.2),
            "jitter": _pillow_jitter(0.4, 0.4, 0.4, 0.1, prob=0.8),
            "gray": {"prob": 0.2},
            "blur": dict(_PILLOW_BLUR),
            "flip": {"prob": 0.5},
        }
    )


def moco_v3(size: int = 224, smallest_crop: float = 0.08) -> Preset:
    """MoCo v3 (Chen et al., 2021): BYOL's two unlike views.

    The first is always blurred, the second with probability 0.1 and solarised with 0.2.

    Args:
      size: side of the views in pixels.
      smallest_crop: least area of the crop; 0.2 for ResNet-50, 0.08 for ViT.
    """
    ops = {
        "crop": _pillow_crop(size, smallest_crop),
        "jitter": _pillow_jitter(0.4, 0.4, 0.2, 0.1, prob=0.8),
        "gray": {"prob": 0.2},
        "blur": dict(_PILLOW_BLUR, prob=1.0),
        "solarize": {"prob": 0.0},
        "flip": {"prob": 0.5},
    }
    views: tuple[dict[str, Any], ...] = ({}, {"prob": {"blur": 0.1, "solarize": 0.2}})
    return _preset(ops) | {"views": views}


def moco_cifar(size: int = 32) -> Preset:
    """MoCo's CIFAR-10 demonstration: crop (0.08, 1), flip, jitter 0.8, gray 0.2."""
    return _preset(
        {
            "crop": _pillow_crop(size, 0.08),
            "flip": {"prob": 0.5},
            "jitter": _pillow_jitter(0.4, 0.4, 0.4, 0.1, prob=0.8),
            "gray": {"prob": 0.2},
        }
    )


def supcon(size: int = 32) -> Preset:
    """SupCon (Khosla et al., 2020) on CIFAR: crop (0.2, 1), flip, jitter 0.8, gray 0.2."""
    return _preset(
        {
            "crop": _pillow_crop(size, 0.2),
            "flip": {"prob": 0.5},
            "jitter": _pillow_jitter(0.4, 0.4, 0.4, 0.1, prob=0.8),
            "gray": {"prob": 0.2},
        }
    )


def hierarchical(size: int = 224) -> Preset:
    """HiMulCon (Zhang et al., 2022): crop (0.8, 1), flip, jitter without hue 0.8."""
    return _preset(
        {
            "crop": _pillow_crop(size, 0.8),
            "flip": {"prob": 0.5},
            "jitter": _pillow_jitter(0.4, 0.4, 0.4, 0.0, prob=0.8),
        }
    )


def leave_one_out(
    preset: Preset, factors: Mapping[str, tuple[str, ...]], guarantee_different: bool = False
) -> Preset:
    """The views of LooC (Xiao et al., 2021), of any ops: a query, a key with nothing shared, and a key for each factor.

    View 0 is the query q, view 1 the key k_0, and view i + 1 the key k_i, which repeats what q drew for the ops of the i-th
    factor, coins included. Everything else is drawn anew for each view.

    Args:
      preset: order and ops.
      factors: name -> the ops of that factor, in the order of the heads.
      guarantee_different: each key's draw of the factors that it does not share differs from q's: by chance it may be the same
        (one angle of four), and then pushes away what it should not. Of a factor of several ops the first one differs.

    Raises:
      ValueError: a factor without ops, or with ops that the preset has not.
    """
    for factor, ops in factors.items():
        unknown = [op for op in ops if op not in preset["order"]]
        if unknown or not ops:
            raise ValueError(
                f"factor {factor!r} = {ops}: expected one or more of the ops {preset['order']}"
            )
    views: list[dict[str, dict[str, int]]] = [{}]
    for own in ("", *factors):
        view = {"share": dict.fromkeys(factors[own], 0)} if own else {}
        if guarantee_different and (rest := [ops[0] for f, ops in factors.items() if f != own]):
            view["differ"] = dict.fromkeys(rest, 0)
        views.append(view)
    return preset | {"views": tuple(views)}


LOOC_FAMILIES = {"rotate": ("rotate",), "color": ("jitter", "gray"), "texture": ("texture",)}
"""The paper's augmentations; colour is one family of two ops."""


def looc_factors(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Name -> ops of each factor: one of `LOOC_FAMILIES`, or any op by its name.

    Raises:
      ValueError: a name that is neither, one that is there twice, or two factors that have an op in common.
    """
    families = {name: (name,) for name in OPS} | LOOC_FAMILIES
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        if name not in families:
            near = difflib.get_close_matches(name, families, n=1)
            hint = (
                f"did you mean {near[0]!r}?" if near else f"expected some of {', '.join(families)}"
            )
            raise ValueError(f"there is no factor {name!r}; {hint}")
        if name in found:
            raise ValueError(f"the factor {name!r} is there twice; name it once")
        for other, ops in found.items():
            if common := set(ops) & set(families[name]):
                raise ValueError(
                    f"the factors {other!r} and {name!r} have {min(common)!r} in common; name one of the two"
                )
        found[name] = families[name]
    return found


def looc_op(name: str) -> dict[str, Any]:
    """Fields of an op as a factor: the defaults; of one that draws nothing but its coin, that the coin is fair."""
    return {} if OPS[name]().words else {"prob": 0.5}


def looc(
    size: int = 224,
    shared: tuple[str, ...] = ("rotate", "color"),
    angles: tuple[float, ...] = (0.0, 90.0, 180.0, 270.0),
    upright_flip: bool = False,
    guarantee_different: bool = False,
) -> Preset:
    """LooC (Xiao et al., 2021) on MoCo v2's ops, with rotation, texture and any other op where they are named.

    Views are as `leave_one_out` says.

    Args:
      size: side of the views in pixels.
      shared: factors in the order of the heads, see `looc_factors`: "rotate", "color" (jitter and gray), "texture", or any op
        by its name. One that MoCo v2 does not have comes after the others, as `looc_op` says.
      angles: of the rotation; (90, 180, 270) always turns the image.
      upright_flip: False: rotation comes first, then crop and flip, so that images have to be square. A flip turns a rotation
        by 90 degrees into one by 270. True: crop, flip, then rotation, which every image allows, also with crops from the
        host, and the angle is what one sees.
      guarantee_different: see `leave_one_out`.

    Raises:
      ValueError: as `looc_factors`.
    """
    factors = looc_factors(shared)
    rotate = {"rotate": {"angles": angles}} if "rotate" in shared else {}
    crop = {"crop": _pillow_crop(size, 0.2), "flip": {"prob": 0.5}}
    ops: dict[str, dict[str, Any]] = {
        **({**crop, **rotate} if upright_flip else {**rotate, **crop}),
        **({"texture": {}} if "texture" in shared else {}),
        "jitter": _pillow_jitter(0.4, 0.4, 0.4, 0.1, prob=0.8),
        "gray": {"prob": 0.2},
        "blur": dict(_PILLOW_BLUR),
    }
    named = [name for names in factors.values() for name in names]
    ops |= {name: looc_op(name) for name in named if name not in ops}
    return leave_one_out(_preset(ops), factors, guarantee_different)


def crop_flip(size: int = 224, views: int = 1, smallest_crop: float = 0.08) -> Preset:
    """Crop and flip alone: training of linear probes and fine-tuning."""
    return _preset({"crop": _pillow_crop(size, smallest_crop), "flip": {"prob": 0.5}}, views=views)
