"""The hierarchical losses as the authors write them: lists of samples that get shorter, in NumPy float64 and loops."""

import numpy as np
import pair_oracles as oracle


def path(label, level):
    """The labels down to a level, as far as they are known; -1 from there on."""
    known = list(label[: level + 1])
    for n, value in enumerate(known):
        if value < 0:
            return (*known[:n], *[-1] * (len(known) - n))
    return tuple(known)


def agree(labels, i, j, level):
    a, b = path(labels[i], level), path(labels[j], level)
    return i == j or (a == b and -1 not in a)


def deduplicated(samples, labels, level):
    """The first sample of each path, in sorted order; all of those whose path is not known."""
    kept, seen = [], set()
    for i in sorted(samples, key=lambda i: path(labels[i], level)):  # a stable sort
        here = path(labels[i], level)
        if -1 in here or here not in seen:
            kept.append(i)
        seen.add(here)
    return kept


def pair_losses(z, labels, temperature, dedup):
    """For each level, finest first: its anchors (numbers of rows) -> [losses of their positive pairs]."""
    batch, views, _ = z.shape
    rows = oracle.unit_rows(z)
    s = (rows @ rows.T / temperature).tolist()
    samples, out = list(range(batch)), []
    for level in reversed(range(labels.shape[1])):
        everyone = [i * views + v for i in samples for v in range(views)]
        relatives = {i: [j for j in samples if agree(labels, i, j, level)] for i in samples}
        found = {}
        for anchor in everyone:
            others = [s[anchor][j] for j in everyone if j != anchor]
            whole = oracle.log_sum_exp(others) if others else -np.inf
            mine = [i * views + v for i in relatives[anchor // views] for v in range(views)]
            found[anchor] = [whole - s[anchor][j] for j in mine if j != anchor]
        out.append(found)
        if dedup:
            samples = deduplicated(samples, labels, level)
    return out


def masks(labels, views, dedup):
    """For each level, coarse to fine: which rows stand there, bool[N], and which pairs agree, bool[N, N]."""
    batch, levels = labels.shape
    image, samples, found = np.repeat(np.arange(batch), views), list(range(batch)), []
    for level in reversed(range(levels)):
        same = [[agree(labels, i, j, level) for j in image] for i in image]
        found.append((np.isin(image, samples), np.array(same)))
        if dedup:
            samples = deduplicated(samples, labels, level)
    return tuple(np.stack(x) for x in zip(*found[::-1], strict=True))


def mean_loss(level):
    """Mean over the anchors of the means of their pairs; an anchor without pairs counts as 0."""
    return sum(sum(pairs) / len(pairs) for pairs in level.values() if pairs) / len(level)


def constrained(levels, constraint):
    """(mean loss, share of floored terms) of each level, finest first; `levels` as `pair_losses`.

    The share is NaN where a mean equals its floor.
    """
    out = []
    running, worst, worst_of = -np.inf, -np.inf, {}
    for level in levels:
        if constraint in ("none", "layer_mean"):
            mean = mean_loss(level)
            floored = float(constraint == "layer_mean" and mean < running)
            if constraint == "layer_mean" and abs(mean - running) < 1e-9:
                floored = np.nan  # rounding says
            if constraint == "layer_mean":
                mean = running = max(running, mean)
            out.append((mean, floored))
            continue
        floors = {
            a: worst if constraint == "pair_global" else worst_of.get(a, -np.inf) for a in level
        }
        after = {a: [max(pair, floors[a]) for pair in pairs] for a, pairs in level.items()}
        held = sum(pair <= floors[a] + 1e-9 for a, pairs in level.items() for pair in pairs)
        count = sum(len(pairs) for pairs in level.values())
        out.append((mean_loss(after), held / max(count, 1)))
        worst = max([worst, *(pair for pairs in after.values() for pair in pairs)])
        for a, pairs in after.items():
            worst_of[a] = max([worst_of.get(a, -np.inf), *pairs])
    return out


def loss(z, labels, temperature, constraint, penalty, dedup, divisor, scale=1.0):
    """(loss, means of the levels, shares of floored terms), both coarse to fine."""
    levels = constrained(pair_losses(z, labels, temperature, dedup), constraint)
    base = {"exp": np.e, "pow2": 2.0, "constant": 1.0}[penalty]
    total = sum(base ** (1 / n) * mean for n, (mean, _) in enumerate(levels, 1))
    means, floored = (np.array(x[::-1]) for x in zip(*levels, strict=True))
    return scale * total / (len(levels) + (divisor == "levels+1")), means, floored
