"""Your own images, and your own numbers of how similar pairs of them are.

    python -m jaxcl.main --config=configs/similarity_table.py --config.data.path=images.csv \
        --config.data.pairs.train=train_pairs.csv --config.data.pairs.val=val_pairs.csv
    python -m jaxcl.main --config=configs/similarity_table.py:triples ...
    python -m jaxcl.main --config=configs/similarity_table.py:pairs,style,colour ...

images.csv has a column `path`, with file names relative to itself. The tables of pairs have the columns a, b, similarity, those of
triples anchor, positive, negative; they name images as images.csv does. Pairs are learned by regression (their similarities may be
any numbers), triples by ranking. Pairs that are similar in several respects have the columns a, b, similarity:style,
similarity:colour, empty where it is not known, and each respect gets a space of its own (`--layer=z:style` of the probe); where
they are labels, 0 or 1, set `--config.method.mode=classification --config.method.objective=binary`.

A tenth of the images, chosen by a digest of their names, is held out as "val"; the table for it has pairs among these only.
`python -m jaxcl.probe --workdir=runs/similarity_table --eval=similarity --test=val` scores them again, on h; with `--layer=z`
(or `--layer=z:style`) by the trained scorer too: `scorer/...`, and how good what it predicts of a pair is.
"""

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets


def get_config(arg: str = "pairs") -> ConfigDict:
    """The experiment; arg is what the rows of the tables are: "pairs", maybe with respects ("pairs,style"), or "triples"."""
    target, *respects = arg.split(",")
    mode = {"pairs": "regression", "triples": "ranking"}.get(target)
    if mode is None:
        raise ValueError(f"similarity_table:{arg}: expected pairs or triples after the colon")
    views = presets.crop_flip(64, views=1, smallest_crop=0.6)
    c = config_lib.base("similarity", views, mode=mode, target=target, respects=tuple(respects))
    c.name = "similarity_table" + ("" if arg == "pairs" else f"_{arg.replace(',', '_')}")
    c.batch_size, c.epochs = 192, 50.0
    c.data.name, c.data.path, c.data.holdout = "table", "images.csv", 0.1
    c.data.pairs = {"train": "train_pairs.csv", "val": ""}
    c.data.image_size, c.data.on_bad = 72, "skip"
    c.model.name, c.model.stem, c.model.width = "resnet18", "cifar", 0.5
    c.method.projection.layers = (256, 128)
    c.optim.name, c.optim.base_lr, c.optim.scaling = "adamw", 1e-3, "none"
    c.optim.weight_decay, c.optim.warmup_epochs = 0.01, 2.0
    c.evaluation.every, c.evaluation.gallery, c.evaluation.validation = 200, "train", "val"
    c.evaluation.test, c.evaluation.linear, c.evaluation.extra = "val", False, ("similarity",)
    c.run.checkpoint_every = 200
    return c
