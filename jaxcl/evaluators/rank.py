"""The effective rank of features: how many directions they use, without labels."""

import numpy as np


def effective_rank(x: np.ndarray, eps: float = 1e-7) -> float:
    """RankMe: exp of the entropy of the normalised singular values, 1 to min(N, D).

    Garrido et al. 2023, equation 1 (not centred). On the host in float64; a zero matrix gives 0, one
    that is not finite NaN.

    Args:
      x: float[N, D]; a few thousand rows are enough.
      eps: added to each share, as in the paper.
    """
    if not np.isfinite(x).all():
        return float("nan")
    values = np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)
    if not values.sum() > 0:
        return 0.0
    share = values / values.sum() + eps
    return float(np.exp(-np.sum(share * np.log(share))))
