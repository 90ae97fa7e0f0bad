"""SimCLR v2 on ImageNet (Chen et al., NeurIPS 2020): a deeper head, selective kernels, 800 epochs.

    python -m jaxcl.main --config=configs/simclr_v2_tpu.py --multihost --workdir=gs://BUCKET/simclr_v2      (on every host)
    python -m jaxcl.main --config=configs/simclr_v2_tpu.py:resnet152,width=3,sk ...
    python -m jaxcl.probe --workdir=gs://BUCKET/simclr_v2 --eval=sgd --train=train --batch_size=4096 --no-baselines

Expected of the last (the authors' README, not measured here), linear accuracy: ResNet-50 71.7 %, ResNet-152 3x with selective
kernels 79.8 %. It learns from all of the training images; without `--train` a probe has the 5 % of the online kNN. Without their
momentum memory, which is no part of the released code, an author reports 71.1 % for ResNet-50.

The head has three layers of the encoder's width; fine-tuning starts from its first layer (`python -m jaxcl.probe --eval=finetune
--layer=head:1 --recipe=v2 --train=train --labels=0.01,0.1 --batch_size=1024`). Learning rate 0.1 * sqrt(B), warm-up 5 % of the
training, as the author states in the repository's discussions; weight decay 1e-4 as the README's command; brightness multiplies,
unlike in version 1. The data is prepared as for `simclr_tpu`.
"""

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets


def get_config(arg: str = "resnet50") -> ConfigDict:
    """The experiment; arg is "<backbone>[,width=<n>][,sk]"."""
    name, *options = arg.split(",")
    c = config_lib.base("simclr", presets.simclr(224), temperature=0.1)
    c.name = "simclr_v2_tpu"
    c.batch_size = 4096
    c.epochs = 800.0
    c.data.name, c.data.dataset = "tfds", "imagenet2012"
    c.data.splits = {"train": "train", "gallery": "train[:5%]", "val": "validation"}
    c.data.image_size, c.data.crop, c.data.workers = 224, "host", 16
    c.data.on_bad = "skip"
    c.model.name, c.model.dtype = name, "bfloat16"
    for option in options:
        if option == "sk":
            c.model.selective_kernels, c.model.stem = True, "resnet_d"
        elif option.startswith("width="):
            c.model.width = float(option.removeprefix("width="))
        else:
            raise ValueError(f"simclr_v2_tpu: option {option!r}: expected width=<n> or sk")
    c.method.projection.layers = (-1, -1, 128)
    c.optim.name, c.optim.base_lr, c.optim.scaling = "lars", 0.1, "sqrt"
    c.optim.weight_decay, c.optim.warmup_epochs = 1e-4, 40.0
    c.evaluation.every, c.evaluation.gallery, c.evaluation.validation = 3120, "gallery", "val"
    c.evaluation.ks = (20, 200)
    c.run.log_every, c.run.checkpoint_every = 50, 1000
    return c
