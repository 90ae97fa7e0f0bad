"""Evaluators: what the features of a network are good for, scored with counts."""

from jaxcl.evaluators.base import (
    Alter,
    Classes,
    Features,
    NothingToScore,
    altered,
    comparable_levels,
    make_extractor,
    pixel_view,
    raw_pixels,
    score,
    shared_levels,
)
from jaxcl.evaluators.classify import (
    ClassifierResult,
    Recipe,
    Task,
    TooFewImages,
    Trained,
    finetune,
    linear_sgd,
    transfer_bn_momentum,
)
from jaxcl.evaluators.clustering import ClusteringResult, clustering
from jaxcl.evaluators.config import EvalConfig, check_factors
from jaxcl.evaluators.corruption import CORRUPTIONS, Corruption, CorruptionResult, corruption
from jaxcl.evaluators.extra import EXTRA, TEST_ALONE, Subject, check_names
from jaxcl.evaluators.fewshot import FewShotResult, few_shot
from jaxcl.evaluators.hierarchy import HierarchyResult, hierarchy
from jaxcl.evaluators.knn import KnnResult, SelectedKnn, knn, knn_selected, neighbours
from jaxcl.evaluators.layers import Layer, LayerModel
from jaxcl.evaluators.linear import (
    PAPER_GRID,
    SHORT_GRID,
    LinearResult,
    LogisticModel,
    chosen_model,
    linear_probe,
    logistic_regression,
)
from jaxcl.evaluators.online import Online
from jaxcl.evaluators.rank import effective_rank
from jaxcl.evaluators.retrieval import RetrievalResult, retrieval
from jaxcl.evaluators.rotation import (
    Drawn,
    FactorResult,
    FactorTask,
    Rotation,
    factor_of,
    predict_factor,
)
from jaxcl.evaluators.similarity import (
    SimilarityResult,
    table_similarity,
    tree_similarity,
)
from jaxcl.evaluators.table import Row, higher_is_better, is_shown, scalars, table

__all__ = [
    "CORRUPTIONS",
    "EXTRA",
    "PAPER_GRID",
    "SHORT_GRID",
    "TEST_ALONE",
    "Alter",
    "Classes",
    "ClassifierResult",
    "ClusteringResult",
    "Corruption",
    "CorruptionResult",
    "Drawn",
    "EvalConfig",
    "FactorResult",
    "FactorTask",
    "Features",
    "FewShotResult",
    "HierarchyResult",
    "KnnResult",
    "Layer",
    "LayerModel",
    "LinearResult",
    "LogisticModel",
    "NothingToScore",
    "Online",
    "Recipe",
    "RetrievalResult",
    "Rotation",
    "Row",
    "SelectedKnn",
    "SimilarityResult",
    "Subject",
    "Task",
    "TooFewImages",
    "Trained",
    "altered",
    "check_factors",
    "check_names",
    "chosen_model",
    "clustering",
    "comparable_levels",
    "corruption",
    "effective_rank",
    "factor_of",
    "few_shot",
    "finetune",
    "hierarchy",
    "higher_is_better",
    "is_shown",
    "knn",
    "knn_selected",
    "linear_probe",
    "linear_sgd",
    "logistic_regression",
    "make_extractor",
    "neighbours",
    "pixel_view",
    "predict_factor",
    "raw_pixels",
    "retrieval",
    "scalars",
    "score",
    "shared_levels",
    "table",
    "table_similarity",
    "transfer_bn_momentum",
    "tree_similarity",
]
