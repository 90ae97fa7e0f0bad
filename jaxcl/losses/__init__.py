"""Contrastive losses: pure functions of embeddings, without state.

Arrays are batch-major, cosine losses normalise what they are given, and the result is a scalar in
at least float32.
"""

from jaxcl.losses.contrastive import normalize, nt_xent, nt_xent_metrics, sup_con

__all__ = ["normalize", "nt_xent", "nt_xent_metrics", "sup_con"]
