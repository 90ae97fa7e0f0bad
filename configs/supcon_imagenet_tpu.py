"""SupCon on ImageNet: ResNet-50, batch 6144, on a TPU pod (Khosla et al., NeurIPS 2020, Google's code).

    python -m jaxcl.main --config=configs/supcon_imagenet_tpu.py --multihost --workdir=gs://BUCKET/supcon     (on every host)
    python -m jaxcl.main --config=configs/supcon_imagenet_tpu.py:resnet200 ...
    python -m jaxcl.probe --workdir=gs://BUCKET/supcon --eval=sgd --recipe=supcon_imagenet --train=train      (the second stage)

Expected (the paper's, not measured here): ResNet-50 78.7 % after 350 epochs, with L_in 67.4 %; ResNet-200 81.4 % with a batch of 4096
and 700 epochs.

As in the released script: LARS with learning rate 0.4 * B / 256 after 12 epochs of warm-up, weight decay 1e-3 of everything but
BatchNorm, tau 0.1, the loss times tau, and a head of one linear layer without bias. The script normalises h before the head;
with this head, and a z that is normalised, that changes nothing. Images are scaled to [-1, 1].

Not as in it: its augmentation is AutoAugment (ResNet-101 and 200: stacked RandAugment), which jaxcl does not have; here it is
SimCLR's. In the second stage, 90 epochs of RMSProp on normalised h with label smoothing 0.05 and the rate times 0.97 every half epoch
after 12 epochs of warm-up, AutoAugment gives way to crops and flips. The joint probe is on h as it is, without smoothing.
The data is prepared as for `simclr_tpu`.
"""

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets


def get_config(arg: str = "resnet50") -> ConfigDict:
    """The experiment; arg is resnet50, resnet101 or resnet200."""
    c = config_lib.base("supcon", presets.simclr(224), temperature=0.1, base_temperature=1.0)
    c.name = "supcon_imagenet_tpu"
    c.batch_size, c.epochs = (4096, 700.0) if arg == "resnet200" else (6144, 350.0)
    c.data.name, c.data.dataset = "tfds", "imagenet2012"
    c.data.splits = {"train": "train", "gallery": "train[:5%]", "val": "validation"}
    c.data.image_size, c.data.crop, c.data.workers = 224, "host", 16
    c.data.on_bad = "skip"
    c.model.name, c.model.dtype = arg, "bfloat16"
    c.model.mean, c.model.std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    c.method.projection.layers, c.method.projection.bias = (128,), False
    c.method.projection.init_std = 0.01
    c.method.classes = 1000
    c.optim.name, c.optim.base_lr, c.optim.scaling = "lars", 0.4, "linear"
    c.optim.weight_decay, c.optim.warmup_epochs = 1e-3, 12.0
    c.optim.method_lr = 0.25  # the joint probe: 0.1 * B / 256, as in SimCLR's linear evaluation
    c.evaluation.every, c.evaluation.gallery, c.evaluation.validation = 2080, "gallery", "val"
    c.evaluation.ks = (20, 200)
    c.run.log_every, c.run.checkpoint_every = 50, 1000
    return c
