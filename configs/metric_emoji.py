"""Metric learning on the codes of the built-in emoji: given one drawing, find the other; on the machine at hand, in minutes.

    python -m jaxcl.main --config=configs/metric_emoji.py                                  (triplets, semi-hard)
    python -m jaxcl.main --config=configs/metric_emoji.py:LOSS[,MINING[,BORDER]]
    python -m jaxcl.probe --workdir=runs/metric_emoji --layer=z --eval=retrieval
    python -m jaxcl.probe --workdir=runs/metric_emoji --layer=z --eval=clustering --levels=subcategory --test=test

LOSS and MINING are those of `jaxcl.methods.metric`, such as "margin,distance_weighted", "triplet,batch_hard", "multi_similarity" or
"proxy_anchor"; BORDER is the one that "margin" learns, "one" for all or one for each "class". A code has two drawings, by two
artists, so that a batch of 128 has 64 codes, and an image one positive. The table at the end, on h, is about codes that training
has not seen, Google's drawings of which search Twitter's: `retrieval/recall@1` at the level `code` is the share whose nearest
neighbour is the other drawing of their code. The embedding itself is z, which the probes above score.

Network, images, augmentations (one view) and optimizer are those of `quickstart`. A memory of earlier batches is
`--config.method.memory_size=1024 --config.method.memory_start=100`.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.methods.metric_losses import WITH_PROXIES

OWN_LR = 1e-2
"""Learning rate of proxies and learned borders, five times the network's."""


def get_config(arg: str = "triplet,semihard") -> ConfigDict:
    """The experiment; arg is the loss, and maybe its mining and the border that it learns."""
    objective, mining, border = [*arg.split(",", 2), "", ""][:3]
    quickstart = config_lib.load(Path(__file__).with_name("quickstart.py"))
    views = {**quickstart.views.to_dict(), "views": ({},)}
    fields = {"objective": objective, "mining": mining or None, "learn_beta": border or None}
    c = config_lib.with_method(quickstart, "metric", views, **fields)
    c.name = "metric_emoji" + ("" if arg == "triplet,semihard" else f"_{arg.replace(',', '_')}")
    c.steps = 800
    c.method.projection.layers = (64,)
    c.data.sampler, c.data.per_class = "m_per_class", 2  # the two drawings of a code
    if objective in WITH_PROXIES or border:
        c.optim.method_lr = OWN_LR / c.optim.base_lr
    c.evaluation.every = 200
    c.evaluation.test, c.evaluation.retrieval_gallery = "test/google", "test/twitter"
    c.evaluation.extra = ("retrieval",)
    c.evaluation.extra_levels = ("code", "subcategory")
    return c
