"""The key encoder's momentum (MoCo, section 4.1, table of m).

    python -m jaxcl.study --config=configs/studies/moco_momentum.py

Expected, as in the paper: a slowly moving key encoder learns best, and none at all (m = 0: the keys of a queue come from as many
encoders as there were steps) fails. Named beforehand: m = 0.99 is above m = 0, beyond the spread of five seeds.
"""

from pathlib import Path

from jaxcl import config, study

STEPS = 150


def get_study() -> study.Study:
    """Four momenta; all else is `moco_emoji`."""
    base = study.shortened(config.load(Path(__file__).parents[1] / "moco_emoji.py"), STEPS)
    momenta = (0.0, 0.9, 0.99, 0.999)
    table = "section 4.1, ImageNet linear: {} (ResNet-50, K = 4096, 200 epochs)"
    return study.Study(
        title="MoCo: momentum of the key encoder",
        question="How slowly should the key encoder follow?",
        base=base,
        cells=[study.Cell(f"m-{m}", {"method.momentum": m}, {"momentum": m}) for m in momenta],
        metrics=[
            *study.accuracies("category", "subcategory"),
            study.Metric("log/contrastive_top1", "key found, last batch"),
            study.Metric("log/loss", "loss, last batch", percent=False),
        ],
        contrasts=[
            study.Contrast(
                "m-0.99",
                "m-0.0",
                "linear/category",
                paper=table.format("57.8 at m 0.99; with m 0 training fails"),
                primary=True,
            ),
            study.Contrast(
                "m-0.99",
                "m-0.0",
                "knn/category",
                paper="the same, by neighbours",
                primary=True,
            ),
            study.Contrast(
                "m-0.99", "m-0.9", "linear/category", paper=table.format("57.8 against 55.2")
            ),
            study.Contrast(
                "m-0.999",
                "m-0.99",
                "linear/category",
                paper=table.format("59.0 against 57.8"),
            ),
        ],
        seeds=(0, 1, 2, 3, 4),
        floors="m-0.99",
        seconds=240,
        paper="m 0, 0.9, 0.99, 0.999, 0.9999: fails, 55.2, 57.8, 59.0, 58.9 % (ImageNet, linear, ResNet-50, K = 4096).",
        differs="Emoji of 32 px, ResNet-18 of a quarter of the width, two-layer head and tau 0.2 (version 2), 150 steps of 128"
        " images, so that a key encoder with m 0.999 has hardly left its start; AdamW; a queue of 1024. The paper trains"
        " 200 epochs.",
    )
