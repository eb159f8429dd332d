"""Slow versions from the definitions, in plain Python floats; imports nothing of shardsieve."""

import math


def mean(values):
    return sum(values) / len(values)


def std(values, ddof):
    m = mean(values)
    return math.sqrt(sum((v - m) ** 2 for v in values) / (len(values) - ddof))


def dynamic_uncertainty(q, j):
    """q is one sample's probabilities by epoch; the last window is left out."""
    return mean([std(q[k : k + j], 1) for k in range(len(q) - j)])


def dual(q, j):
    windows = [q[k : k + j] for k in range(len(q) - j + 1)]
    return mean([std(w, 1) * (1 - mean(w)) for w in windows])


def tdds(p, j, a):
    """p[t][c] of one sample."""
    d = [
        sum(
            abs(y * (math.log(y + 1e-8) - math.log(x + 1e-8)))
            for x, y in zip(p[t], p[t + 1], strict=True)
        )
        for t in range(len(p) - 1)
    ]
    score, last = 0.0, len(p) - j
    for k in range(last + 1):
        window = d[k : k + j - 1]
        r = math.sqrt(sum((v - mean(window)) ** 2 for v in window))
        score += r * a * (1 - a) ** (last - k)
    return score


def knn(seeds, scores, point, k, weights):
    near = sorted((math.dist(s, point), v) for s, v in zip(seeds, scores, strict=True))[:k]
    if weights == "inverse" and near[0][0] == 0:
        return mean([v for d, v in near if d == 0])
    weigh = {
        "exp": lambda d: math.exp(near[0][0] - d),
        "mean": lambda d: 1.0,
        "inverse": lambda d: 1 / d,
    }[weights]
    return sum(weigh(d) * v for d, v in near) / sum(weigh(d) for d, _ in near)
