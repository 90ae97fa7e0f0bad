"""SimCLR on CIFAR-10 with ResNet-18, the command of the official README.

    python -m jaxcl.main --config=configs/simclr_cifar10.py --config.data.path=TFDS_DIR
    python -m jaxcl.probe --workdir=runs/simclr_cifar10 --eval=sgd --train=train --epochs=100 --batch_size=512
    python -m jaxcl.probe --workdir=runs/simclr_cifar10 --eval=knn,linear

Expected of the first probe (the authors' README, not measured here): about 91 % linear accuracy after 1000 epochs; another library
reports 84.8 % kNN after 200. The second probe, as the table at the end of the training, chooses k and the penalty on a tenth of
the training images and then learns from all of them. LARS, learning rate 1.0 * B / 256, weight decay 1e-4, tau 0.5, half the
colour strength, no blur, a head of three layers. The data: `tfds build cifar10 --file_format=array_record` where TensorFlow is
installed.
"""

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets


def get_config(arg: str = "1000") -> ConfigDict:
    """The experiment; arg is the number of epochs."""
    c = config_lib.base("simclr", presets.simclr_cifar(32), temperature=0.5)
    c.name = "simclr_cifar10"
    c.batch_size = 512
    c.epochs = float(arg)
    c.data.name, c.data.dataset = "tfds", "cifar10"
    c.data.splits = {
        "train": "train",
        "gallery": "train[:90%]",
        "val": "train[90%:]",
        "test": "test",
    }
    c.model.name, c.model.stem = "resnet18", "cifar"
    c.method.projection.layers = (-1, -1, 128)
    c.optim.name, c.optim.base_lr, c.optim.scaling = "lars", 1.0, "linear"
    c.optim.weight_decay, c.optim.warmup_epochs = 1e-4, 10.0
    c.evaluation.every = 970
    c.evaluation.gallery, c.evaluation.validation = "gallery", "val"
    c.evaluation.test, c.evaluation.test_gallery = "test", "train"
    c.evaluation.ks = (20, 200)
    return c
