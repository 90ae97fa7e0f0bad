"""Losses of metric learning by loops over pairs and triplets, NumPy float64; nothing here is shared with the package."""

import numpy as np


class World:
    """Rows that are anchors, keys that they are held against, and all distances.

    Keys are the rows and, behind them, those of a reference (z, labels, valid), which are of images of their own.
    """

    def __init__(self, z, labels, reference=None, distance="l2", normalized=True, images=None):
        rows, keys, key_labels = np.asarray(z, np.float64), np.asarray(z, np.float64), list(labels)
        valid = [True] * len(rows)
        if reference is not None:
            keys = np.concatenate([keys, np.asarray(reference[0], np.float64)])
            key_labels, valid = key_labels + list(reference[1]), valid + list(reference[2])
        self.rows, self.keys = (unit(x) if normalized else x for x in (rows, keys))
        self.labels, self.key_labels, self.valid = list(labels), key_labels, valid
        self.images = list(range(len(rows))) if images is None else list(images)
        self.anchors, self.count = range(len(rows)), len(keys)
        self.measure = DISTANCES[distance]
        self.d = np.array([[self.measure(x, y) for y in self.keys] for x in self.rows])
        self.s = self.rows @ self.keys.T

    def positives(self, i):
        return [j for j in self.others(i) if self.labels[i] == self.key_labels[j]]

    def negatives(self, i):
        return [j for j in self.others(i) if self.labels[i] != self.key_labels[j]]

    def others(self, i):
        """Known keys of other images, if the anchor is known."""
        return [
            j
            for j in range(self.count)
            if self.labels[i] >= 0
            and self.key_labels[j] >= 0
            and self.valid[j]
            and not (j < len(self.images) and self.images[j] == self.images[i])
        ]

    def triplets(self):
        return [
            (a, p, n) for a in self.anchors for p in self.positives(a) for n in self.negatives(a)
        ]


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


DISTANCES = {
    "l2": lambda x, y: np.sqrt(np.sum((x - y) ** 2)),
    "squared_l2": lambda x, y: np.sum((x - y) ** 2),
    "l1": lambda x, y: np.sum(np.abs(x - y)),
    "cosine": lambda x, y: 1 - np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y),
    "dot": lambda x, y: -np.dot(x, y),
    "lp": lambda x, y: np.sum(np.abs(x - y) ** 3) ** (1 / 3),  # p = 3
    "snr": lambda x, y: np.var(x - y) / np.var(x),
}


def kind(t, margin):
    if t <= 0:
        return "hard"
    return "semihard" if t <= margin else "easy"


def mined(world, mining, margin):
    """The triplets that a mining takes, by looking at all of them."""
    d = world.d
    if mining == "all":
        return world.triplets()
    if mining in ("hard", "semihard", "easy"):
        return [
            x for x in world.triplets() if kind(d[x[0], x[2]] - d[x[0], x[1]], margin) == mining
        ]
    if mining == "violating":
        return [x for x in world.triplets() if d[x[0], x[2]] - d[x[0], x[1]] <= margin]
    out = []
    for a in world.anchors:
        positives, negatives = world.positives(a), world.negatives(a)
        if not positives or not negatives:
            continue
        if mining == "batch_hard":
            out.append(
                (a, max(positives, key=lambda j: d[a, j]), min(negatives, key=lambda j: d[a, j]))
            )
            continue
        if mining == "easy_positive":
            p = min(positives, key=lambda j: d[a, j])
            farther = [n for n in negatives if d[a, n] > d[a, p]]
            if farther:
                out.append((a, p, min(farther, key=lambda j: d[a, j])))
            continue
        for p in positives:
            farther = [n for n in negatives if d[a, n] > d[a, p]]
            if mining == "closest_semihard":
                farther = [n for n in farther if d[a, n] - d[a, p] <= margin]
            if farther:
                out.append((a, p, min(farther, key=lambda j: d[a, j])))
            elif mining == "facenet":
                out.append((a, p, max(negatives, key=lambda j: d[a, j])))
    return out


def softplus(x):
    return np.log1p(np.exp(-abs(x))) + max(x, 0)


def relu(x):
    return max(x, 0.0)


def mean(values):
    return sum(values) / len(values) if len(values) else 0.0


def average(costs, reduction):
    return mean([c for c in costs if c > 0] if reduction == "nonzero" else costs)


def triplet(world, margin, mining="all", reduction="nonzero", swap=False, smooth=False):
    costs = []
    for a, p, n in mined(world, mining, margin):
        far = world.d[a, n]
        if swap:
            far = min(far, world.measure(world.keys[p], world.keys[n]))
        gap = world.d[a, p] - far + margin
        costs.append(softplus(gap) if smooth else relu(gap))
    return average(costs, reduction)


