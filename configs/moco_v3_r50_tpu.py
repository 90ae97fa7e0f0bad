"""MoCo v3 on ImageNet: ResNet-50, batch 4096, on a TPU pod (Chen et al., ICCV 2021).

    python -m jaxcl.main --config=configs/moco_v3_r50_tpu.py --multihost --workdir=gs://BUCKET/moco_v3      (on every host)
    python -m jaxcl.main --config=configs/moco_v3_r50_tpu.py:1000 ...                                       (1000 epochs)
    python -m jaxcl.probe --workdir=gs://BUCKET/moco_v3 --eval=sgd --recipe=moco_v3 --train=train

Expected of the probe (the authors' README, not measured here): linear accuracy 68.9 % after 100 epochs, 72.8 % after 300, 74.6 %
after 1000.

No queue: the negatives are the batch's other keys. BatchNorm is global, the loss the sum of both directions times 2 tau, the key
encoder's momentum rises to 1 along a cosine. LARS with the learning rate outside its momentum; the rate, the momentum and the
weight decay depend on the length as in the README. The data is prepared as for `simclr_tpu`.
"""

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets


def get_config(arg: str = "100") -> ConfigDict:
    """The experiment; arg is the number of epochs."""
    c = config_lib.base("moco", presets.moco_v3(224, smallest_crop=0.2), temperature=1.0)
    c.name = "moco_v3_r50_tpu"
    c.batch_size = 4096
    c.epochs = float(arg)
    c.data.name, c.data.dataset = "tfds", "imagenet2012"
    c.data.splits = {"train": "train", "gallery": "train[:5%]", "val": "validation"}
    c.data.image_size, c.data.crop, c.data.workers = 224, "host", 16
    c.data.on_bad = "skip"
    c.model.name, c.model.stem, c.model.dtype = "resnet50", "imagenet", "bfloat16"
    c.model.mean, c.model.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    c.method.mechanism, c.method.symmetric, c.method.bn = "batch", True, "global"
    c.method.scale, c.method.scale_by_temperature = 2.0, True
    c.method.momentum = 0.996 if c.epochs >= 1000 else 0.99
    c.method.momentum_schedule = "cosine"
    for head in (c.method.projection, c.method.prediction):
        head.layers, head.batch_norm, head.bias = (4096, 256), True, False
    c.method.projection.last_bn_scale = False
    c.method.prediction.last_batch_norm = False
    c.optim.name, c.optim.momentum_of = "lars", "gradient"
    c.optim.base_lr, c.optim.scaling = 0.6 if c.epochs <= 100 else 0.3, "linear"
    c.optim.weight_decay = 1.5e-6 if c.epochs >= 1000 else 1e-6
    c.optim.warmup_epochs = 10.0
    c.evaluation.every, c.evaluation.gallery, c.evaluation.validation = 3120, "gallery", "val"
    c.evaluation.ks = (20, 200)
    c.run.log_every, c.run.checkpoint_every = 50, 1000
    return c
