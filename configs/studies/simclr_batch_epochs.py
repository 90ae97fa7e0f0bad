"""Batch size and length of the training (SimCLR, Figure 9 and Table B.1).

    python -m jaxcl.study --config=configs/studies/simclr_batch_epochs.py

Expected, as in the paper: longer is better, and the larger batch is better when the training is short.
"""

from pathlib import Path

from jaxcl import config, study


def get_study() -> study.Study:
    """Two batch sizes, three lengths; runs of one length see the same number of images."""
    base = study.shortened(config.load(Path(__file__).parents[1] / "quickstart.py"), 60)
    # The rate grows with the root of the batch, and is the quickstart's at its batch size.
    base.optim.scaling, base.optim.base_lr = "sqrt", base.optim.base_lr / base.batch_size**0.5
    cells = [
        study.Cell(
            f"batch-{batch}-epochs-{epochs}",
            {
                "batch_size": batch,
                "steps": 0,
                "epochs": float(epochs),
                "optim.warmup_steps": None,
                "optim.warmup_epochs": epochs / 20,
            },
            {"batch": batch, "epochs": epochs},
        )
        for batch in (64, 256)
        for epochs in (2, 4, 8)
    ]
    table = "Table B.1, square-root rule, ImageNet linear: {} (ResNet-50)"
    return study.Study(
        title="SimCLR: batch size and epochs",
        question="Does SimCLR gain from larger batches and longer training?",
        base=base,
        cells=cells,
        metrics=study.accuracies("category", "subcategory"),
        contrasts=[
            study.Contrast(
                "batch-256-epochs-2",
                "batch-64-epochs-2",
                "linear/category",
                paper=table.format("batch 4096 against 256 at 100 epochs: 64.5 against 62.8"),
            ),
            study.Contrast(
                "batch-64-epochs-8",
                "batch-64-epochs-2",
                "linear/category",
                paper=table.format("batch 256, 800 epochs against 100: 66.5 against 62.8"),
            ),
            study.Contrast(
                "batch-256-epochs-8",
                "batch-256-epochs-2",
                "linear/category",
                paper=table.format("batch 4096, 800 epochs against 100: 69.1 against 64.5"),
            ),
        ],
        layout=study.Line("epochs", series="batch", log=True),
        floors="batch-256-epochs-8",
        seconds=90,
        paper="Linear evaluation on ImageNet, square-root rule, 100, 200, 400, 800 epochs: batch 256: 62.8, 64.3, 65.7, 66.5 %;"
        " 1024: 64.3, 66.1, 67.2, 68.3 %; 4096: 64.5, 66.8, 68.0, 69.1 %. Larger batches have more negatives and help most when"
        " the training is short.",
        differs="Emoji of 32 px, ResNet-18 of a quarter of the width, AdamW instead of LARS, 2 to 8 epochs of 2,480 images. In epochs"
        " this is so short that the number of updates, four times as many with the small batch, weighs more than in the paper.",
    )
