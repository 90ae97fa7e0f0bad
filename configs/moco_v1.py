"""MoCo v1 on ImageNet: ResNet-50, batch 256, a queue of 65,536 keys (He et al., CVPR 2020).

    python -m jaxcl.main --config=configs/moco_v1.py --config.data.path=TFDS_DIR [--multihost]
    python -m jaxcl.probe --workdir=runs/moco_v1 --eval=sgd --recipe=moco --train=train

Expected of the probe (the paper's, not measured here): linear accuracy 60.6 % after 200 epochs. Its recipe is the official one:
learning rate 30 for a batch of 256, momentum 0.9, no weight decay, 100 epochs, the rate divided by ten at 60 and 80.

The paper's machine has 8 devices with 32 images each; `model.bn_groups=8` is that machine on any number of devices, and the keys
are shuffled over these groups. Weight decay is on all parameters, BatchNorm's and biases too. The queue begins empty
(`method.fill="noise"` begins with random keys, as the official code). The data is prepared as for `simclr_tpu`.

Out of scope: the paper's transfer to detection and segmentation. jaxcl scores encoders on whole images only.
"""

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets


def get_config(arg: str = "200") -> ConfigDict:
    """The experiment; arg is the number of epochs, of which the rate falls after 60 % and 80 %."""
    c = config_lib.base("moco", presets.moco_v1(224), temperature=0.07)
    c.name = "moco_v1"
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
    c.method.projection.layers = (128,)
    c.optim.name, c.optim.base_lr, c.optim.scaling = "sgd", 0.03, "linear"
    c.optim.warmup_epochs, c.optim.schedule = 0.0, "step"
    c.optim.boundaries = (0.6 * c.epochs, 0.8 * c.epochs)
    c.optim.weight_decay, c.optim.decayed, c.optim.excluded = 1e-4, (".*",), ()
    c.evaluation.every, c.evaluation.gallery, c.evaluation.validation = 25000, "gallery", "val"
    c.evaluation.ks = (20, 200)
    c.run.log_every, c.run.checkpoint_every = 100, 5000
    return c
