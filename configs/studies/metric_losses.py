"""Every loss of metric learning on the built-in emoji: the other drawing of a code that training has not seen, and clusters.

    python -m jaxcl.study --config=configs/studies/metric_losses.py

Google's drawing of a code asks for Twitter's: on z, among 476 codes, whether training has seen them or not.

Named beforehand: semi-hard mining is above no mining for the triplet, the margin and the logistic loss; every loss is above raw
pixels and the untrained encoder, and its clusters are above the latter's; a margin of the positives above 0 narrows the gap between
codes that were seen and codes that were not; a memory helps.
"""

from pathlib import Path
from typing import Any

from jaxcl import config, study

EMOJI = Path(__file__).parents[1] / "metric_emoji.py"
STEPS = 300
OTHER = "retrieval/recall@1/code"
"""The share of Google's drawings whose nearest neighbour among Twitter's is the other drawing of their code."""
GAP = "z-gap"
"""By how much it is higher for codes that training has seen."""
CODES = 476
"""Codes that training has not seen, and so many that it has: who has fewer to tell apart finds more."""

LOSSES = (
    "hadsell",
    "lifted_structure",
    "multi_similarity,multi_similarity",
    "circle",
    "nca",
    "n_pairs",
    "fast_ap",
    "nt_xent",
    "nt_logistic",
    "nt_logistic,semihard",
    "proxy_nca",
    "proxy_anchor",
    "arcface",
    "triplet,all",
    "triplet,semihard",
    "triplet,batch_hard",
    "triplet,easy_positive",
    "margin,all",
    "margin,semihard",
    "margin,distance_weighted",
)
POSITIVE_MARGINS = (0.0, 0.3, 0.6)
LATE = "contrastive-memory-late"
"""Added when the first memory had let the embeddings collapse: nothing about it was named beforehand."""
MEMORIES = {"contrastive-memory": 20, LATE: STEPS // 2}
"""Cell -> steps before the memory is used."""


def get_study() -> study.Study:
    """The losses with their defaults, and the contrastive loss with three margins of the positives."""
    base = study.shortened(config.load(EMOJI), STEPS)
    base.evaluation.linear = False
    cells = []
    for text in LOSSES:
        objective, _, mining = text.partition(",")
        own = config.load(f"{EMOJI}:{text}")
        settings: dict[str, Any] = {
            "method.objective": objective,
            "method.mining": mining or None,
            "optim.method_lr": own.optim.method_lr,
        }
        cells.append(study.Cell(text.replace(",", "-"), settings))
    learned = config.load(f"{EMOJI}:margin,distance_weighted,one")
    settings = {"method.learn_beta": "one", "optim.method_lr": learned.optim.method_lr}
    cells.append(study.Cell("margin-learned", {**cells[-1].settings, **settings}))
    for margin in POSITIVE_MARGINS:
        settings = {
            "method.objective": "margin_contrastive",
            "method.mining": None,
            "method.pos_margin": margin,
            "method.neg_margin": 1.2,
        }
        cells.append(study.Cell(f"contrastive-{margin:g}", settings))
    remembering = {**cells[-1].settings, "method.pos_margin": 0.0, "method.memory_size": 512}
    for name, start in MEMORIES.items():
        cells.append(study.Cell(name, {**remembering, "method.memory_start": start}))
    names = [cell.name for cell in cells]
    on_z, clusters = f"z/{OTHER}", "z-clusters/clustering/nmi/subcategory"
    mined = (
        "Schroff et al., section 3.2; SimCLR, Table 4: with semi-hard negatives 57.5 against 50.9 %"
    )
    return study.Study(
        title="Metric learning: losses and mining",
        question="Which losses, and which mining, put the two drawings of a code together that training has not seen?",
        base=base,
        cells=cells,
        metrics=[
            study.Metric(on_z, "other drawing found, z"),
            study.Metric("z/retrieval/map@r/subcategory", "MAP@R subcategory, z"),
            study.Metric(clusters, "NMI subcategory, z"),
            study.Metric(OTHER, "other drawing found, h"),
            study.Metric("retrieval/map@r/subcategory", "MAP@R subcategory, h"),
            study.Metric(f"z-seen/{OTHER}", "other drawing found, seen codes, z"),
            study.Metric(GAP, "seen less unseen, z"),
        ],
        contrasts=[
            study.Contrast("triplet-semihard", "triplet-all", on_z, paper=mined, primary=True),
            study.Contrast("margin-semihard", "margin-all", on_z, paper=mined, primary=True),
            study.Contrast(
                "margin-distance_weighted", "margin-all", on_z, paper="Wu et al., section 4"
            ),
            study.Contrast("nt_logistic-semihard", "nt_logistic", on_z, paper=mined, primary=True),
            study.Contrast(
                "contrastive-memory",
                "contrastive-0",
                on_z,
                paper="Wang et al., CVPR 2020",
                primary=True,
            ),
            study.Contrast(LATE, "contrastive-0", on_z, paper="Wang et al., CVPR 2020"),
            study.Contrast(
                "margin-learned",
                "margin-distance_weighted",
                on_z,
                paper="Wu et al., section 4: a learned border",
            ),
            *(
                study.Contrast(
                    "contrastive-0",
                    f"contrastive-{margin:g}",
                    GAP,
                    paper="A margin of the positives is said to be against over-fitting.",
                    primary=True,
                )
                for margin in POSITIVE_MARGINS[1:]
            ),
            *(study.Contrast(name, study.FLOORS, on_z, primary=name != LATE) for name in names),
            *(
                study.Contrast(name, "untrained encoder", clusters, primary=name != LATE)
                for name in names
            ),
        ],
        measures=[
            study.Probe("z", "z", ("retrieval",), levels=("code", "subcategory"), floors=True),
            study.Probe(
                "z-seen",
                "z",
                ("retrieval",),
                levels=("code",),
                test=f"train/google[:{CODES}]",
                gallery=f"train/twitter[:{CODES}]",
                floors=True,
            ),
            # Clusters of codes, of two drawings each, would say what the neighbours say.
            study.Probe(
                "z-clusters",
                "z",
                ("clustering",),
                levels=("subcategory",),
                test="test",
                floors=True,
            ),
        ],
        differences={GAP: (f"z-seen/{OTHER}", on_z)},
        floors="triplet-semihard",
        seconds=90,
        paper="SimCLR, Table 4, has the only comparison that we know with and without semi-hard mining under one protocol: margin loss"
        " 50.9 and 57.5 %, logistic 51.6 and 57.9 % (ImageNet, linear, ResNet-50, 100 epochs).",
        differs=f"Emoji of 32 px, ResNet-18 of a quarter of the width from scratch, {STEPS} steps of 128 drawings (64 codes), one"
        " view. Losses at their default margins and scales, which were not tuned; proxies learn five times as fast as the network."
        " The gap of raw pixels, which have seen nothing, says how much harder the one gallery is than the other.",
    )