def margin_loss(world, margin, beta, mining="all", reduction="nonzero", nu=0.0):
    beta = np.broadcast_to(beta, len(world.anchors))
    near, far = [], []
    for a, p, n in mined(world, mining, margin):
        near.append(relu(world.d[a, p] - beta[a] + margin))
        far.append(relu(beta[a] - world.d[a, n] + margin))
    if reduction == "nonzero":
        return average(near + far, "nonzero") + nu * mean(beta)
    return mean([x + y for x, y in zip(near, far, strict=True)]) + nu * mean(beta)


def nt_logistic(world, temperature, mining="all"):
    chosen = mined(world, "all" if mining == "all" else "closest_semihard", np.inf)
    return mean(
        [
            softplus(-world.s[a, p] / temperature) + softplus(world.s[a, n] / temperature)
            for a, p, n in chosen
        ]
    )


def nt_xent_pairs(world, temperature, mining="all"):
    costs = []
    for a in world.anchors:
        for p in world.positives(a):
            own = np.exp(world.s[a, p] / temperature)
            negatives = [
                n for n in world.negatives(a) if mining == "all" or world.s[a, n] < world.s[a, p]
            ]
            others = sum(np.exp(world.s[a, n] / temperature) for n in negatives)
            if negatives:
                costs.append(-np.log(own / (own + others)))
    return mean(costs)


def mined_pairs(world, mining, pos_margin, neg_margin, epsilon=0.1):
    """(positive pairs, negative pairs)."""
    d, near, far = world.d, [], []
    for i in world.anchors:
        positives, negatives = world.positives(i), world.negatives(i)
        if mining == "hard":
            negatives = [n for n in negatives if d[i, n] < pos_margin]
        elif mining == "semihard":
            negatives = [n for n in negatives if pos_margin <= d[i, n] < neg_margin]
        elif mining == "easy":
            negatives = [n for n in negatives if d[i, n] >= neg_margin]
        elif mining == "pair_margin":
            positives = [p for p in positives if d[i, p] > pos_margin]
            negatives = [n for n in negatives if d[i, n] < neg_margin]
        elif mining == "multi_similarity":
            farthest = max((d[i, p] for p in positives), default=-np.inf)
            nearest = min((d[i, n] for n in negatives), default=np.inf)
            positives = [p for p in positives if d[i, p] + epsilon > nearest]
            negatives = [n for n in negatives if d[i, n] - epsilon < farthest]
        elif mining in ("batch_hard", "easy_positive"):
            chosen = [x for x in mined(world, mining, 0) if x[0] == i]
            positives, negatives = [x[1] for x in chosen], [x[2] for x in chosen]
        near += [(i, p) for p in positives]
        far += [(i, n) for n in negatives]
    return near, far


def margin_contrastive(
    world, pos_margin, neg_margin, mining="all", reduction="nonzero", kinds=None, epsilon=0.1
):
    """`kinds`: the margins that the mining goes by, if they are others."""
    near, far = mined_pairs(world, mining, *(kinds or (pos_margin, neg_margin)), epsilon)
    pull = [relu(world.d[pair] - pos_margin) for pair in near]
    push = [relu(neg_margin - world.d[pair]) for pair in far]
    return average(pull, reduction) + average(push, reduction)


def hadsell(world, margin, mining="all", kinds=None, epsilon=0.1):
    near, far = mined_pairs(world, mining, *(kinds or (0, margin)), epsilon)
    pull = [world.d[pair] ** 2 / 2 for pair in near]
    return mean(pull + [relu(margin - world.d[pair]) ** 2 / 2 for pair in far])


def lifted_structure(world, pos_margin, neg_margin):
    costs = []
    for i in world.anchors:
        for j in world.positives(i):
            push = [np.exp(neg_margin - world.d[i, n]) for n in world.negatives(i)]
            if j < len(world.rows):
                push += [np.exp(neg_margin - world.d[j, n]) for n in world.negatives(j)]
            if push:
                costs.append(relu(np.log(sum(push)) + world.d[i, j] - pos_margin) ** 2 / 2)
    return mean(costs)


def circle(world, margin, scale, fixed=None):
    """`fixed`: the similarities of which the weights are made, for differentiation."""
    fixed, costs = world.s if fixed is None else fixed, []
    for i in world.anchors:
        positives, negatives = world.positives(i), world.negatives(i)
        if not positives or not negatives:
            continue
        pull = sum(
            np.exp(-scale * relu(1 + margin - fixed[i, p]) * (world.s[i, p] - 1 + margin))
            for p in positives
        )
        push = sum(
            np.exp(scale * relu(fixed[i, n] + margin) * (world.s[i, n] - margin)) for n in negatives
        )
        costs.append(softplus(np.log(pull) + np.log(push)))
    return average(costs, "nonzero")


