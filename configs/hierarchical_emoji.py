"""HiMulConE on the label tree of the built-in emoji, on the machine at hand, in about ten minutes on two CPU cores.

    python -m jaxcl.main --config=configs/hierarchical_emoji.py                            (or :himulcon, :hicone)
    python -m jaxcl.main --config=configs/hierarchical_emoji.py --config.method.form=paper (the equations instead of the code)
    python -m jaxcl.probe --workdir=runs/hierarchical_emoji_himulcone --eval=retrieval,clustering,hierarchy

9 categories, 98 subcategories and the codes, whose two drawings are the members of a leaf. A batch is made of groups: an emoji, its
other drawing, another code of its subcategory, another subcategory of its category, another category. Everything but the loss, the
head and the batches is the quickstart's, which is SimCLR: the two can be compared. The table at the end is about codes that the
training has not seen; `probe_accuracy` is that of a linear classifier of the categories on the training batches.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxcl import config as config_lib

VARIANTS = ("himulcon", "hicone", "himulcone")


def get_config(arg: str = "himulcone") -> ConfigDict:
    """The experiment; arg is himulcon, hicone or himulcone."""
    if arg not in VARIANTS:
        raise ValueError(
            f"hierarchical_emoji:{arg}: expected {', '.join(VARIANTS)} after the colon"
        )
    quickstart = config_lib.load(Path(__file__).with_name("quickstart.py"))
    c = config_lib.with_method(quickstart, "hierarchical", variant=arg, temperature=0.1)
    c.name = f"hierarchical_emoji_{arg}"
    c.method.projection.layers = (128, 64)
    c.data.sampler = "hierarchical"
    c.evaluation.extra = ("retrieval", "clustering", "hierarchy")
    return c
