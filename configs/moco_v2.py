"""MoCo v2 on ImageNet: v1 with a hidden layer in the head, blur, and a cosine schedule (Chen et al., 2020).

    python -m jaxcl.main --config=configs/moco_v2.py --config.data.path=TFDS_DIR [--multihost]
    python -m jaxcl.probe --workdir=runs/moco_v2 --eval=sgd --recipe=moco --train=train

Expected of the probe (the paper's, not measured here): linear accuracy 67.5 % after 200 epochs, 71.1 % after 800
(`moco_v2.py:800`). The learning rate changes once an epoch, as in the official code. The data is prepared as for `simclr_tpu`.

Out of scope: the paper's transfer to detection. jaxcl scores encoders on whole images only.
"""

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets


def get_config(arg: str = "200") -> ConfigDict:
    """The experiment; arg is the number of epochs."""
    c = config_lib.base("moco", presets.moco_v2(224), temperature=0.2)
    c.name = "moco_v2"
    c.batch_size = 256
    c.epochs = float(arg)
    c.data.name, c.data.dataset = "tfds", "imagenet2012"
    c.data.splits = {"train": "train", "gallery": "train[:5%]", "val": "validation"}
    c.data.image_size, c.data.crop, c.data.workers = 224, "host", 16
    c.data.on_bad = "skip"
    c.model.name, c.model.stem, c.model.zero_init_residual = "resnet50", "imagenet", False
    c.model.mean, c.model.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    c.model.bn_groups = 8
    c.method.queue_size, c.method.momentum, c.method.bn = 65536, 0.999, "shuffle"
    c.method.projection.layers = (2048, 128)
    c.optim.name, c.optim.base_lr, c.optim.scaling = "sgd", 0.03, "linear"
    c.optim.warmup_epochs, c.optim.schedule, c.optim.per_epoch = 0.0, "cosine", True
    c.optim.weight_decay, c.optim.decayed, c.optim.excluded = 1e-4, (".*",), ()
    c.evaluation.every, c.evaluation.gallery, c.evaluation.validation = 25000, "gallery", "val"
    c.evaluation.ks = (20, 200)
    c.run.log_every, c.run.checkpoint_every = 100, 5000
    return c
