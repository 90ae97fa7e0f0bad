"""The methods, by name."""

from jaxcl.methods.base import Apply, LossOut, Method
from jaxcl.methods.hierarchical import Hierarchical
from jaxcl.methods.looc import LooC
from jaxcl.methods.metric import Metric
from jaxcl.methods.moco import MoCo
from jaxcl.methods.simclr import SimCLR
from jaxcl.methods.similarity import Similarity
from jaxcl.methods.supcon import SupCon
from jaxcl.methods.supcon_moco import SupConMoCo
from jaxcl.methods.supervised import Supervised

METHODS: dict[str, type] = {
    "simclr": SimCLR,
    "moco": MoCo,
    "supcon": SupCon,
    "supcon_moco": SupConMoCo,
    "supervised": Supervised,
    "hierarchical": Hierarchical,
    "looc": LooC,
    "similarity": Similarity,
    "metric": Metric,
}

__all__ = [
    "METHODS",
    "Apply",
    "Hierarchical",
    "LooC",
    "LossOut",
    "Method",
    "Metric",
    "MoCo",
    "SimCLR",
    "Similarity",
    "SupCon",
    "SupConMoCo",
    "Supervised",
]
