"""Losses for two views of an image, with and without semi-hard negatives (SimCLR, Table 4).

    python -m jaxcl.study --config=configs/studies/simclr_table4.py

Expected, as in the paper: NT-Xent is above the others, with semi-hard negatives or without; and for these two, semi-hard negatives
are above all negatives. Named beforehand: for the margin loss, beyond the spread of the seeds.
"""

from pathlib import Path

from jaxcl import config, study

STEPS = 200
TUNED = {
    "nt-xent": 0.2,
    "nt-xent-semihard": 0.2,
    "nt-logistic": 0.1,
    "nt-logistic-semihard": 0.5,
    "margin": 0.4,
    "margin-semihard": 0.05,
}
"""Temperature or margin: of temperatures 0.1, 0.2 and 0.5 and of margins 0.05, 0.4, 0.8 and 1.6 that with the best linear probe of
categories on validation codes (one seed, 200 steps). NT-Xent has the quickstart's. With semi-hard negatives the margins from 0.4 on
are one and the same."""


def get_study() -> study.Study:
    """Six cells, one encoder and one head."""
    quickstart = config.load(Path(__file__).parents[1] / "quickstart.py")
    base = study.shortened(quickstart, STEPS)
    method = config.with_method(quickstart, "metric", level="image").method.to_dict()
    method["projection"] = quickstart.method.projection.to_dict()

    def soft(name: str, mining: str, objective: str) -> study.Cell:
        own = {"mining": mining, "objective": objective, "temperature": TUNED[name]}
        return study.Cell(name, {"method": {**method, **own}})

    def hinge(name: str, mining: str) -> study.Cell:
        own = {"mining": mining, "objective": "triplet", "margin": TUNED[name]}
        own |= {"distance": "cosine", "reduction": "mean"}
        return study.Cell(name, {"method": {**method, **own}})

    cells = [
        soft("nt-xent", "all", "nt_xent"),
        soft("nt-xent-semihard", "semihard", "nt_xent"),
        soft("nt-logistic", "all", "nt_logistic"),
        soft("nt-logistic-semihard", "semihard", "nt_logistic"),
        hinge("margin", "all"),
        hinge("margin-semihard", "closest_semihard"),
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
        seconds=110,
        paper="Margin, NT-Logistic, margin and NT-Logistic with semi-hard negatives, NT-Xent: 50.9, 51.6, 57.5, 57.9, 63.9 %"
        " (ImageNet, linear, ResNet-50, 100 epochs; learning rate, margin and temperature of each chosen from a grid).",
        differs=f"Emoji of 32 px, ResNet-18 of a quarter of the width, {STEPS} steps of 128 images, AdamW, one"
        " learning rate; temperatures and margins of each from a coarser grid. NT-Xent with semi-hard negatives, which leaves out"
        " those nearer than the positive, is not in the paper.",
    )
