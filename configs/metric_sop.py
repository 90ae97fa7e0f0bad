"""Metric learning on Stanford Online Products, 11,318 products, tested on 11,316 others.

    python -m jaxcl.main --config=configs/metric_sop.py --config.data.path=Stanford_Online_Products --config.init.path=resnet50.npz
    python -m jaxcl.probe --workdir=runs/metric_sop --layer=z --eval=retrieval --train=train --test=test

Everything but the data and the length is as in `metric_cub200`, and so is the argument LOSS[,MINING]. A product has some five
images, and many products have two: what a batch of 128 does not have, a memory of earlier batches does,
`--config.method.memory_size=16384 --config.method.memory_start=1000` (XBM). Recall is at 1, 10, 100 and 1000. Not measured here.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxcl import config as config_lib


def get_config(arg: str = "multi_similarity,multi_similarity") -> ConfigDict:
    """The experiment; arg is the loss, and maybe its mining."""
    c = config_lib.load(f"{Path(__file__).with_name('metric_cub200.py')}:{arg}")
    c.name = "metric_sop"
    c.steps = 20_000
    c.data.name, c.data.path = "sop", "Stanford_Online_Products"
    c.data.splits, c.data.holdout = {}, 0.0
    c.method.level, c.data.sampler_level = "product", "product"
    c.evaluation.levels = ("product",)
    c.evaluation.retrieval_ks = (1, 10, 100, 1000)
    # Too many products, of too few images, for a monitor on held-out ones.
    c.evaluation.every, c.evaluation.gallery, c.evaluation.validation = 0, "", ""
    return c
