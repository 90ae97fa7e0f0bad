"""All labels or one level of them, with a tenth of the data: HiMulConE beside SupCon of the finest level and SimCLR.

    python -m jaxcl.study --config=configs/studies/hierarchical_tenth.py

The training, its labels and what the probes learn from are a tenth of the codes; the codes that are scored, and those on which
settings are chosen, are those of `hierarchical.py`. Named beforehand is what is named there.
"""

from pathlib import Path

from jaxcl import config, study

STEPS = 150
LEVELS = ("category", "subcategory", "code")


def get_study() -> study.Study:
    """Four of the cells of `hierarchical.py`."""
    configs = Path(__file__).parents[1]
    base = study.shortened(config.load(configs / "quickstart.py"), STEPS)
    base.data.splits = {"train": "train[:10%]"}
    base.evaluation.test_gallery = ""  # the split `seen` would be all of the codes
    base.evaluation.extra = ("retrieval", "clustering", "hierarchy")
    supcon = config.load(f"{configs / 'supcon_emoji.py'}:code").method.to_dict()
    tree = config.load(configs / "hierarchical_emoji.py").method.to_dict()
    relatives = {"data.sampler": "hierarchical"}
    return study.Study(
        title="Learning all levels of a label tree from a tenth of the data",
        question="What do all labels add to those of one level where there is little to learn from?",
        base=base,
        cells=[
            study.Cell("simclr", {"method.projection": supcon["projection"]}),
            study.Cell("supcon-code", {"method": supcon}),
            study.Cell("supcon-code-relatives", {"method": supcon, **relatives}),
            study.Cell("himulcone", {"method": tree, **relatives}),
        ],
        metrics=[
            *(
                study.Metric(f"retrieval/{what}/{level}", f"{name}, {level}")
                for what, name in (("map@r", "MAP@R"), ("recall@1", "recall@1"))
                for level in LEVELS
            ),
            *study.accuracies("category", "subcategory"),
            *(
                study.Metric(f"clustering/nmi/{level}", f"NMI, {level}", percent=False)
                for level in LEVELS[:2]
            ),
            study.Metric("hierarchy/violations/all", "pairs that violate the hierarchy"),
        ],
        contrasts=[
            study.Contrast(
                "himulcone",
                "supcon-code-relatives",
                "retrieval/map@r/category",
                paper="the claim that learning all levels helps retrieval of unseen classes",
                primary=True,
            ),
        ],
        seeds=(0, 1, 2),
        floors="simclr",
        seconds=240,
        paper="The paper trains on all images. The authors of TransHP report HiMulConE on 10 % of ImageNet, with a light ViT: 30.76"
        " % beside 25.24 % for a classifier of the finest level.",
        differs="As in hierarchical.py. A tenth is 124 of the 1,240 codes with both drawings, not a tenth of the images of each"
        f" code, which has two; {STEPS} steps see as many images as {STEPS * 128 // 248} passes over them. kNN and linear probes"
        " learn from these alone and choose their settings on the 190 codes of the validation split.",
    )
