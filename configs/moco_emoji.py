"""MoCo on the built-in emoji, on the machine at hand, in less than ten minutes on two CPU cores.

    python -m jaxcl.main --config=configs/moco_emoji.py                           version 2: a queue, keys shuffled over 8 groups
    python -m jaxcl.main --config=configs/moco_emoji.py:MECHANISM[,BN][,symmetric]
    python -m jaxcl.main --config=configs/moco_emoji.py:v1                        or v3, or v3,vit (slower)

MECHANISM is queue, batch, end_to_end or memory_bank (which encodes no keys), BN is shuffle, groups, global or ema (global without
groups of BatchNorm, ema without groups for the keys). `v1` is version 1 in small: a linear head and tau 0.07. `v3` is version 3: the
batch's keys, a predictor, both directions, global BatchNorm and a rising momentum; with `vit` its encoder is a vision transformer,
half as wide as ViT-T, with fixed positions and a patch projection that stays at its random values. What a batch offers are 127
negatives, so that `end_to_end` and `moco_emoji.py:queue --config.method.queue_size=127` have dictionaries of one size.

Everything but the method, and the encoder of `vit`, is the quickstart's, which is SimCLR: they can be compared. So every version has
the quickstart's AdamW and its views without blur. What the papers have: SGD, for version 3 LARS and for ViT AdamW, and blur from
version 2 on.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxcl import config as config_lib

MECHANISMS = ("queue", "batch", "end_to_end", "memory_bank")
BNS = ("shuffle", "groups", "global", "ema")
OPTIONS = (*MECHANISMS, *BNS, "symmetric", "v1", "v3", "vit")


def get_config(arg: str = "queue,shuffle") -> ConfigDict:
    """The experiment; arg is a list of what differs from "queue,shuffle"."""
    options = arg.split(",")
    for option in options:
        if option not in OPTIONS:
            raise ValueError(
                f"moco_emoji: option {option!r}: expected some of {', '.join(OPTIONS)}"
            )
    if "vit" in options and "v3" not in options:
        raise ValueError("moco_emoji: option 'vit' is for version 3: expected v3,vit")
    if {"v1", "v3"} <= set(options):
        raise ValueError("moco_emoji: options 'v1' and 'v3': expected one of them")
    if "v3" in options:
        options += ["batch", "global", "symmetric"]
    mechanism = ([o for o in options if o in MECHANISMS] or ["queue"])[-1]
    bn = ([o for o in options if o in BNS] or ["shuffle"])[-1]

    quickstart = config_lib.load(Path(__file__).with_name("quickstart.py"))
    views = quickstart.views.to_dict()
    if mechanism == "memory_bank":
        views["views"] = ({},)
    c = config_lib.with_method(quickstart, "moco", views, temperature=0.2)
    c.name = "moco_emoji_" + "_".join(arg.split(","))
    c.model.bn_groups = 1 if bn == "global" else 8
    c.method.mechanism, c.method.symmetric = mechanism, "symmetric" in options
    if mechanism in ("queue", "memory_bank"):
        c.method.queue_size = 1024
    if mechanism in ("queue", "batch"):
        c.method.momentum = 0.99
    if mechanism != "memory_bank":
        c.method.bn = bn
    c.method.projection.layers = (128, 64)
    if "v1" in options:
        c.method.projection.layers, c.method.temperature = (64,), 0.07
    if "v3" in options:
        for head in (c.method.projection, c.method.prediction):
            head.layers, head.batch_norm, head.bias = (128, 64), True, False
        c.method.projection.last_bn_scale = False
        c.method.prediction.last_batch_norm = False
        c.method.scale, c.method.scale_by_temperature = 2.0, True
        c.method.momentum_schedule = "cosine"
    if "vit" in options:
        c.model.name, c.model.width, c.model.stem = "vit_t4", 0.5, "fixed_patches"
        c.optim.frozen = (r"^backbone/patches/",)
        c.optim.excluded = (r"(^|/)(scale|bias|class_token)$",)
    return c
