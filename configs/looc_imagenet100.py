"""LooC on ImageNet-100 (Xiao et al., ICLR 2021), and the MoCo that it is compared with.

    python -m jaxcl.main --config=configs/looc_imagenet100.py --config.data.path=DIR                       (colour and rotation)
    python -m jaxcl.main --config=configs/looc_imagenet100.py:FACTOR[,FACTOR...][,always][,different] ...
    python -m jaxcl.main --config=configs/looc_imagenet100.py:moco[,rotation][,texture][,same] ...
    python -m jaxcl.probe --workdir=runs/looc_imagenet100_color_rotation --eval=sgd,rotation,fewshot,corruption --epochs=200

FACTOR is color, rotation or texture; the distortion of colours is always among the augmentations, as in MoCo v2. `always`: angles
of 90, 180 and 270 degrees without 0. `different`: what keys do not share with the query is never the same by chance. `moco` is
MoCo v2 with the same augmentations, `same` turns its key as its query is.

DIR/train and DIR/val hold a folder for each of the 100 classes. Texture randomisation is a stand-in (`views.texture`).

From memory of the paper, neither checked nor measured here (top-1 of the 100 classes; accuracy of the angle): MoCo 81.0 and 61.1,
`moco,rotation` 79.4 and 43.3, with `same` 78.1 and 45.5, `rotation` 80.2 and 65.2. The settings of the optimizer are MoCo v2's.
"""

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets

FACTORS = {"color": "color", "rotation": "rotate", "texture": "texture"}
OPTIONS = ("moco", *FACTORS, "same", "always", "different")


def get_config(arg: str = "color,rotation") -> ConfigDict:
    """The experiment; arg is a list of factors and options."""
    options = arg.split(",")
    for option in options:
        if option not in OPTIONS:
            raise ValueError(
                f"looc_imagenet100: option {option!r}: expected some of {', '.join(OPTIONS)}"
            )
    twin = "moco" in options
    if "same" in options and not (twin and "rotation" in options):
        raise ValueError(
            f"looc_imagenet100: {arg!r}: 'same' is about the rotation of MoCo's views; name moco and rotation"
        )
    views = presets.looc(
        224,
        tuple(FACTORS[option] for option in options if option in FACTORS),
        angles=(90.0, 180.0, 270.0) if "always" in options else (0.0, 90.0, 180.0, 270.0),
        upright_flip=True,  # crops are made on the host, before the rotation
        guarantee_different="different" in options,
    )
    if twin:
        views["views"] = ({}, {"share": {"rotate": 0}} if "same" in options else {})
    c = config_lib.base("moco" if twin else "looc", views, temperature=0.2)
    c.name = "_".join(["looc_imagenet100", *options])
    c.batch_size = 256
    c.epochs = 500.0
    c.data.name, c.data.path = "folder", "imagenet100"
    c.data.splits = {"train": "train", "val": "val"}
    c.data.image_size, c.data.crop, c.data.workers = 224, "host", 16
    c.data.on_bad = "skip"
    c.model.name, c.model.stem, c.model.zero_init_residual = "resnet50", "imagenet", False
    c.model.mean, c.model.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    c.model.bn_groups = 8
    c.method.queue_size, c.method.momentum, c.method.bn = 16384, 0.999, "shuffle"
    c.method.projection.layers = (2048, 128)
    c.optim.name, c.optim.base_lr, c.optim.scaling = "sgd", 0.03, "linear"
    c.optim.warmup_epochs, c.optim.schedule, c.optim.per_epoch = 0.0, "cosine", True
    c.optim.weight_decay, c.optim.decayed, c.optim.excluded = 1e-4, (".*",), ()
    c.evaluation.every, c.evaluation.gallery, c.evaluation.validation = 10000, "train", "val"
    c.evaluation.ks = (20, 200)
    c.run.log_every, c.run.checkpoint_every = 100, 5000
    return c
