"""Contrastive losses: pure functions of embeddings, without state.

Arrays are batch-major, cosine losses normalise what they are given, and the result is a scalar in
at least float32.
"""

from jaxcl.losses.anchors import Reference
from jaxcl.losses.contrastive import info_nce, normalize, nt_xent, nt_xent_metrics, sup_con
from jaxcl.losses.dictionary import info_nce_metrics
from jaxcl.losses.distances import Distance, distance
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
from jaxcl.losses.metric import (
    circle,
    fast_ap,
    hadsell,
    lifted_structure,
    margin_contrastive,
    multi_similarity,
    n_pairs,
    nca,
)
from jaxcl.losses.proxies import arcface, proxy_anchor, proxy_nca, random_proxies
from jaxcl.losses.scorers import ScorerSpec, Scoring
from jaxcl.losses.similarity import target_similarity
from jaxcl.losses.supervised import (
    accuracy,
    cross_entropy,
    sup_con_memory,
    sup_con_modes,
    sup_con_overlap,
)
from jaxcl.losses.triplets import (
    margin_loss,
    nt_logistic,
    nt_xent_pairs,
    triplet,
    triplet_counts,
)

__all__ = [
    "Distance",
    "Reference",
    "ScorerSpec",
    "Scoring",
    "accuracy",
    "arcface",
    "circle",
    "cross_entropy",
    "distance",
    "fast_ap",
    "hadsell",
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
    "lifted_structure",
    "margin_contrastive",
    "margin_loss",
    "multi_similarity",
    "n_pairs",
    "nca",
    "normalize",
    "nt_logistic",
    "nt_xent",
    "nt_xent_metrics",
    "nt_xent_pairs",
    "proxy_anchor",
    "proxy_nca",
    "random_proxies",
    "sup_con",
    "sup_con_memory",
    "sup_con_modes",
    "sup_con_overlap",
    "target_similarity",
    "triplet",
    "triplet_counts",
]
