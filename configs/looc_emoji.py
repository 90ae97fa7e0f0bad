"""LooC on the built-in emoji, on the machine at hand; and MoCo with the same augmentations.

    python -m jaxcl.main --config=configs/looc_emoji.py                                  rotation and colour are factors
    python -m jaxcl.main --config=configs/looc_emoji.py:FACTOR[,FACTOR...][,different]
    python -m jaxcl.main --config=configs/looc_emoji.py:moco[,FACTOR...][,same]          all factors are ignored
    python -m jaxcl.probe --workdir=runs/looc_emoji_rotate_color --layer=heads:hidden --eval=knn,linear,rotation,fewshot

FACTOR is rotate (0, 90, 180 or 270 degrees), color (jitter and gray), texture, or any op by its name (blur, solarize, crop, ...);
crop and flip are always there. `different`: what keys do not share with the query is never the same by chance. `same`: MoCo's key
is turned as its query is. The last command is about LooC++: all heads' hidden layers instead of the backbone's h.

Network and images are those of `quickstart`, with BatchNorm and queue as in `moco_emoji`. Of n factors a step costs one pass with
gradient and n + 1 without; the MoCo of the same augmentations one and one.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets

ORDER = ("crop", "flip", "rotate", "texture", "jitter", "gray")
"""The flip comes before the rotation, which it would turn from 90 degrees into 270. Other ops come last."""


def get_config(arg: str = "rotate,color") -> ConfigDict:
    """The experiment; arg is a list of factors and options."""
    options = arg.split(",")
    flags = [option for option in options if option in ("moco", "same", "different")]
    try:
        factors = presets.looc_factors([option for option in options if option not in flags])
    except ValueError as error:
        raise ValueError(f"looc_emoji: {arg!r}: {error} (or moco, same, different)") from error
    twin = "moco" in flags
    for flag, fits, why in (
        (
            "same",
            twin and "rotate" in factors,
            "is about the rotation of MoCo's views; name moco and rotate",
        ),
        ("different", not twin, "is for LooC"),
        ("crop", not twin, "is always among MoCo's augmentations; leave it out"),
        ("flip", not twin, "is always among MoCo's augmentations; leave it out"),
    ):
        if flag in options and not fits:
            raise ValueError(f"looc_emoji: {arg!r}: {flag!r} {why}")
    if len(set(flags)) < len(flags):
        raise ValueError(f"looc_emoji: {arg!r}: name each option once")
    if not (twin or factors):
        raise ValueError(f"looc_emoji: {arg!r}: LooC needs one or more factors; or name moco")

    quickstart = config_lib.load(Path(__file__).with_name("quickstart.py"))
    given = quickstart.views.ops.to_dict()
    named = [op for names in factors.values() for op in names]
    order = tuple(dict.fromkeys(op for op in (*ORDER, *named) if op in ("crop", "flip", *named)))
    preset = {"order": order, "ops": {op: given.get(op) or presets.looc_op(op) for op in order}}
    if twin:
        key = {"share": {"rotate": 0}} if "same" in options else {}
        c = config_lib.with_method(
            quickstart, "moco", preset | {"views": ({}, key)}, temperature=0.2
        )
    else:
        views = presets.leave_one_out(preset, factors, "different" in options)
        c = config_lib.with_method(quickstart, "looc", views, temperature=0.2)
    c.name = "_".join(["looc_emoji", *options])
    c.model.bn_groups = 8
    c.method.bn, c.method.queue_size, c.method.momentum = "shuffle", 1024, 0.99
    c.method.projection.layers = (128, 64)
    c.evaluation.extra = ("rotation", "fewshot")
    return c
