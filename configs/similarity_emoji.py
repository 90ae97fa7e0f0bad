"""Graded similarity from the label tree of the built-in emoji, on the machine at hand, in about ten minutes on two CPU cores.

    python -m jaxcl.main --config=configs/similarity_emoji.py                              (ranking, cosine)
    python -m jaxcl.main --config=configs/similarity_emoji.py:regression
    python -m jaxcl.main --config=configs/similarity_emoji.py:classification,mahalanobis
    python -m jaxcl.probe --workdir=runs/similarity_emoji --eval=similarity,retrieval --layer=z

Two drawings are the more similar, the more of category, subcategory and code they share. Ranking puts each image's others in that
order, regression makes the score that number, and classification tells the grade from the score. Everything but the loss and the
head is the quickstart's. The table at the end is about codes that the training has not seen: how far similarities follow the
tree (`similarity/...`), and whether the subcategories come out as clusters. Of z the probe above says it by the cosine and by the
trained scorer (`scorer/...`), what stands first in a search too, and how good the similarities or grades are that it predicts.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxcl import config as config_lib


def get_config(arg: str = "ranking") -> ConfigDict:
    """The experiment; arg is the mode and maybe the scorer: "ranking", "classification,mlp"."""
    mode, _, scorer = arg.partition(",")
    quickstart = config_lib.load(Path(__file__).with_name("quickstart.py"))
    c = config_lib.with_method(quickstart, "similarity", mode=mode)
    # All ordered triples of 256 views are 17 million a step; lists are linear in the pairs.
    c.method.objective = "list_net" if mode == "ranking" else ""
    c.method.scorer.name = scorer or "cosine"
    c.method.projection.layers = (128, 64)
    c.name = "_".join(
        ["similarity_emoji", *([mode] if arg != "ranking" else []), *filter(None, [scorer])]
    )
    c.evaluation.extra = ("similarity", "clustering")
    c.evaluation.extra_levels = ("category", "subcategory")
    return c
