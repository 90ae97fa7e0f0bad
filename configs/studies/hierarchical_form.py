"""HiMulConE's constraint: on the means of levels as in the authors' code, on pairs as in the paper, by anchor, and without.

    python -m jaxcl.study --config=configs/studies/hierarchical_form.py

Nothing is named beforehand: the paper does not compare them, and does not have the code's form.
"""

from pathlib import Path

from jaxcl import config, study

STEPS = 120


def get_study() -> study.Study:
    """Forms of one loss; the batches are the same."""
    configs = Path(__file__).parents[1]
    base = study.shortened(config.load(configs / "hierarchical_emoji.py"), STEPS)
    cells = [
        study.Cell("code"),
        study.Cell("code-detached", {"method.detach_floor": True}),
        study.Cell("code-unconstrained", {"method.constraint": "none"}),
        study.Cell("paper", {"method.form": "paper"}),
        study.Cell("paper-by-anchor", {"method.form": "paper", "method.constraint": "pair_anchor"}),
        study.Cell("paper-unconstrained", {"method.form": "paper", "method.constraint": "none"}),
    ]
    return study.Study(
        title="Forms of HiMulConE",
        question="What does the constraint do, and which of its readings learns best?",
        base=base,
        cells=cells,
        metrics=[
            study.Metric("retrieval/map@r/category", "MAP@R, category"),
            study.Metric("retrieval/map@r/subcategory", "MAP@R, subcategory"),
            *study.accuracies("category", "subcategory"),
            study.Metric("hierarchy/violations/all", "pairs that violate the hierarchy"),
            study.Metric("log/floored_category", "floored at category, last batch"),
            study.Metric("log/floored_subcategory", "floored at subcategory, last batch"),
        ],
        seeds=(0, 1, 2),
        seconds=240,
        paper="The equation floors each pair by the largest loss of any pair of the finer level. The released code floors the mean of"
        " a level by the largest mean of the finer ones, after it has left one image of each finer path.",
        differs="Emoji of 32 px, ResNet-18 of a quarter of the width, 120 steps of 128 images.",
    )
