"""SimCLR on Fashion-MNIST: 60,000 grey images of 28x28 pixels, ten classes.

    python -m jaxcl.main --config=configs/simclr_fashion_mnist.py --config.data.path=DIR

DIR holds the four IDX files (gzip or not), as Debian's package `dataset-fashion-mnist` installs them below
/usr/share/datasets/fashion-mnist. A network of a quarter of the usual width; 20 epochs take hours on two CPU cores, minutes on a
GPU. Raw pixels reach .864 by neighbours and .845 by a linear probe among all training images; one epoch .812 and .833.
"""

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets


def get_config(arg: str = "20") -> ConfigDict:
    """The experiment; arg is the number of epochs."""
    c = config_lib.base("simclr", presets.simclr(28, strength=0.5, blur=False), temperature=0.2)
    c.name = "simclr_fashion_mnist"
    c.batch_size = 256
    c.epochs = float(arg)
    c.data.name, c.data.path = "idx", "/usr/share/datasets/fashion-mnist"
    c.data.dataset = "fashion_mnist"  # names of the classes
    c.data.image_size, c.data.channels = 28, 1
    c.model.name, c.model.width, c.model.stem = "resnet18", 0.25, "cifar"
    c.method.projection.layers = (128, 64)
    c.optim.base_lr, c.optim.weight_decay, c.optim.warmup_epochs = 1.0, 1e-6, 2.0
    c.evaluation.every = 500
    c.evaluation.gallery, c.evaluation.validation, c.evaluation.test = "train", "test", ""
    c.evaluation.ks = (10, 200)
    return c
