"""HiMulCon, which has the weights and no constraint, with the settings of the authors' code (Zhang et al., CVPR 2022).

    python -m jaxcl.main --config=configs/himulcon.py --config.data.path=DIR --config.init.path=resnet50.safetensors
    python -m jaxcl.main --config=configs/himulcon.py:modelnet40 ...               (or :imagenet, :inaturalist, :cifar100)

All but the loss is as in `himulcone`, which says more.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxcl import config as config_lib


def get_config(arg: str = "deepfashion") -> ConfigDict:
    """The experiment; arg is as for `himulcone`."""
    c = config_lib.load(f"{Path(__file__).with_name('himulcone.py')}:{arg}")
    c.name, c.method.variant = c.name.replace("himulcone", "himulcon"), "himulcon"
    return c
