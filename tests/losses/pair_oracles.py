"""Pair losses in NumPy float64 with plain loops; nothing here is shared with the package."""

import numpy as np


def sines(n, d, shift):
    """The deterministic embeddings of the golden values: rows of sines, normalised."""
    i, j = np.arange(n)[:, None], np.arange(d)[None, :]
    x = np.sin(shift + 3 * i + 7 * j + i * j)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def two_views(rows):
    """Rows [2n, d], view 1 first, as [n, 2, d]."""
    half = len(rows) // 2
    return np.stack([rows[:half], rows[half:]], axis=1)


def unit_rows(z):
    z = np.asarray(z, np.float64)
    flat = z.reshape(-1, z.shape[-1])
    out = np.zeros_like(flat)
    for i, row in enumerate(flat):
        out[i] = row / max(np.sqrt(np.sum(row * row)), 1e-12)
    return out


def log_sum_exp(values):
    top = max(values)
    return top + np.log(np.sum(np.exp(np.asarray(values) - top)))


def group_loss(z, group, temperature, variant="out"):
    """Mean over anchors; z [B, V, D], group [B] or None (every image its own)."""
    batch, views, _ = z.shape
    rows = unit_rows(z)
    group = np.arange(batch) if group is None else np.asarray(group)
    label = np.repeat(group, views)
    image = np.repeat(np.arange(batch), views)
    total = 0.0
    for i in range(len(rows)):
        cosines = rows @ rows[i] / temperature
        others = [j for j in range(len(rows)) if j != i]
        positives = [
            j for j in others if image[j] == image[i] or (label[j] == label[i] and label[i] >= 0)
        ]
        if not positives:
            continue
        denominator = log_sum_exp([cosines[j] for j in others])
        if variant == "out":
            terms = [denominator - cosines[p] for p in positives]
            total += sum(terms) / len(terms)
        else:
            numerator = log_sum_exp([cosines[p] for p in positives])
            total += denominator - (numerator - np.log(len(positives)))
    return total / len(rows)


def group_gradient(z, group, temperature, variant="out"):
    """The gradient of `group_loss` by the chain rule, row by row."""
    batch, views, features = z.shape
    raw = np.asarray(z, np.float64).reshape(-1, features)
    rows = unit_rows(z)
    group = np.arange(batch) if group is None else np.asarray(group)
    label = np.repeat(group, views)
    image = np.repeat(np.arange(batch), views)
    count = len(rows)
    unit_gradient = np.zeros_like(rows)
    for i in range(count):
        same = (image == image[i]) | ((label == label[i]) & (label[i] >= 0))
        same[i] = False
        if not same.any():
            continue
        cosines = rows @ rows[i] / temperature
        others = np.arange(count) != i
        weight = np.zeros(count)
        weight[others] = np.exp(cosines[others] - log_sum_exp(cosines[others]))
        if variant == "out":
            weight[same] -= 1 / same.sum()
        else:
            weight[same] -= np.exp(cosines[same] - log_sum_exp(cosines[same]))
        weight /= temperature * count
        unit_gradient[i] += weight @ rows
        unit_gradient += weight[:, None] * rows[i]
    gradient = np.zeros_like(rows)
    for i in range(count):
        norm = np.sqrt(np.sum(raw[i] * raw[i]))
        if norm > 1e-12:
            along = np.dot(rows[i], unit_gradient[i])
            gradient[i] = (unit_gradient[i] - along * rows[i]) / norm
    return gradient.reshape(z.shape)
