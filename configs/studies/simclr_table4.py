"""Losses for two views of an image, with and without semi-hard negatives (SimCLR, Table 4).

    python -m jaxcl.study --config=configs/studies/simclr_table4.py

Expected, as in the paper: NT-Xent is above the others, with semi-hard negatives or without; and for these two, semi-hard negatives
are above all negatives. Named beforehand: for the margin loss, beyond the spread of the seeds.
"""

from pathlib import Path
from typing import Any

from jaxcl import config, study

STEPS = 200
TEMPERATURE, MARGIN = 0.2, 0.8
"""Of the grids of the paper: temperatures 0.1, 0.2, 0.5 and 1; margins 0, 0.4, 0.8 and 1.6."""


def get_study() -> study.Study:
    """Six cells, one encoder and one head."""
    quickstart = config.load(Path(__file__).parents[1] / "quickstart.py")
    base = study.shortened(quickstart, STEPS)
    method = config.with_method(quickstart, "metric", level="image").method.to_dict()
    method["projection"] = quickstart.method.projection.to_dict()

    def cell(name: str, mining: str, **settings: Any) -> study.Cell:
        return study.Cell(name, {"method": {**method, "mining": mining, **settings}})

    soft = {"temperature": TEMPERATURE}
    hinge = {"margin": MARGIN, "distance": "cosine", "reduction": "mean"}
    cells = [
        cell("nt-xent", "all", objective="nt_xent", **soft),
        cell("nt-xent-semihard", "semihard", objective="nt_xent", **soft),
        cell("nt-logistic", "all", objective="nt_logistic", **soft),
        cell("nt-logistic-semihard", "semihard", objective="nt_logistic", **soft),
        cell("margin", "all", objective="triplet", **hinge),
        cell("margin-semihard", "closest_semihard", objective="triplet", **hinge),
    ]
    linear, table = "linear/category", "Table 4, ImageNet linear: {} (ResNet-50, 100 epochs)"
    return study.Study(
        title="SimCLR: NT-Xent, logistic and margin loss",
        question="Which loss of two views makes the best features, and what do semi-hard negatives add?",
        base=base,
        cells=cells,
        metrics=[
            *study.accuracies("category", "subcategory"),
            study.Metric("log/embedding_std", "spread of z", percent=False),
        ],
        contrasts=[
            study.Contrast(
                higher,
                lower,
                linear,
                paper=table.format(figures),
                primary=(higher, lower) == ("margin-semihard", "margin"),
            )
            for higher, lower, figures in (
                ("nt-xent", "nt-logistic", "63.9 against 51.6"),
                ("nt-xent", "margin", "63.9 against 50.9"),
                ("nt-xent", "nt-logistic-semihard", "63.9 against 57.9"),
                ("nt-xent", "margin-semihard", "63.9 against 57.5"),
                ("nt-logistic-semihard", "nt-logistic", "57.9 against 51.6"),
                ("margin-semihard", "margin", "57.5 against 50.9"),
            )
        ],
        floors="nt-xent",
        seconds=90,
        paper="Margin, NT-Logistic, margin and NT-Logistic with semi-hard negatives, NT-Xent: 50.9, 51.6, 57.5, 57.9, 63.9 %"
        " (ImageNet, linear, ResNet-50, 100 epochs; learning rate, margin and temperature of each chosen from a grid).",
        differs=f"Emoji of 32 px, ResNet-18 of a quarter of the width, {STEPS} steps of 128 images, AdamW; temperature"
        f" {TEMPERATURE} and margin {MARGIN} for all, one optimizer, no grid. NT-Xent with semi-hard negatives, which leaves out"
        " those nearer than the positive, is not in the paper.",
    )
