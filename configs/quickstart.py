"""SimCLR on the built-in emoji, on the machine at hand, in about ten minutes on two CPU cores.

    python -m jaxcl.main --config=configs/quickstart.py

A ResNet-18 of a quarter of the usual width on 20x20 crops of 32x32 images, trained on 65 % of the emoji codes (both drawings of
each); the table at the end is about the 25 % of codes that neither the training nor any choice has seen. The settings were
chosen on the remaining 10 %. `--config=configs/quickstart.py:identity` trains with the identity as the only augmentation: it
has to lose.
"""

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; arg is "" or "identity"."""
    if arg not in ("", "identity"):
        raise ValueError(f"quickstart:{arg}: expected nothing or 'identity' after the colon")
    views = presets.simclr(20, strength=0.5, blur=False)
    views["ops"]["crop"] |= {"scale": (0.45, 1.0), "antialias": True}
    if arg == "identity":
        views = presets.crop_flip(20, views=2) | {}
        views["ops"] = {"crop": {**views["ops"]["crop"], "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}}
        views["order"] = ("crop",)
    c = config_lib.base("simclr", views, temperature=0.2)
    c.name = "quickstart" + (f"_{arg}" if arg else "")
    c.batch_size, c.steps = 128, 1400
    c.data.name = "emoji"
    c.model.name, c.model.width, c.model.stem = "resnet18", 0.25, "cifar"
    # The background is white: 0 for the network, as is the padding of its convolutions.
    c.model.mean, c.model.std = (1.0, 1.0, 1.0), (0.3, 0.3, 0.3)
    c.method.projection.layers = (128, 64)
    c.optim.name, c.optim.base_lr, c.optim.scaling = "adamw", 2e-3, "none"
    c.optim.weight_decay, c.optim.warmup_epochs, c.optim.warmup_steps = 0.01, 0.0, 40
    c.evaluation.every = 350
    c.evaluation.gallery, c.evaluation.validation = "train", "val"
    c.evaluation.test, c.evaluation.test_gallery = "test", "seen"
    c.evaluation.levels = ("category", "subcategory")
    c.evaluation.ks = (1, 3, 5, 10, 20)
    c.evaluation.image_size = 32
    c.run.log_every, c.run.checkpoint_every = 20, 350
    c.mesh.cpu_devices = 8
    return c
