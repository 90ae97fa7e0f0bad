"""Metric learning on Cars-196, 98 models of cars, tested on 98 others.

    python -m jaxcl.main --config=configs/metric_cars196.py --config.data.path=stanford_cars --config.init.path=resnet50.npz
    python -m jaxcl.probe --workdir=runs/metric_cars196 --layer=z --eval=retrieval,clustering --test=test

Everything but the data is as in `metric_cub200`, and so is the argument LOSS[,MINING]. Not measured here.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxcl import config as config_lib


def get_config(arg: str = "multi_similarity,multi_similarity") -> ConfigDict:
    """The experiment; arg is the loss, and maybe its mining."""
    c = config_lib.load(f"{Path(__file__).with_name('metric_cub200.py')}:{arg}")
    c.name = "metric_cars196"
    c.data.name, c.data.path = "cars", "stanford_cars"
    return c
