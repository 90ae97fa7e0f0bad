"""SupCon with a queue of 8192 keys on ImageNet: ResNet-50, batch 256 (Khosla et al., NeurIPS 2020, section 4.4).

    python -m jaxcl.main --config=configs/supcon_moco.py --workdir=runs/supcon_moco
    python -m jaxcl.main --config=configs/supcon_moco.py:emoji                             (built-in data, minutes on two CPU cores)
    python -m jaxcl.probe --workdir=runs/supcon_moco --eval=sgd --recipe=supcon_imagenet --train=train              (the second stage)

Expected (the paper's, not measured here): 79.1 % with a memory of 8192, a batch of 256 and SGD on 8 GPUs, where the batch of 6144
without memory has 78.7 %.

That code was not released, and the paper gives no more settings. The others are those of `moco_v2` (momentum .999, shuffled
BatchNorm of 8 groups, SGD with learning rate 0.03, its augmentation, 200 epochs) and of SupCon (tau 0.1, L_out). The keys of the
batch are candidates beside those of the queue (`method.in_batch`). The second stage is that of `supcon_imagenet_tpu`.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets


def get_config(arg: str = "imagenet") -> ConfigDict:
    """The experiment; arg is imagenet or emoji."""
    if arg not in ("imagenet", "emoji"):
        raise ValueError(f"supcon_moco:{arg}: expected imagenet or emoji after the colon")
    c = imagenet() if arg == "imagenet" else emoji()
    c.name = "supcon_moco" + ("" if arg == "imagenet" else "_emoji")
    return c


def imagenet() -> ConfigDict:
    """ImageNet, eight GPUs or any other devices."""
    c = config_lib.base("supcon_moco", presets.moco_v2(224), classes=1000)
    c.batch_size, c.epochs = 256, 200.0
    c.data.name, c.data.dataset = "tfds", "imagenet2012"
    c.data.splits = {"train": "train", "gallery": "train[:5%]", "val": "validation"}
    c.data.image_size, c.data.crop, c.data.workers = 224, "host", 16
    c.data.on_bad = "skip"
    c.model.name, c.model.bn_groups, c.model.zero_init_residual = "resnet50", 8, False
    c.model.mean, c.model.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    c.optim.name, c.optim.base_lr, c.optim.scaling = "sgd", 0.03, "linear"
    c.optim.weight_decay, c.optim.decayed, c.optim.excluded = 1e-4, (".*",), ()
    c.optim.warmup_epochs, c.optim.per_epoch = 0.0, True
    c.optim.method_lr = 3.0  # the joint probe: 0.1 * B / 256, as in SimCLR's linear evaluation
    c.evaluation.every, c.evaluation.gallery, c.evaluation.validation = 50_040, "gallery", "val"
    c.evaluation.ks = (20, 200)
    c.run.log_every, c.run.checkpoint_every = 50, 5000
    return c


def emoji() -> ConfigDict:
    """The subcategories of the built-in emoji; all but the queue and BatchNorm's groups is as in `supcon_emoji`."""
    quickstart = config_lib.load(Path(__file__).with_name("quickstart.py"))
    c = config_lib.with_method(
        quickstart, "supcon_moco", level="subcategory", queue_size=1024, momentum=0.99
    )
    c.model.bn_groups = 8
    c.method.projection.layers = (128, 64)
    return c
