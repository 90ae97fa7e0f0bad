"""Cross-entropy, the baseline of supervised contrastive learning, on the data of the configs that it is compared with.

    python -m jaxcl.main --config=configs/supervised.py:emoji            (beside quickstart and supcon_emoji; ten minutes on two cores)
    python -m jaxcl.main --config=configs/supervised.py:cifar10 --config.data.path=TFDS_DIR
    python -m jaxcl.main --config=configs/supervised.py:cifar100 --config.data.path=TFDS_DIR
    python -m jaxcl.main --config=configs/supervised.py:imagenet --multihost --workdir=gs://BUCKET/supervised
    python -m jaxcl.probe --workdir=runs/supervised_cifar10 --eval=classifier                   (its own classifier on test images)

Expected of its own classifier (Khosla et al., NeurIPS 2020, not measured here): CIFAR-10 95.0 %, CIFAR-100 75.3 %, ImageNet 77.6 %
(their run with AutoAugment, which jaxcl does not have; here the augmentation is SimCLR's). On CIFAR a tenth of the training images
is held out here to choose on, the paper trains on all: `--config.data.splits.train=train --config.run.keep_best=False`.

CIFAR: the authors' PyTorch repository, ResNet-50, SGD with learning rate 0.8 for a batch of 1024 on a cosine, 500 epochs, crops and
flips. ImageNet: Google's script, Nesterov momentum with 0.1 * B / 256, batch 6144, 200 epochs, weight decay 1e-4 of everything but
BatchNorm, label smoothing 0.05. Both see one view of an image, half of SupCon's compute a step. Emoji: encoder, optimizer, views (two)
and steps of `supcon_emoji`, so that the loss alone differs.

`accuracy` in the log is the classifier's on training batches; the table at the end is of kNN and linear probes on h, as for
every other method, and not of the classifier.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets

CIFAR = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


def get_config(arg: str = "emoji") -> ConfigDict:
    """The experiment; arg is the data: emoji, cifar10, cifar100 or imagenet."""
    if arg in CIFAR:
        c = cifar(arg)
    elif arg == "imagenet":
        c = imagenet()
    elif arg == "emoji":
        c = emoji()
    else:
        raise ValueError(
            f"supervised:{arg}: expected emoji, cifar10, cifar100 or imagenet after the colon"
        )
    c.name = f"supervised_{arg}"
    return c


def emoji() -> ConfigDict:
    """The built-in emoji; `--config.method.level=category` learns the coarser labels."""
    quickstart = config_lib.load(Path(__file__).with_name("quickstart.py"))
    return config_lib.with_method(quickstart, "supervised", level="subcategory")


def cifar(dataset: str) -> ConfigDict:
    """CIFAR-10 or CIFAR-100."""
    c = config_lib.base("supervised", presets.crop_flip(32, smallest_crop=0.2))
    c.batch_size = 1024
    c.epochs = 500.0
    c.data.name, c.data.dataset = "tfds", dataset
    c.data.splits = {
        "train": "train[:90%]",
        "val": "train[90%:]",
        "all": "train",
        "test": "test",
    }
    c.model.name, c.model.stem, c.model.zero_init_residual = "resnet50", "cifar", False
    c.model.mean, c.model.std = CIFAR[dataset]
    c.method.classes = int(dataset.removeprefix("cifar"))
    c.optim.name, c.optim.base_lr, c.optim.scaling = "sgd", 0.8, "none"
    c.optim.weight_decay, c.optim.decayed, c.optim.excluded = 1e-4, (".*",), ()
    c.optim.warmup_epochs, c.optim.warmup_init = 10.0, 0.0125
    c.optim.schedule, c.optim.end = "epoch_cosine", 1e-3
    c.evaluation.every = 860
    c.evaluation.gallery, c.evaluation.validation = "train", "val"
    c.evaluation.test, c.evaluation.test_gallery = "test", "all"
    c.evaluation.ks = (20, 200)
    return c


def imagenet() -> ConfigDict:
    """ImageNet, on a TPU pod."""
    views = presets.simclr(224)
    c = config_lib.base("supervised", {**views, "views": ({},)}, smoothing=0.05, classes=1000)
    c.batch_size, c.epochs = 6144, 200.0
    c.data.name, c.data.dataset = "tfds", "imagenet2012"
    c.data.splits = {"train": "train", "gallery": "train[:5%]", "val": "validation"}
    c.data.image_size, c.data.crop, c.data.workers = 224, "host", 16
    c.data.on_bad = "skip"
    c.model.name, c.model.dtype = "resnet50", "bfloat16"
    c.model.mean, c.model.std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    c.optim.name, c.optim.base_lr, c.optim.scaling, c.optim.nesterov = "sgd", 0.1, "linear", True
    c.optim.weight_decay, c.optim.warmup_epochs = 1e-4, 12.0
    c.optim.decayed = (r"(^|/)kernel$", r"^head_classifier/dense1/bias$")
    c.optim.excluded = (r"(^|/)scale$", r"^backbone/.*/bias$")
    c.evaluation.every, c.evaluation.gallery, c.evaluation.validation = 2080, "gallery", "val"
    c.evaluation.ks = (20, 200)
    c.run.log_every, c.run.checkpoint_every = 50, 1000
    return c
