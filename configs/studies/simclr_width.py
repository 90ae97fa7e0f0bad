"""Wider and deeper encoders (SimCLR, Figure 7 and the headline results).

    python -m jaxcl.study --config=configs/studies/simclr_width.py

Expected, as in the paper: the wider and the deeper encoder is better, at equal steps, without labels as with them.
"""

from pathlib import Path

from jaxcl import config, study


def get_study() -> study.Study:
    """Three widths of ResNet-18, and ResNet-34 at the middle one, of SimCLR and of cross-entropy."""
    configs = Path(__file__).parents[1]
    base = study.shortened(config.load(configs / "quickstart.py"), 60)
    supervised = {"method": config.load(configs / "supervised.py:emoji").method.to_dict()}
    cells = [
        study.Cell(
            f"{prefix}{name}-{width:g}x",
            {**method, "model.name": name, "model.width": width},
            {"width": width, "network": f"{prefix}{name}"},
        )
        for prefix, method in (("", {}), ("supervised-", supervised))
        for name, width in (
            ("resnet18", 0.125),
            ("resnet18", 0.25),
            ("resnet18", 0.5),
            ("resnet34", 0.25),
        )
    ]
    return study.Study(
        title="SimCLR: width and depth of the encoder",
        question="Does SimCLR gain from a larger encoder at equal steps?",
        base=base,
        cells=cells,
        metrics=study.accuracies("category", "subcategory"),
        contrasts=[
            study.Contrast(
                "resnet18-0.5x",
                "resnet18-0.125x",
                "linear/category",
                paper="ImageNet linear, ResNet-50 4x against 1x: 76.5 against 69.3 (1000 epochs)",
            ),
            study.Contrast(
                "resnet18-0.5x",
                "resnet18-0.25x",
                "linear/category",
                paper="ImageNet linear, ResNet-50 2x against 1x: 74.2 against 69.3 (1000 epochs)",
            ),
            study.Contrast(
                "resnet34-0.25x",
                "resnet18-0.25x",
                "linear/category",
                paper="Figure 7: depth and width both help (100 epochs)",
            ),
            study.Contrast(
                "supervised-resnet18-0.5x",
                "supervised-resnet18-0.125x",
                "linear/category",
                paper="Figure 7: supervised networks gain too, and less than SimCLR does",
            ),
        ],
        layout=study.Line("width", series="network", log=True),
        floors="resnet18-0.25x",
        seconds=100,
        paper="ResNet-50 1x, 2x, 4x: 69.3, 74.2, 76.5 % (ImageNet, linear, 1000 epochs, batch 4096). Contrastive learning gains more"
        " from size than supervised learning does.",
        differs="Emoji of 32 px, 60 steps of 128 images, widths of 1/8, 1/4 and 1/2 of a ResNet-18. A wider h also gives the linear"
        " probe and kNN more features: the untrained encoder stands beside one width only. The supervised networks learn the"
        " subcategory, from the same two views and as long, and are scored by the same probes on h.",
    )
