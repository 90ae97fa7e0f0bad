"""Metric learning on DeepFashion In-Shop, 3,997 products, tested on 3,985 others.

    python -m jaxcl.main --config=configs/metric_inshop.py --config.data.path=DIR --config.init.path=resnet50.npz
    python -m jaxcl.probe --workdir=runs/metric_inshop --layer=z --eval=retrieval --train=train --test=query --gallery=gallery

Everything but the data and the length is as in `metric_cub200`, and so is the argument LOSS[,MINING]. Queries and gallery are
those of the benchmark, and a product is an item whatever its category. Not measured here.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxcl import config as config_lib


def get_config(arg: str = "multi_similarity,multi_similarity") -> ConfigDict:
    """The experiment; arg is the loss, and maybe its mining."""
    c = config_lib.load(f"{Path(__file__).with_name('metric_cub200.py')}:{arg}")
    c.name = "metric_inshop"
    c.steps = 20_000
    c.data.name, c.data.path = "inshop", "In-shop Clothes Retrieval Benchmark"
    c.data.splits, c.data.holdout, c.data.label_keys = {}, 0.0, ("product",)
    c.method.level, c.data.sampler_level = "product", "product"
    c.evaluation.levels = ("product",)
    c.evaluation.retrieval_ks = (1, 10, 20, 30, 40, 50)
    c.evaluation.every, c.evaluation.gallery, c.evaluation.validation = 0, "", ""
    return c
