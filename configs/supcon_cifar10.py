"""SupCon on CIFAR-10 with ResNet-50, the command of the authors' PyTorch repository (Khosla et al., NeurIPS 2020).

    python -m jaxcl.main --config=configs/supcon_cifar10.py --config.data.path=TFDS_DIR
    python -m jaxcl.main --config=configs/supcon_cifar10.py:cifar100 ...
    python -m jaxcl.probe --workdir=runs/supcon_cifar10 --eval=sgd --recipe=supcon --train=all             (the second stage)

Expected (the paper's, not measured here), accuracy of the second stage: CIFAR-10 96.0 % (cross-entropy 95.0, SimCLR 93.6),
CIFAR-100 76.5 % (75.3, 70.7), after 1000 epochs on all 50,000 training images. Here a tenth of them is held out, as what is chosen
while the training goes on (the best checkpoint, k, the penalty) has to be chosen on labels that the encoder has not learned. As in
the paper: `--config.data.splits.train=train --config.run.keep_best=False`; then the online kNN is of images that it has learned.

SGD with learning rate 0.5 for a batch of 1024, not scaled, on a cosine to a thousandth, epoch by epoch, to which it rises from
0.01 over the first 10; weight decay 1e-4 of all parameters; loss times tau / 0.07. Blocks start without a zero scale. BatchNorm is
over the whole batch; the repository's is per GPU. The second stage is its own: 100 epochs of SGD with learning rate 5 for a batch of
512, divided by five at epochs 60, 75 and 90, and crops of 20 % of the image or more.
The data: `tfds build cifar10 --file_format=array_record` where TensorFlow is installed.
"""

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets

STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


def get_config(arg: str = "cifar10") -> ConfigDict:
    """The experiment; arg is cifar10 or cifar100."""
    if arg not in STATISTICS:
        raise ValueError(
            f"supcon_cifar10:{arg}: expected {' or '.join(STATISTICS)} after the colon"
        )
    c = config_lib.base("supcon", presets.supcon(32), temperature=0.1, base_temperature=0.07)
    c.name = f"supcon_{arg}"
    c.batch_size = 1024
    c.epochs = 1000.0
    c.data.name, c.data.dataset = "tfds", arg
    c.data.splits = {
        "train": "train[:90%]",
        "val": "train[90%:]",
        "all": "train",
        "test": "test",
    }
    c.model.name, c.model.stem, c.model.zero_init_residual = "resnet50", "cifar", False
    c.model.mean, c.model.std = STATISTICS[arg]
    c.method.classes = int(arg.removeprefix("cifar"))
    c.optim.name, c.optim.base_lr, c.optim.scaling = "sgd", 0.5, "none"
    c.optim.weight_decay, c.optim.decayed, c.optim.excluded = 1e-4, (".*",), ()
    c.optim.warmup_epochs, c.optim.warmup_init = 10.0, 0.02
    c.optim.schedule, c.optim.end = "epoch_cosine", 1e-3
    c.evaluation.every = 860
    c.evaluation.gallery, c.evaluation.validation = "train", "val"
    c.evaluation.test, c.evaluation.test_gallery = "test", "all"
    c.evaluation.ks = (20, 200)
    return c
