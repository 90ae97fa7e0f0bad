"""SupCon on your own images with several labels each, which have nothing to do with one another: style, colour, tags, ...

    python -m jaxcl.main --config=configs/supcon_table.py:style,colour --config.data.path=images.csv
    python -m jaxcl.probe --workdir=runs/supcon_table --eval=knn,linear --set="data.label_keys=('colour',)"

images.csv has a column `path`, with file names relative to itself, and the columns that are named after the colon. Two images are
drawn together as much as their labels overlap: by the number of columns in which they have the same label, divided by the number
of labels that the two have together (`losses.sup_con_overlap`). An empty cell is no label. A tag that an image has or has not
is a column with one name in it, or nothing:

    path,style,colour,striped
    a.jpg,modern,red,yes
    b.jpg,modern,blue,
    c.jpg,,red,yes

Evaluations read columns as the levels of a tree. So the online kNN is about the first column, and the probe is given any other by
itself, as above. A tenth of the images, chosen by a digest of their names, is held out as "val".
"""

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets


def get_config(arg: str = "style,colour") -> ConfigDict:
    """The experiment; arg is the columns with the labels."""
    keys = tuple(filter(None, arg.split(",")))
    if not keys:
        raise ValueError(
            f"supcon_table:{arg}: expected the columns with the labels after the colon"
        )
    c = config_lib.base("supcon", presets.simclr(64, strength=0.5), overlap=True, level=keys[0])
    c.name = "supcon_table"
    c.batch_size, c.epochs = 256, 100.0
    c.data.name, c.data.path, c.data.holdout = "table", "images.csv", 0.1
    c.data.label_keys = keys
    c.data.image_size, c.data.on_bad = 72, "skip"
    c.model.name, c.model.stem, c.model.width = "resnet18", "cifar", 0.5
    c.method.projection.layers = (256, 128)
    c.optim.name, c.optim.base_lr, c.optim.scaling = "adamw", 1e-3, "none"
    c.optim.weight_decay, c.optim.warmup_epochs = 0.01, 2.0
    c.evaluation.every, c.evaluation.gallery, c.evaluation.validation = 200, "train", "val"
    c.evaluation.levels = keys[:1]
    c.run.checkpoint_every = 200
    return c
