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


def row_sums(queries, keys, scale, counted, positive):
    """The row statistics of the engine, row by row; the masks [N, K] are weights, or booleans."""
    count = len(queries)
    names = ("lse", "positive_sum", "positive_lse", "positives", "max", "positive_min")
    out = {name: np.zeros(count) for name in names}
    out |= {name: np.zeros(count, int) for name in ("argmax", "positive_argmin")}
    counted, positive = np.asarray(counted, float), np.asarray(positive, float)
    for i in range(count):
        similarity = np.array([scale * np.dot(queries[i], key) for key in keys])
        for name, weight in (("lse", counted[i]), ("positive_lse", positive[i])):
            some = weight != 0
            terms = similarity[some] + np.log(weight[some])
            out[name][i] = log_sum_exp(terms) if some.any() else -np.inf
        out["positive_sum"][i] = np.sum(positive[i] * similarity)
        out["positives"][i] = positive[i].sum()
        out["max"][i], out["argmax"][i] = best_of(similarity, counted[i], 1)
        out["positive_min"][i], out["positive_argmin"][i] = best_of(similarity, positive[i], -1)
    return out


def best_of(values, weight, sign):
    """The largest (sign 1) or smallest (-1) value with a weight, and where it is first."""
    best, where = -sign * np.inf, -1
    for j, value in enumerate(values):
        if weight[j] != 0 and sign * value > sign * best:
            best, where = value, j
    return best, where


def row_sums_gradient(queries, keys, scale, counted, positive, gradient):
    """Chain rule for `row_sums`: gradients of queries, keys and scale."""
    sums = row_sums(queries, keys, scale, counted, positive)
    to_queries, to_keys, to_scale = np.zeros_like(queries), np.zeros_like(keys), 0.0
    counted, positive = np.asarray(counted, float), np.asarray(positive, float)
    none = np.zeros(len(queries))
    for i in range(len(queries)):
        for j in range(len(keys)):
            dot = np.dot(queries[i], keys[j])
            weight = 0.0
            if counted[i, j]:
                soft = counted[i, j] * np.exp(scale * dot - sums["lse"][i])
                weight += gradient.get("lse", none)[i] * soft
            if positive[i, j]:
                weight += gradient.get("positive_sum", none)[i] * positive[i, j]
                soft = positive[i, j] * np.exp(scale * dot - sums["positive_lse"][i])
                weight += gradient.get("positive_lse", none)[i] * soft
            if j == sums["argmax"][i]:
                weight += gradient.get("max", none)[i]
            if j == sums["positive_argmin"][i]:
                weight += gradient.get("positive_min", none)[i]
            to_queries[i] += weight * scale * keys[j]
            to_keys[j] += weight * scale * queries[i]
            to_scale += weight * dot
    return to_queries, to_keys, to_scale


def info_nce_rows(q, k, negatives, used, temperature):
    """InfoNCE of each query; used [N, K] says which negatives it has."""
    q, k, negatives = unit_rows(q), unit_rows(k), unit_rows(negatives)
    losses = []
    for i in range(len(q)):
        own = np.dot(q[i], k[i]) / temperature
        others = [
            np.dot(q[i], n) / temperature for n, on in zip(negatives, used[i], strict=True) if on
        ]
        losses.append(log_sum_exp([own, *others]) - own)
    return np.array(losses)


def sup_con_by_rows(z, labels, temperature, variant):
    """SupCon losses of all anchors [N], and the gradient [B, V, D]: float64, a row at a time."""
    batch, views, features = z.shape
    unit, raw = unit_rows(z), np.asarray(z, np.float64).reshape(-1, features)
    count, image = len(unit), np.repeat(np.arange(batch), views)
    label = np.repeat(labels, views)
    loss, gradient = np.zeros(count), np.zeros_like(unit)
    for i in range(count):
        s = unit @ unit[i] / temperature
        others = np.arange(count) != i
        positive = others & ((label == label[i]) | (image == image[i]))
        if not positive.any():
            continue
        lse = log_sum_exp(s[others])
        weight = np.where(others, np.exp(s - lse), 0)
        if variant == "out":
            loss[i] = lse - s[positive].mean()
            weight -= positive / positive.sum()
        else:
            pull = log_sum_exp(s[positive])
            loss[i] = lse - pull + np.log(positive.sum())
            weight -= np.where(positive, np.exp(s - pull), 0)
        weight /= temperature * count
        gradient[i] += weight @ unit
        gradient += weight[:, None] * unit[i]
    along = np.sum(gradient * unit, axis=1, keepdims=True)
    gradient = (gradient - along * unit) / np.linalg.norm(raw, axis=1, keepdims=True)
    return loss, gradient.reshape(z.shape)


def nt_xent_by_rows(z, temperature, rows=None, lse=None):
    """NT-Xent losses, and the gradient with respect to z, of many rows: float64, a row at a time.

    Args:
        z: [B, V, D].
        temperature: divides the cosines.
        rows: which anchors to return; all if None. The gradient of a row needs the log-sum-exps of
            all rows.
        lse: these, if they are known.
    """
    views = z.shape[1]
    raw = np.asarray(z, np.float64).reshape(-1, z.shape[-1])
    norm = np.maximum(np.sqrt(np.sum(raw * raw, axis=1)), 1e-12)
    unit = raw / norm[:, None]
    count = len(unit)
    if lse is None:
        lse = np.zeros(count)
        for i in range(count):
            s = unit @ unit[i] / temperature
            s[i] = -np.inf
            top = s.max()
            lse[i] = top + np.log(np.sum(np.exp(s - top)))
    chosen = np.arange(count) if rows is None else np.asarray(rows)
    pull, gradient = np.zeros(len(chosen)), np.zeros((len(chosen), unit.shape[1]))
    for n, i in enumerate(chosen):
        s = unit @ unit[i] / temperature
        weight = np.exp(s - lse[i]) + np.exp(s - lse)
        own = np.arange(i - i % views, i - i % views + views)
        pull[n] = s[own[own != i]].mean()
        weight[own] -= 2 / (views - 1)
        weight[i] = 0
        step = weight @ unit / (count * temperature)
        gradient[n] = (step - np.dot(step, unit[i]) * unit[i]) / norm[i]
        if norm[i] <= 1e-12:
            gradient[n] = 0
    return lse[chosen] - pull, gradient
