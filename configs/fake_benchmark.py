"""Measures compute without input: SimCLR on noise that is made once and kept in memory.

    python -m jaxcl.main --config=configs/fake_benchmark.py [--config.batch_size=512]

The images/s of this run is what the devices can do; the same config on real data tells what the input costs. Nothing is
learned.
"""

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets


def get_config(arg: str = "32") -> ConfigDict:
    """The experiment; arg is the side of the images in pixels."""
    size = int(arg)
    c = config_lib.base("simclr", presets.simclr(size))
    c.name = "fake_benchmark"
    c.batch_size, c.steps = 256, 30
    c.data.name, c.data.image_size = "noise", size
    c.model.name, c.model.width = "resnet18", 0.25
    c.model.stem = "cifar" if size <= 64 else "imagenet"
    c.method.projection.layers = (128, 64)
    c.optim.warmup_epochs = 0.0
    c.run.log_every = 5
    c.run.report = c.run.keep_best = False
    return c
