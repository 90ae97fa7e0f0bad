"""HiMulConE's constraint, and its de-duplication: as in the authors' code, as in the paper, and one without the other.

    python -m jaxcl.study --config=configs/studies/hierarchical_form.py

Nothing is named beforehand: the paper does not compare them, and does not have the code's form.
"""

from pathlib import Path

from jaxcl import config, study

STEPS = 300


def get_study() -> study.Study:
    """Forms of one loss; the batches are the same."""
    configs = Path(__file__).parents[1]
    base = study.shortened(config.load(configs / "hierarchical_emoji.py"), STEPS)
    cells = [
        study.Cell("code"),
        study.Cell("code-unconstrained", {"method.constraint": "none"}),
        study.Cell("code-all-images", {"method.dedup": "off"}),
        study.Cell("paper", {"method.form": "paper"}),
        study.Cell("paper-unconstrained", {"method.form": "paper", "method.constraint": "none"}),
        study.Cell("paper-deduplicated", {"method.form": "paper", "method.dedup": "on"}),
    ]
    return study.Study(
        title="Forms of HiMulConE",
        question="What do the constraint and the de-duplication do, and which of their readings learns best?",
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
        paper="The equation floors each pair by the largest loss of any pair of the finer level, and all images stand at all levels."
        " The released code floors the mean of a level by the largest mean of the finer ones, after it has left one image of each"
        " finer path.",
        differs=f"Emoji of 32 px, ResNet-18 of a quarter of the width, {STEPS} steps of 128 images. code-all-images and"
        " paper-deduplicated differ from code and paper in the de-duplication alone, and so do the two without a constraint: the"
        " constant factors of the forms are all the same to AdamW.",
    )
