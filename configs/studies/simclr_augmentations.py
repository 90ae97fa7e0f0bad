"""Which augmentations, alone and in pairs, teach SimCLR something: the composition study (SimCLR, Figure 5).

    python -m jaxcl.study --config=configs/studies/simclr_augmentations.py

A 7 x 7 map: single operations on the diagonal, pairs off it. Expected, as in the paper: crop with colour is the best pair, and
no single operation reaches it.
"""

import itertools
from pathlib import Path
from typing import Any

from jaxcl import config, study

SIZE = 20
"""Side of the views in pixels, as in the quickstart."""

OPS: dict[str, dict[str, Any]] = {
    "crop": {
        "crop": {"size": SIZE, "scale": (0.2, 1.0)},
        "flip": {"prob": 0.5},
    },
    "cutout": {"cutout": {"side": (0.5, 0.5)}},
    "color": {"jitter": {"strength": 0.5, "prob": 0.8}, "gray": {"prob": 0.2}},
    "sobel": {"sobel": {}},
    "noise": {"noise": {"std": (0.0, 0.2)}},
    "blur": {"blur": {"sigma": (0.1, 2.0), "fraction": 0.1}},
    "rotate": {"rotate": {"angles": (0.0, 90.0, 180.0, 270.0)}},
}
"""The operations of the figure, in its order: of a pair, the one that stands first is applied first."""

FRAME = {"op": "crop", "size": SIZE, "scale": (0.7, 1.0)}
"""What both branches have in common: one crop, the same for both."""


def views(*names: str) -> dict[str, object]:
    """Both views are the same crop of the image; the operations are applied to the first one only."""
    ops = {key: fields for name in names for key, fields in OPS[name].items()}
    second = {"share": {"frame": 0}, "prob": dict.fromkeys(ops, 0.0)}
    return {"order": ("frame", *ops), "ops": {"frame": FRAME, **ops}, "views": ({}, second)}


def get_study() -> study.Study:
    """28 cells."""
    base = study.shortened(config.load(Path(__file__).parents[1] / "quickstart.py"), 60)
    base.batch_size = 64
    cells = [
        study.Cell(
            first if first == second else f"{first}+{second}",
            {"views": views(*dict.fromkeys((first, second)))},
            {"first": first, "second": second},
        )
        for first, second in itertools.combinations_with_replacement(OPS, 2)
    ]
    best = "crop+color"
    pairs = tuple(c.name for c in cells if "+" in c.name and c.name != best)
    stands_out = (
        "Figure 5: of all pairs, cropping with colour distortion stands out (ResNet-50, ImageNet)"
    )
    not_enough = "section 3.1: no single transformation suffices to learn good representations"
    return study.Study(
        title="SimCLR: composition of augmentations",
        question="Which augmentations, alone (diagonal) and in pairs, make SimCLR learn features that separate emoji categories?",
        base=base,
        cells=cells,
        metrics=study.accuracies("category", "subcategory"),
        contrasts=[
            study.Contrast(best, pairs, "linear/category", paper=stands_out),
            study.Contrast(best, tuple(OPS), "linear/category", paper=not_enough),
            study.Contrast(best, "crop", "linear/category", paper=not_enough),
            study.Contrast(best, "color", "linear/category", paper=not_enough),
            study.Contrast(best, "untrained encoder", "linear/category"),
        ],
        layout=study.Heat("first", "second", mirror=True, average=True),
        floors=best,
        seconds=40,
        paper="Images are first cropped and resized to one size; then the transformation or pair is applied to one branch only, the"
        " other branch keeps the crop as it is. Linear evaluation on ImageNet, ResNet-50.",
        differs="Emoji of 32 px, ResNet-18 of a quarter of the width, 60 steps of 64 images. The common crop keeps 70 to 100 % of"
        " the image and gives 20 px; crops (with flip, as in the paper) keep 20 to 100 % of that, as 8 % of 20 px is"
        " nothing to look at; colour at half strength, as in the paper's CIFAR runs; blur has 3 taps by the paper's rule of a"
        " tenth of the side. Of a pair one order is run, and shown on both sides of the diagonal.",
    )
