"""SupCon on the subcategories of the built-in emoji, on the machine at hand, in about ten minutes on two CPU cores.

    python -m jaxcl.main --config=configs/supcon_emoji.py                                  (98 subcategories)
    python -m jaxcl.main --config=configs/supcon_emoji.py:category                         (9 categories)
    python -m jaxcl.probe --workdir=runs/supcon_emoji --eval=sgd,linear,classifier         (the second stage, and the joint probe)

Everything but the loss and the head is the quickstart's, which is SimCLR: the two can be compared. `probe_accuracy` is that of a
linear classifier trained beside the encoder, on the training batches. The table at the end is about codes that the training
has not seen, of subcategories that it has.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxcl import config as config_lib


def get_config(arg: str = "subcategory") -> ConfigDict:
    """The experiment; arg is the label level: category, subcategory or code."""
    quickstart = config_lib.load(Path(__file__).with_name("quickstart.py"))
    c = config_lib.with_method(quickstart, "supcon", temperature=0.1, level=arg)
    c.name = "supcon_emoji" + ("" if arg == "subcategory" else f"_{arg}")
    c.method.projection.layers = (128, 64)
    return c
