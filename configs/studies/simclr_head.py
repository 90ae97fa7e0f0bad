"""The projection head: none, linear or nonlinear, and what is lost behind it (SimCLR, Figure 8 and section 4.2).

    python -m jaxcl.study --config=configs/studies/simclr_head.py

Expected, as in the paper: nonlinear above linear above none, the output's width matters little, and h is better than z.
"""

from pathlib import Path

from jaxcl import config, study

WIDTH = 128
"""Features of h, and of the hidden layer."""


def get_study() -> study.Study:
    """Five cells, each scored at h and at z."""
    base = study.shortened(config.load(Path(__file__).parents[1] / "quickstart.py"), 60)
    layers = {
        ("none", WIDTH): (),
        ("linear", 16): (16,),
        ("linear", WIDTH): (WIDTH,),
        ("nonlinear", 16): (WIDTH, 16),
        ("nonlinear", WIDTH): (WIDTH, WIDTH),
    }
    cells = [
        study.Cell(
            f"{head}-{width}",
            {"method.projection.layers": layers},
            {"head": head, "output width": width},
        )
        for (head, width), layers in layers.items()
    ]
    figure = "Figure 8, ImageNet linear on h: {} (ResNet-50, 100 epochs)"
    behind = "section 4.2: h is better than z by more than 10 points"
    return study.Study(
        title="SimCLR: the projection head",
        question="What does a projection head do for the features before it, and what is lost behind it?",
        base=base,
        cells=cells,
        metrics=[
            *study.accuracies("category", "subcategory"),
            study.Metric("z/linear/category", "linear on z, category"),
            study.Metric("z/knn/category", "kNN on z, category"),
        ],
        contrasts=[
            study.Contrast(
                "nonlinear-128",
                "linear-128",
                "linear/category",
                paper=figure.format("a nonlinear head is 3 points above a linear one"),
            ),
            study.Contrast(
                "nonlinear-128",
                "none-128",
                "linear/category",
                paper=figure.format("a nonlinear head is more than 10 points above none"),
            ),
            study.Contrast(
                "nonlinear-128",
                "nonlinear-128",
                "linear/category",
                "z/linear/category",
                paper=behind,
            ),
            study.Contrast(
                "nonlinear-16", "nonlinear-16", "linear/category", "z/linear/category", paper=behind
            ),
        ],
        layout=study.Line("output width", series="head", log=True),
        measures=[study.Probe("z", layer="z")],
        floors="nonlinear-128",
        seconds=60,
        paper="Linear evaluation of h with a nonlinear, a linear and no head, for outputs of 32 to 2048 features: nonlinear is best,"
        " the width matters little. The layer before the head is better than the one behind it by more than 10 points.",
        differs="Emoji of 32 px, ResNet-18 of a quarter of the width (h has 128 features), 60 steps of 128 images; outputs of 16 and"
        " 128 features. Without a head z is h, and both columns agree (but that kNN on z may also choose k = 200).",
    )
