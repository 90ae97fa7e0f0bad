"""MoCo on CIFAR-10 with ResNet-18, the settings of the authors' demonstration on one GPU.

    python -m jaxcl.main --config=configs/moco_cifar10.py --config.data.path=TFDS_DIR
    python -m jaxcl.main --config=configs/moco_cifar10.py:symmetric ...                     (both views are queries and keys)
    python -m jaxcl.probe --workdir=runs/moco_cifar10 --eval=knn --layer=z                  (the row "knn k=200" is the authors' kNN)

Expected of that row (the authors', not measured here): plain cosine kNN with k 200 and temperature 0.1 among all 50,000 training
images, 82.6 % after 200 epochs, symmetric 85.3 %; 88.7 % and 89.7 % after 800 (`--config.epochs=800`). About 4 points less without
shuffling (`--config.method.bn=groups`). Their kNN is of z, the 128 outputs of the head (`--layer=z`). The table at the end of the
training is of h, with the k and the centring that do best on a tenth of the training images.

Eight groups of BatchNorm stand for the eight GPUs of the paper. The cosine counts epochs from 1, as theirs does: the learning rate
of the first is 0.059996, that of the last 0. The data: `tfds build cifar10 --file_format=array_record` where TensorFlow is installed.
"""

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; arg is "" or "symmetric"."""
    if arg not in ("", "symmetric"):
        raise ValueError(f"moco_cifar10:{arg}: expected nothing or 'symmetric' after the colon")
    c = config_lib.base("moco", presets.moco_cifar(32), temperature=0.1)
    c.name = "moco_cifar10" + (f"_{arg}" if arg else "")
    c.batch_size = 512
    c.epochs = 200.0
    c.data.name, c.data.dataset = "tfds", "cifar10"
    c.data.splits = {
        "train": "train",
        "gallery": "train[:90%]",
        "val": "train[90%:]",
        "test": "test",
    }
    c.model.name, c.model.stem, c.model.zero_init_residual = "resnet18", "cifar", False
    c.model.mean, c.model.std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    c.model.bn_groups = 8
    c.method.queue_size, c.method.momentum, c.method.bn = 4096, 0.99, "shuffle"
    c.method.projection.layers = (128,)
    c.method.symmetric = arg == "symmetric"
    c.optim.name, c.optim.base_lr, c.optim.scaling = "sgd", 0.06, "none"
    c.optim.warmup_epochs, c.optim.schedule = 0.0, "epoch_cosine"
    c.optim.weight_decay, c.optim.decayed, c.optim.excluded = 5e-4, (".*",), ()
    c.evaluation.every = 970
    c.evaluation.gallery, c.evaluation.validation = "gallery", "val"
    c.evaluation.test, c.evaluation.test_gallery = "test", "train"
    c.evaluation.ks = (20, 200)
    return c
