"""SimCLR on the built-in emoji, on the machine at hand, in at most ten minutes on two CPU cores.

    python -m jaxcl.main --config=configs/quickstart.py

A ResNet-18 of a quarter of the usual width on 32x32 images, trained on 65 % of the emoji codes (both drawings of each); the
table at the end is about the 25 % of codes that neither the training nor any choice has seen. The settings were chosen on the
remaining 10 %. `--config=configs/quickstart.py:identity` trains with the identity as the only augmentation: it has to lose.
"""

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; arg is "" or "identity"."""
    if arg not in ("", "identity"):
        raise ValueError(f"quickstart:{arg}: expected nothing or 'identity' after the colon")
    views = presets.simclr(32, strength=0.5)
    if arg == "identity":
        views = {"order": (), "ops": {}, "views": ({}, {})}
    c = config_lib.base("simclr", views, temperature=0.2)
    c.name = "quickstart" + (f"_{arg}" if arg else "")
    c.batch_size = 256
    c.steps = 240
    c.data.name = "emoji"
    c.model.name, c.model.width, c.model.stem = "resnet18", 0.25, "cifar"
    c.method.projection.layers = (128, 64)
    c.optim.name, c.optim.base_lr, c.optim.scaling = "lars", 1.0, "linear"
    c.optim.weight_decay = 1e-6
    c.optim.warmup_epochs = 2.0
    c.evaluation.every = 80
    c.evaluation.gallery, c.evaluation.validation = "train", "val"
    c.evaluation.test, c.evaluation.test_gallery = "test", "seen"
    c.evaluation.levels = ("category", "subcategory")
    c.evaluation.ks = (1, 3, 5, 10, 20)
    c.run.log_every, c.run.checkpoint_every = 10, 80
    c.mesh.cpu_devices = 2
    return c
