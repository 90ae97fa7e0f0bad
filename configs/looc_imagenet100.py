"""LooC on ImageNet-100 (Xiao et al., ICLR 2021), and the MoCo that it is compared with.

    python -m jaxcl.main --config=configs/looc_imagenet100.py --config.data.path=DIR                       (colour and rotation)
    python -m jaxcl.main --config=configs/looc_imagenet100.py:FACTOR[,FACTOR...][,always][,different] ...
    python -m jaxcl.main --config=configs/looc_imagenet100.py:moco[,FACTOR...][,always][,same] ...
    python -m jaxcl.probe --workdir=runs/looc_imagenet100_color_rotation --eval=sgd,rotation,fewshot,corruption --recipe=looc

FACTOR is color (jitter and gray), rotation, texture, or any op by its name (blur, solarize, crop, ...); crop, flip, the distortion of
colours and blur are always among the augmentations, as in MoCo v2. `always`: angles of 90, 180 and 270 degrees without 0.
`different`: what keys do not share with the query is never the same by chance (the host, which draws the crops, has no such
promise). `moco` is MoCo v2 with the same augmentations, `same` turns its key as its query is.

DIR/train and DIR/val hold a folder for each of the 100 classes; or take them out of all of ImageNet, with the list that was
published with "Contrastive Multiview Coding" (one WordNet id a line), which the probe does too:

    ... --config.data.name=imagenet --config.data.path=IMAGENET --config.data.classes_file=imagenet100.txt

Transfer, with the frozen encoder of W=runs/looc_imagenet100_color_rotation on copies as they were published:

    python -m jaxcl.probe --workdir=$W --eval=sgd --recipe=looc --data=inaturalist:DIR --set=data.dataset=2019 --test=val
    python -m jaxcl.probe --workdir=$W --eval=sgd --recipe=looc --data=cub:DIR
    python -m jaxcl.probe --workdir=$W --eval=fewshot --data=flowers:DIR --train=trainval
    python -m jaxcl.probe --workdir=$W --eval=corruption

iNaturalist 2019 is iNat-1k. `train` of Flowers-102 has 10 images of a flower, which leave nothing to draw for 10 shots; `trainval`
has 20. The last command is of the run's own validation images under corruptions.

What differs from what is known of the paper and of the one re-implementation: angles are 0, 90, 180 and 270 degrees unless `always`
is given; crop and flip come before the rotation, which may be of any image then, with crops made on the host, and whose angle is
what is seen (there: rotation, crop, flip); few-shot is by logistic regression (L-BFGS, features of length 1, C = 1; there: Adam at
0.03, 250 iterations); texture randomisation is a stand-in (`views.texture`). The settings of the optimizer are MoCo v2's.

From memory of the paper, neither checked nor measured here (top-1 of the 100 classes; accuracy of the angle): MoCo 81.0 and 61.1,
`moco,rotation` 79.4 and 43.3, with `same` 78.1 and 45.5, `rotation` 80.2 and 65.2.
"""

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets

FLAGS = ("moco", "same", "always", "different")
NAMES = {"rotation": "rotate"}
"""Of factors, where the paper has another one than the op."""
MOCO_V2 = tuple(presets.moco_v2()["ops"])
"""Always among the augmentations, and so nothing to add to a MoCo."""


def get_config(arg: str = "color,rotation") -> ConfigDict:
    """The experiment; arg is a list of factors and options."""
    options = arg.split(",")
    for option in options:
        if options.count(option) > 1:
            raise ValueError(f"looc_imagenet100: {arg!r}: {option!r} is there twice; name it once")
    factors = [NAMES.get(option, option) for option in options if option not in FLAGS]
    twin = "moco" in options
    try:
        ops = [op for names in presets.looc_factors(factors).values() for op in names]
    except ValueError as error:
        raise ValueError(
            f"looc_imagenet100: {arg!r}: {error} (or rotation, {', '.join(FLAGS)})"
        ) from error
    of_moco = "is always among MoCo's augmentations; leave it out"
    for option, fits, why in (
        (
            "same",
            twin and "rotate" in ops,
            "is about the rotation of MoCo's views; name moco and rotation",
        ),
        ("always", "rotate" in ops, "is about the angles of the rotation; name rotation"),
        ("different", not twin, "is for LooC"),
        (
            "different",
            "crop" not in ops,
            "with the factor 'crop': crops are made on the host, which draws each without regard to the others",
        ),
        *((name, not twin, of_moco) for name in ("color", *MOCO_V2)),
    ):
        if option in options and not fits:
            raise ValueError(f"looc_imagenet100: {arg!r}: {option!r} {why}")
    if not (twin or factors):
        raise ValueError(f"looc_imagenet100: {arg!r}: LooC needs one or more factors; or name moco")
    views = presets.looc(
        224,
        tuple(factors),
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
