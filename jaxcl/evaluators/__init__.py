"""Evaluators: what the features of a network are good for, scored with counts."""

from jaxcl.evaluators.base import (
    Classes,
    Features,
    make_extractor,
    raw_pixels,
    score,
    shared_levels,
)
from jaxcl.evaluators.classify import (
    ClassifierResult,
    Recipe,
    Task,
    Trained,
    finetune,
    linear_sgd,
    transfer_bn_momentum,
)
from jaxcl.evaluators.config import EvalConfig
from jaxcl.evaluators.knn import KnnResult, SelectedKnn, knn, knn_selected, neighbours
from jaxcl.evaluators.layers import Layer, LayerModel
from jaxcl.evaluators.linear import (
    PAPER_GRID,
    SHORT_GRID,
    LinearResult,
    LogisticModel,
    linear_probe,
    logistic_regression,
)
from jaxcl.evaluators.online import Online
from jaxcl.evaluators.rank import effective_rank
from jaxcl.evaluators.table import Row, scalars, table

__all__ = [
    "PAPER_GRID",
    "SHORT_GRID",
    "Classes",
    "ClassifierResult",
    "EvalConfig",
    "Features",
    "KnnResult",
    "Layer",
    "LayerModel",
    "LinearResult",
    "LogisticModel",
    "Online",
    "Recipe",
    "Row",
    "SelectedKnn",
    "Task",
    "Trained",
    "effective_rank",
    "finetune",
    "knn",
    "knn_selected",
    "linear_probe",
    "linear_sgd",
    "logistic_regression",
    "make_extractor",
    "neighbours",
    "raw_pixels",
    "scalars",
    "score",
    "shared_levels",
    "table",
    "transfer_bn_momentum",
]
