"""Contrastive losses: pure functions of embeddings, without state.

Arrays are batch-major, cosine losses normalise what they are given, and the result is a scalar in
at least float32.
"""

from jaxcl.losses.contrastive import info_nce, normalize, nt_xent, nt_xent_metrics, sup_con
from jaxcl.losses.dictionary import info_nce_metrics
from jaxcl.losses.hierarchical import (
    hicone,
    hierarchical_con,
    hierarchical_terms,
    himulcon,
    himulcone,
)
from jaxcl.losses.leave_one_out import (
    leave_one_out,
    leave_one_out_metrics,
    leave_one_out_terms,
)
from jaxcl.losses.supervised import (
    accuracy,
    cross_entropy,
    sup_con_memory,
    sup_con_modes,
    sup_con_overlap,
)

__all__ = [
    "accuracy",
    "cross_entropy",
    "hicone",
    "hierarchical_con",
    "hierarchical_terms",
    "himulcon",
    "himulcone",
    "info_nce",
    "info_nce_metrics",
    "leave_one_out",
    "leave_one_out_metrics",
    "leave_one_out_terms",
    "normalize",
    "nt_xent",
    "nt_xent_metrics",
    "sup_con",
    "sup_con_memory",
    "sup_con_modes",
    "sup_con_overlap",
]
