"""How strong the colour distortion should be (SimCLR, Table 1).

    python -m jaxcl.study --config=configs/studies/simclr_strength.py

Expected, as in the paper: stronger is better up to strength 1, and blur adds to it.
"""

from pathlib import Path

from jaxcl import config, study

BLUR = {"sigma": (0.1, 2.0), "fraction": 0.1, "prob": 0.5}


def get_study() -> study.Study:
    """Five cells: four strengths, and the strongest with blur."""
    base = study.shortened(config.load(Path(__file__).parents[1] / "quickstart.py"), 60)
    cells = [
        study.Cell(
            f"strength-{strength:g}",
            {"views.ops.jitter.strength": strength},
            {"strength": strength, "blur": "no blur"},
        )
        for strength in (0.125, 0.25, 0.5, 1.0)
    ]
    blurred = {
        "views.ops.jitter.strength": 1.0,
        "views.ops.blur": BLUR,
        "views.order": (*base.views.order, "blur"),
    }
    cells.append(study.Cell("strength-1+blur", blurred, {"strength": 1.0, "blur": "with blur"}))
    table = "Table 1, ImageNet linear: {} (ResNet-50, 100 epochs)"
    return study.Study(
        title="SimCLR: strength of the colour distortion",
        question="Does contrastive learning gain from stronger colour distortion?",
        base=base,
        cells=cells,
        metrics=study.accuracies("category", "subcategory"),
        contrasts=[
            study.Contrast(
                "strength-1",
                "strength-0.125",
                "linear/category",
                paper=table.format("63.2 against 59.6"),
            ),
            study.Contrast(
                "strength-0.5",
                "strength-0.125",
                "linear/category",
                paper=table.format("62.6 against 59.6"),
            ),
            study.Contrast(
                "strength-1+blur",
                "strength-1",
                "linear/category",
                paper=table.format("64.5 against 63.2"),
            ),
        ],
        layout=study.Line("strength", series="blur", log=True),
        floors="strength-0.5",
        seconds=40,
        paper="Strength 1/8, 1/4, 1/2, 1, 1 with blur: 59.6, 61.0, 62.6, 63.2, 64.5 % (ImageNet, linear, ResNet-50, 100 epochs,"
        " batch 4096); a supervised network loses at the same time: 77.0, 76.7, 76.5, 75.7, 75.4 %.",
        differs="Emoji of 32 px, ResNet-18 of a quarter of the width, 60 steps of 128 images. Crops keep at least 45 % of the"
        " image. Blur at 20 px has 3 taps. The supervised row is not run here.",
    )
