"""Clustering: does k-means, knowing only the number of classes, find the classes?

The score is the normalised mutual information of clusters and classes (NMI, divided by the
arithmetic mean of the two entropies), and the adjusted one (AMI), which is 0 for chance however
many clusters there are. k-means depends on its first centres: it is run once a seed, and the spread
is reported. The silhouette tells how well the classes themselves are separated, without k-means.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import (
    adjusted_mutual_info_score,
    normalized_mutual_info_score,
    silhouette_score,
)

from jaxcl.evaluators.base import Classes, Features, NothingToScore
from jaxcl.evaluators.knn import prepare

SEEDS = (0, 1, 2, 3, 4)

LIMIT = 50_000
"""Most examples that are clustered."""

SILHOUETTES = 10_000
"""Most examples whose silhouettes are taken: their cost grows with the square."""


@dataclasses.dataclass(frozen=True)
class ClusteringResult:
    """How well the clusters of one set of features are the classes of one level.

    Attributes:
        nmi: mean over the seeds, in [0, 1].
        nmi_std: standard deviation over the seeds (of the sample; 0 for one seed).
        ami: mean over the seeds, at most 1, about 0 for chance.
        ami_std: its standard deviation.
        silhouette: mean silhouette of the classes in [-1, 1]; an example that is alone counts 0.
        nmis: seed -> NMI.
        amis: seed -> AMI.
        clusters: asked for, the number of classes.
        found: fewest that k-means found in a run: fewer where features coincide.
        examples: clustered.
        left_out: labelled examples beyond the limit, left out by chance.
        unlabelled: examples left out, having no label at this level.
        metric: the space of the distances.
    """

    nmi: float
    nmi_std: float
    ami: float
    ami_std: float
    silhouette: float
    nmis: dict[int, float]
    amis: dict[int, float]
    clusters: int
    found: int
    examples: int
    left_out: int
    unlabelled: int
    metric: str

    def scalars(self, prefix: str = "clustering/") -> dict[str, float]:
        """{prefix + "nmi"|"ami"|"silhouette": value}, for a log or a table."""
        return {
            f"{prefix}nmi": self.nmi,
            f"{prefix}ami": self.ami,
            f"{prefix}silhouette": self.silhouette,
        }


def clustering(
    features: Features,
    level: int = -1,
    seeds: Sequence[int] = SEEDS,
    metric: str = "cosine",
    limit: int = LIMIT,
) -> ClusteringResult:
    """k-means with as many clusters as classes, once a seed, against the labels.

    Args:
        features: labelled examples.
        level: label level, coarse -> fine, negative from the finest.
        seeds: of the first centres (k-means++).
        metric: "cosine" clusters features of length 1, "centred_cosine" such features after their
            mean is subtracted, "euclidean" the features as they are.
        limit: most examples; of more, so many are drawn (the same for every seed).

    Raises:
        NothingToScore: fewer than two classes, or no class with two examples.
        ValueError: no seed, unknown metric or level, values that are not finite.
    """
    if not len(seeds):
        raise ValueError("seeds: expected at least one")
    truth = Classes.of(features.labels, level).number(features.labels)
    rows = np.flatnonzero(truth >= 0)
    labelled = len(rows)
    if labelled > limit:
        rows = np.sort(np.random.default_rng(0).choice(rows, limit, replace=False))
    truth = truth[rows]
    classes = len(np.unique(truth))
    if not 1 < classes < len(truth):
        raise NothingToScore(
            f"clustering at level {level}: {len(truth)} labelled examples in {classes} class(es); "
            "at least two classes are needed, and one with two examples"
        )
    x, _ = prepare(features.h[rows], features.h[:0], metric)
    nmis, amis, found = {}, {}, classes
    for seed in seeds:
        with warnings.catch_warnings():
            # Features that coincide give fewer clusters; that is counted.
            warnings.simplefilter("ignore", ConvergenceWarning)
            cluster = KMeans(classes, n_init=1, random_state=seed).fit_predict(x)
        found = min(found, len(np.unique(cluster)))
        nmis[seed] = float(normalized_mutual_info_score(truth, cluster))
        amis[seed] = float(adjusted_mutual_info_score(truth, cluster))
    return ClusteringResult(
        nmi=float(np.mean([*nmis.values()])),
        nmi_std=_spread([*nmis.values()]),
        ami=float(np.mean([*amis.values()])),
        ami_std=_spread([*amis.values()]),
        silhouette=_silhouette(x, truth, metric),
        nmis=nmis,
        amis=amis,
        clusters=classes,
        found=found,
        examples=len(truth),
        left_out=labelled - len(truth),
        unlabelled=len(features) - labelled,
        metric=metric,
    )


def _spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _silhouette(x: np.ndarray, truth: np.ndarray, metric: str) -> float:
    """In cosine or Euclidean distance; of many examples, of some (NaN if these are all alone)."""
    if len(x) > SILHOUETTES:
        rows = np.random.default_rng(0).choice(len(x), SILHOUETTES, replace=False)
        x, truth = x[rows], truth[rows]
    if not 1 < len(np.unique(truth)) < len(truth):
        return float("nan")
    distance = "euclidean" if metric == "euclidean" else "cosine"
    return float(silhouette_score(x, truth, metric=distance))
