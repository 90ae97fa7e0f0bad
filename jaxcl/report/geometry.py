"""Nearest neighbours and 2-D layouts of a few thousand embeddings, for pictures."""

import numpy as np

TSNE_LIMIT = 3000
"""Above this many points a layout is made by PCA: t-SNE would take minutes."""


def centred_unit(x: np.ndarray) -> np.ndarray:
    """Returns the rows of x f[N, F] as f64[N, F], minus their mean, with length 1 (zero stays)."""
    x = np.asarray(x, np.float64)
    x = x - x.mean(axis=0)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def nearest(x: np.ndarray, k: int) -> np.ndarray:
    """Returns the k nearest other rows of every row by centred cosine, nearest first.

    Args:
      x: float[N, F], finite.
      k: reduced to N - 1 where there are fewer others.

    Returns:
      i64[N, min(k, N - 1)]; between equals the lower index is nearer.
    """
    x = centred_unit(x)
    count = len(x)
    k = min(k, count - 1)
    found = np.empty((count, k), np.int64)
    for start in range(0, count, 1024):
        rows = np.arange(start, min(start + 1024, count))
        similarity = x[rows] @ x.T
        similarity[np.arange(len(rows)), rows] = -np.inf
        found[rows] = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return found


def layout(x: np.ndarray, seed: int = 0) -> tuple[np.ndarray, str]:
    """Places embeddings on a plane: t-SNE of centred cosine, PCA for few or very many points.

    Args:
      x: float[N, F], finite.
      seed: of t-SNE.

    Returns:
      (f64[N, 2] within [0, 1], the longer side filling it; the name of the method).
    """
    unit = centred_unit(x)
    left, values, _ = np.linalg.svd(unit, full_matrices=False)
    principal = left * values
    if 10 <= len(x) <= TSNE_LIMIT:
        # Importing scikit-learn's manifolds takes a second, which a training run need not wait for.
        from sklearn.manifold import TSNE

        start = _two(principal)
        start = 1e-4 * start / max(float(start[:, 0].std()), 1e-12)
        perplexity = min(30.0, (len(x) - 1) / 3)
        tsne = TSNE(perplexity=perplexity, init=start.astype(np.float32), random_state=seed)
        return _fit(tsne.fit_transform(principal[:, :50].astype(np.float32))), "t-SNE"
    return _fit(_two(principal)), "PCA"


def lay_flat(points: np.ndarray) -> np.ndarray:
    """Turns points [N, 2] so that they are widest along the first axis, in [0, 1]."""
    centre = points - points.mean(0)
    return _fit(centre @ np.linalg.svd(centre, full_matrices=False)[2].T)


def fill(points: np.ndarray) -> np.ndarray:
    """Stretches the narrower axis of points [N, 2] in [0, 1], by 1.5 at most, to fill the square."""
    extent = np.maximum(np.ptp(points, axis=0), 1e-12)
    return (points - 0.5) * np.minimum(1.0 / extent, 1.5) + 0.5


def align(points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Turns and mirrors points [N, 2] to lie near `reference` [N, 2] (Procrustes), in [0, 1]."""
    centre, target = points - points.mean(0), reference - reference.mean(0)
    left, _, right = np.linalg.svd(centre.T @ target)
    return _fit(centre @ left @ right)


def _two(principal: np.ndarray) -> np.ndarray:
    return np.pad(principal, ((0, 0), (0, max(0, 2 - principal.shape[1]))))[:, :2]


def _fit(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points, np.float64)
    low, high = points.min(0), points.max(0)
    side = max(float((high - low).max()), 1e-12)
    return (points - (low + high) / 2) / side + 0.5
