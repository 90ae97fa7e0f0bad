"""How strong the colour distortion should be (SimCLR, Table 1).

    python -m jaxcl.study --config=configs/studies/simclr_strength.py

Expected, as in the paper: stronger is better up to strength 1, and blur adds to it; a network that is trained with labels on the same
views loses instead.
"""

from pathlib import Path

from jaxcl import config, study

BLUR = {"sigma": (0.1, 2.0), "fraction": 0.1, "prob": 0.5}


def get_study() -> study.Study:
    """Ten cells: four strengths, and the strongest with blur, of SimCLR and of cross-entropy."""
    configs = Path(__file__).parents[1]
    base = study.shortened(config.load(configs / "quickstart.py"), 60)
    supervised = {"method": config.load(configs / "supervised.py:emoji").method.to_dict()}
    blurred = {"views.ops.blur": BLUR, "views.order": (*base.views.order, "blur")}
    cells = [
        study.Cell(
            f"{prefix}strength-{strength:g}{'+blur' if blur else ''}",
            {**method, "views.ops.jitter.strength": strength, **(blurred if blur else {})},
            {"strength": strength, "training": training + (", blur" if blur else "")},
        )
        for training, prefix, method in (
            ("SimCLR", "", {}),
            ("supervised", "supervised-", supervised),
        )
        for strength, blur in (
            (0.125, False),
            (0.25, False),
            (0.5, False),
            (1.0, False),
            (1.0, True),
        )
    ]
    table = "Table 1, ImageNet linear: {} (ResNet-50, 100 epochs)"
    labels = "Table 1, ImageNet, supervised: {} (ResNet-50)"
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
            study.Contrast(
                "supervised-strength-0.125",
                "supervised-strength-1",
                "linear/category",
                paper=labels.format("77.0 against 75.7"),
            ),
        ],
        layout=study.Line("strength", series="training", log=True),
        floors="strength-0.5",
        seconds=40,
        paper="Strength 1/8, 1/4, 1/2, 1, 1 with blur: 59.6, 61.0, 62.6, 63.2, 64.5 % (ImageNet, linear, ResNet-50, 100 epochs,"
        " batch 4096); a supervised network loses at the same time: 77.0, 76.7, 76.5, 75.7, 75.4 %.",
        differs="Emoji of 32 px, ResNet-18 of a quarter of the width, 60 steps of 128 images. Crops keep at least 45 % of the"
        " image. Blur at 20 px has 3 taps. The supervised networks learn the subcategory, from the same two views and as long, and"
        " are scored by the same probes on h, on codes that they have not seen; the paper's by their own classifier.",
    )
