"""MoCo v3 on ImageNet with a vision transformer: ViT-S/16 or ViT-B/16, batch 4096, on a TPU pod (Chen et al., ICCV 2021).

    python -m jaxcl.main --config=configs/moco_v3_vit_tpu.py --multihost --workdir=gs://BUCKET/moco_v3_vit      (on every host)
    python -m jaxcl.main --config=configs/moco_v3_vit_tpu.py:vit_b16 ...
    python -m jaxcl.probe --workdir=gs://BUCKET/moco_v3_vit --eval=sgd --recipe=moco_v3 --lr=3 --train=train

Expected of the probe (the authors' README, not measured here) after 300 epochs: linear accuracy 73.2 % for ViT-S, 76.7 % for ViT-B.

The patch projection stays at its random values, which keeps the training stable: no gradient reaches it, and `optim.frozen`
keeps weight decay from it, which is on all other parameters. The data is prepared as for `simclr_tpu`.
"""

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets


def get_config(arg: str = "vit_s16") -> ConfigDict:
    """The experiment; arg is the backbone."""
    c = config_lib.base("moco", presets.moco_v3(224), temperature=0.2)
    c.name = "moco_v3_vit_tpu"
    c.batch_size = 4096
    c.epochs = 300.0
    c.data.name, c.data.dataset = "tfds", "imagenet2012"
    c.data.splits = {"train": "train", "gallery": "train[:5%]", "val": "validation"}
    c.data.image_size, c.data.crop, c.data.workers = 224, "host", 16
    c.data.on_bad = "skip"
    c.model.name, c.model.stem, c.model.dtype = arg, "fixed_patches", "bfloat16"
    c.model.mean, c.model.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    c.method.mechanism, c.method.symmetric, c.method.bn = "batch", True, "global"
    c.method.scale, c.method.scale_by_temperature = 2.0, True
    c.method.momentum, c.method.momentum_schedule = 0.99, "cosine"
    for head in (c.method.projection, c.method.prediction):
        head.batch_norm, head.bias, head.last_bn_scale = True, False, False
    c.method.projection.layers = (4096, 4096, 256)
    c.method.prediction.layers = (4096, 256)
    c.optim.name, c.optim.base_lr, c.optim.scaling = "adamw", 1.5e-4, "linear"
    c.optim.weight_decay, c.optim.decayed, c.optim.excluded = 0.1, (".*",), ()
    c.optim.frozen = (r"^backbone/patches/",)
    c.optim.warmup_epochs = 40.0
    c.evaluation.every, c.evaluation.gallery, c.evaluation.validation = 3120, "gallery", "val"
    c.evaluation.ks = (20, 200)
    c.run.log_every, c.run.checkpoint_every = 50, 1000
    return c