def fast_ap(world, bins):
    edges, costs = [4 * k / bins for k in range(bins + 1)], []
    for i in world.anchors:
        positives, negatives = world.positives(i), world.negatives(i)
        if not positives:
            continue
        near, every = np.zeros(bins + 1), np.zeros(bins + 1)
        for j in positives + negatives:
            for k, edge in enumerate(edges):
                share = relu(
                    1 - abs(np.sum((world.rows[i] - world.keys[j]) ** 2) - edge) * bins / 4
                )
                every[k] += share
                near[k] += share if j in positives else 0
        precision = sum(
            near[k] * near[: k + 1].sum() / every[: k + 1].sum()
            for k in range(bins + 1)
            if near[k] > 0
        )
        costs.append(1 - precision / len(positives))
    return mean(costs)


def multi_similarity(world, alpha, beta, base, mining="all", epsilon=0.1):
    costs = []
    for i in world.anchors:
        positives, negatives = world.positives(i), world.negatives(i)
        if mining == "multi_similarity":
            hardest = max((world.s[i, n] for n in negatives), default=-np.inf)
            easiest = min((world.s[i, p] for p in positives), default=np.inf)
            positives = [p for p in positives if world.s[i, p] - epsilon < hardest]
            negatives = [n for n in negatives if world.s[i, n] + epsilon > easiest]
        pull = sum(np.exp(-alpha * (world.s[i, p] - base)) for p in positives)
        push = sum(np.exp(beta * (world.s[i, n] - base)) for n in negatives)
        if world.labels[i] >= 0:
            costs.append(np.log(1 + pull) / alpha + np.log(1 + push) / beta)
    return mean(costs)


def nca(world, scale):
    costs = []
    for i in world.anchors:
        positives, negatives = world.positives(i), world.negatives(i)
        if positives:
            weight = {
                j: np.exp(-scale * np.sum((world.rows[i] - world.keys[j]) ** 2))
                for j in positives + negatives
            }
            costs.append(-np.log(sum(weight[j] for j in positives) / sum(weight.values())))
    return mean(costs)


def n_pairs(z, labels, l2=0.0, images=None):
    firsts, seconds = [], []
    images = list(range(len(z))) if images is None else list(images)
    for label in sorted({x for x in labels if x >= 0}):
        own = [i for i, x in enumerate(labels) if x == label and images[i] not in images[:i]]
        if len(own) > 1:
            firsts.append(own[0])
            seconds.append(own[1])
    costs = []
    for a, p in zip(firsts, seconds, strict=True):
        s = [np.dot(z[a], z[j]) for j in seconds]
        costs.append(np.log(sum(np.exp(s))) - np.dot(z[a], z[p]))
    return mean(costs) + l2 / 2 * mean([np.dot(z[i], z[i]) for i in firsts + seconds])


def proxy_nca(z, labels, proxies, scale, denominator):
    z, proxies, costs = unit(z), unit(proxies), []
    for row, label in zip(z, labels, strict=True):
        if label >= 0:
            weight = np.exp(-scale * np.sum((proxies - row) ** 2, axis=1))
            below = weight.sum() - (weight[label] if denominator == "others" else 0)
            costs.append(-np.log(weight[label] / below))
    return mean(costs)


def proxy_anchor(z, labels, proxies, margin, alpha):
    z, proxies = unit(z), unit(proxies)
    pull, push = [], []
    for number, proxy in enumerate(proxies):
        near = [
            np.exp(-alpha * (np.dot(x, proxy) - margin))
            for x, y in zip(z, labels, strict=True)
            if y == number
        ]
        far = [
            np.exp(alpha * (np.dot(x, proxy) + margin))
            for x, y in zip(z, labels, strict=True)
            if y >= 0 and y != number
        ]
        if near:
            pull.append(np.log(1 + sum(near)))
        push.append(np.log(1 + sum(far)))
    return mean(pull) + mean(push)


def arcface(z, labels, proxies, margin, scale):
    z, proxies, costs = unit(z), unit(proxies), []
    m = np.deg2rad(margin)
    for row, label in zip(z, labels, strict=True):
        if label >= 0:
            s = proxies @ row
            angle = np.arccos(np.clip(s[label], -1, 1))
            s[label] = np.cos(angle + m) if angle + m <= np.pi else s[label] - m * np.sin(m)
            costs.append(np.log(sum(np.exp(scale * s))) - scale * s[label])
    return mean(costs)


def gradient(function, x, step=1e-6):
    """By central differences."""
    out = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        out[index] = (function(up) - function(down)) / (2 * step)
    return out
