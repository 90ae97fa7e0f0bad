"""SimCLR on a folder of your own images; labels are welcome and not needed.

    python -m jaxcl.main --config=configs/simclr_folder.py --config.data.path=DIR [--config.data.labels=parent|path|none]

Any nesting of JPEG, PNG, WebP, GIF, BMP or TIFF files. `parent` takes the name of an image's folder as its label, `path` every
folder on the way as a level of a label tree, `none` no labels. A tenth of the images is held out: with labels it is scored by
kNN while training, and the report shows its nearest neighbours. Images that cannot be read are named, counted and replaced;
`--config.data.on_bad=error` stops at the first instead.
"""

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets


def get_config(arg: str = "64") -> ConfigDict:
    """The experiment; arg is the side of the training images in pixels."""
    size = int(arg)
    c = config_lib.base("simclr", presets.simclr(size, strength=0.5), temperature=0.2)
    c.name = "simclr_folder"
    c.batch_size = 256
    c.epochs = 100.0
    c.data.name, c.data.path, c.data.labels = "folder", "images", "parent"
    c.data.image_size, c.data.crop, c.data.holdout, c.data.on_bad = size, "host", 0.1, "skip"
    c.model.name, c.model.stem = "resnet18", "cifar" if size <= 64 else "imagenet"
    c.model.width = 0.5
    c.method.projection.layers = (256, 128)
    c.optim.base_lr, c.optim.weight_decay, c.optim.warmup_epochs = 1.0, 1e-6, 5.0
    c.evaluation.every, c.evaluation.gallery, c.evaluation.validation = 200, "train", "val"
    c.run.checkpoint_every = 200
    return c
