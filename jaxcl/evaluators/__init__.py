"""Evaluators: what features of a frozen network are good for, scored with counts."""

from jaxcl.evaluators.base import Classes, Features, make_extractor, raw_pixels
from jaxcl.evaluators.config import EvalConfig
from jaxcl.evaluators.knn import KnnResult, SelectedKnn, knn, knn_selected, neighbours
from jaxcl.evaluators.linear import (
    PAPER_GRID,
    SHORT_GRID,
    LinearResult,
    LogisticModel,
    linear_probe,
    logistic_regression,
)
from jaxcl.evaluators.online import Online
from jaxcl.evaluators.table import Row, scalars, table

__all__ = [
    "PAPER_GRID",
    "SHORT_GRID",
    "Classes",
    "EvalConfig",
    "Features",
    "KnnResult",
    "LinearResult",
    "LogisticModel",
    "Online",
    "Row",
    "SelectedKnn",
    "knn",
    "knn_selected",
    "linear_probe",
    "logistic_regression",
    "make_extractor",
    "neighbours",
    "raw_pixels",
    "scalars",
    "table",
]
