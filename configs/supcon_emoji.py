"""SupCon on the subcategories of the built-in emoji, on the machine at hand, in about ten minutes on two CPU cores.

    python -m jaxcl.main --config=configs/supcon_emoji.py                                  (98 subcategories)
    python -m jaxcl.main --config=configs/supcon_emoji.py:category                         (9 categories)
    python -m jaxcl.probe --workdir=runs/supcon_emoji --eval=sgd,linear                    (the second stage)

Everything but the loss and the head is the quickstart's, which is SimCLR: the two can be compared. `probe_accuracy` is that of a
linear classifier trained beside the encoder, on the training batches. The table at the end is about codes that the training
has not seen, of subcategories that it has.
"""

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets


def get_config(arg: str = "subcategory") -> ConfigDict:
    """The experiment; arg is the label level: category, subcategory or code."""
    views = presets.simclr(24, strength=0.5, blur=False)
    views["ops"]["crop"] |= {"scale": (0.45, 1.0), "antialias": True}
    c = config_lib.base("supcon", views, temperature=0.1, level=arg)
    c.name = "supcon_emoji" + ("" if arg == "subcategory" else f"_{arg}")
    c.batch_size, c.steps = 128, 800
    c.data.name = "emoji"
    c.model.name, c.model.width, c.model.stem = "resnet18", 0.25, "cifar"
    c.method.projection.layers = (128, 64)
    c.optim.name, c.optim.base_lr, c.optim.scaling = "adamw", 2e-3, "none"
    c.optim.weight_decay, c.optim.warmup_epochs, c.optim.warmup_steps = 0.01, 0.0, 40
    c.evaluation.every = 200
    c.evaluation.gallery, c.evaluation.validation = "train", "val"
    c.evaluation.test, c.evaluation.test_gallery = "test", "seen"
    c.evaluation.levels = ("category", "subcategory")
    c.evaluation.ks = (1, 3, 5, 10, 20)
    c.run.log_every, c.run.checkpoint_every = 10, 200
    c.mesh.cpu_devices = 8
    return c
