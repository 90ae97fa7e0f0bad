"""Ranking, classification and regression on graded similarity, before and after.

    python -m jaxcl.study --config=configs/studies/similarity.py

The similarity of two emoji is how much of their path category / subcategory / code they share; scored on codes that were not seen,
on z and on h.
"""

from pathlib import Path

from jaxcl import config, study

STEPS = 200
CELLS = {
    "ranking-lists": {"method.mode": "ranking", "method.objective": "list_net"},
    "ranking-ndcg": {"method.mode": "ranking", "method.objective": "ndcg"},
    "ranking-triples": {"method.mode": "ranking", "method.objective": "softplus"},
    "classification": {"method.mode": "classification", "method.objective": "ordinal"},
    "regression": {"method.mode": "regression", "method.objective": "mse"},
}


def get_study() -> study.Study:
    """Five objectives, and the untrained encoder beside them."""
    file = Path(__file__).parents[1] / "similarity_emoji.py"
    base = study.shortened(config.load(file), STEPS)
    base.evaluation.linear = False
    base.evaluation.extra = (*base.evaluation.extra, "retrieval")
    spearman, order = "similarity/spearman/all", "similarity/triplet_accuracy/all"
    nmi = "clustering/nmi/subcategory"
    names = list(CELLS)
    return study.Study(
        title="Similarity learning: ranking, classification, regression",
        question="Which way of learning from graded similarity orders images that were not seen best, and do clusters form?",
        base=base,
        cells=[study.Cell(name, settings) for name, settings in CELLS.items()],
        metrics=[
            study.Metric(order, "order of triples"),
            study.Metric(spearman, "Spearman"),
            study.Metric("similarity/ndcg/all", "NDCG"),
            study.Metric(nmi, "NMI, subcategory"),
            study.Metric("clustering/nmi/category", "NMI, category"),
            study.Metric(f"z/{order}", "order of triples, z"),
            study.Metric(f"z/{spearman}", "Spearman, z"),
            study.Metric("knn/subcategory", "kNN, subcategory"),
            study.Metric("retrieval/recall@1/subcategory", "recall@1, subcategory"),
            study.Metric("retrieval/recall@10/subcategory", "recall@10, subcategory"),
        ],
        contrasts=[
            *(study.Contrast(name, study.FLOORS, order) for name in names),
            *(study.Contrast(name, study.FLOORS, spearman) for name in names),
            *(study.Contrast(name, "untrained encoder", nmi) for name in names),
            *(study.Contrast(name, study.FLOORS, f"z/{order}") for name in names),
            study.Contrast(
                "ranking-lists",
                "classification",
                order,
                paper="What is trained on order should order better than what is trained on grades.",
                primary=True,
            ),
        ],
        measures=[study.Probe("z", layer="z", evaluations=("similarity",), floors=True)],
        floors="ranking-lists",
        seconds=110,
        paper="None: that learning to rank, to classify and to regress are the three ways is a textbook's division.",
        differs=f"Emoji of 32 px, ResNet-18 of a quarter of the width, {STEPS} steps of 128 images in two views.",
    )
