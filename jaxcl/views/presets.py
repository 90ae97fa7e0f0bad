"""The published view programs, as plain dicts for `ViewsConfig(**preset)`.

Probabilities and strengths are those of the released code. Normalisation by mean and standard
deviation, where a method has it, belongs to the model.
"""

from typing import Any

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


def looc(size: int = 224, shared: tuple[str, ...] = ("rotate", "color")) -> Preset:
    """LooC (Xiao et al., 2021): a query, a key with nothing shared, and a key for each of `shared`.

    View 0 is the query q, view 1 the key k_0, and view i + 1 the key k_i, which repeats what q drew
    for the i-th family; crop, flip and blur are always drawn anew. Rotation is by 0, 90, 180 or 270
    degrees and comes before the crop, so that images have to be square.

    Args:
      size: side of the views in pixels.
      shared: families in the order of the heads: "rotate", "color" (jitter and gray).

    Raises:
      ValueError: an unknown family.
    """
    families = {"rotate": ("rotate",), "color": ("jitter", "gray")}
    for family in shared:
        if family not in families:
            raise ValueError(
                f"shared: unknown family {family!r}; expected some of {tuple(families)}"
            )
    ops: dict[str, dict[str, Any]] = {
        "crop": _pillow_crop(size, 0.2),
        "flip": {"prob": 0.5},
        "jitter": _pillow_jitter(0.4, 0.4, 0.4, 0.1, prob=0.8),
        "gray": {"prob": 0.2},
        "blur": dict(_PILLOW_BLUR),
    }
    if "rotate" in shared:
        ops = {"rotate": {"angles": (0.0, 90.0, 180.0, 270.0)}, **ops}
    keys = tuple({"share": dict.fromkeys(families[family], 0)} for family in shared)
    return _preset(ops) | {"views": ({}, {}, *keys)}


def crop_flip(size: int = 224, views: int = 1, smallest_crop: float = 0.08) -> Preset:
    """Crop and flip alone: training of linear probes and fine-tuning."""
    return _preset({"crop": _pillow_crop(size, smallest_crop), "flip": {"prob": 0.5}}, views=views)
