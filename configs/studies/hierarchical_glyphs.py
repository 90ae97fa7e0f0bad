"""All labels or one level of them on a second tree, script / character: HiMulConE beside SimCLR, cross-entropy and SupCon.

    python -m jaxcl.study --config=configs/studies/hierarchical_glyphs.py           (or :DIR for data that are not in ./glyphs)

`configs/hierarchical_glyphs.py` says how the data are made. Here are both kinds of classes: characters that training has seen,
in families of fonts that it has not, and characters that it has not seen at all.
"""

from pathlib import Path

from jaxcl import config, study

STEPS = 150
LEVELS = {"level0": "script", "level1": "character"}
KINDS = {"": "seen characters", "unseen/": "unseen characters"}


def get_study(arg: str = "glyphs") -> study.Study:
    """Five cells; arg is the folder of the data."""
    configs = Path(__file__).parents[1]
    glyphs = config.load(configs / "hierarchical_glyphs.py")
    base = study.shortened(glyphs, STEPS)
    base.data.path, base.data.split_file = arg, f"{arg}/split.json"
    base.data.sampler = "uniform"
    base.evaluation.linear = False  # of hundreds of characters it is asked of the trained encoder alone, by the probe below
    tree = glyphs.method.to_dict()
    supcon = config.load(configs / "supcon_emoji.py").method.to_dict() | {"level": "level1"}
    entropy = config.load(f"{configs / 'supervised.py'}:emoji").method.to_dict()
    simclr = config.load(configs / "quickstart.py").method.to_dict()
    relatives = {"data.sampler": "hierarchical"}
    return study.Study(
        title="Learning all levels of a second label tree",
        question="What do all labels add to those of one level, on fonts and on characters that training has not seen?",
        base=base,
        cells=[
            study.Cell("simclr", {"method": {**simclr, "projection": supcon["projection"]}}),
            study.Cell("cross-entropy-character", {"method": {**entropy, "level": "level1"}}),
            study.Cell("supcon-character", {"method": supcon}),
            study.Cell("supcon-character-relatives", {"method": supcon, **relatives}),
            study.Cell("himulcone", {"method": tree, **relatives}),
        ],
        metrics=[
            study.Metric(f"{kind}{method}/{level}", f"{name}, {LEVELS[level]}, {where}", percent)
            for kind, where in KINDS.items()
            for method, name, percent in (
                ("retrieval/map@r", "MAP@R", True),
                ("retrieval/recall@1", "recall@1", True),
                ("retrieval/recall@10", "recall@10", True),
                ("knn", "kNN", True),
                ("clustering/nmi", "NMI", False),
            )
            for level in LEVELS
        ]
        + [
            study.Metric(f"probe/{kind}linear/{level}", f"linear, {name}, {where}")
            for kind, where in KINDS.items()
            for level, name in LEVELS.items()
        ]
        + [
            study.Metric(
                f"{kind}hierarchy/violations/all", f"pairs that violate the hierarchy, {where}"
            )
            for kind, where in KINDS.items()
        ],
        contrasts=[
            study.Contrast(
                "himulcone",
                "supcon-character-relatives",
                f"{kind}retrieval/map@r/level0",
                paper=f"the claim that learning all levels helps retrieval, of {where}",
            )
            for kind, where in KINDS.items()
        ],
        measures=[
            study.Probe("probe", evaluations=("linear",)),
            study.LevelMap(split="unseen_test"),
        ],
        seeds=(0, 1, 2),
        floors="simclr",
        seconds=240,
        paper="On DeepFashion, ModelNet40, ImageNet and iNaturalist all three losses are above SimCLR, cross-entropy and SupCon on"
        " seen and on unseen classes.",
        differs="Letters and digits of 32 px drawn in Noto's fonts. Two levels; the members of a leaf are fonts. ResNet-18 of a"
        f" quarter of the width trained from its beginning, {STEPS} steps of 128 images. Seen characters are scored in families of"
        " fonts that have no drawing of their script among the training images; a quarter of the characters is unseen, and scored"
        " in these families too: their classes are learned from the others. Retrieval is among the images that are scored, each"
        " without itself.",
    )
