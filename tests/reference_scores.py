"""The scores again, from their formulas: Python floats and loops, nothing of shardsieve.

`q[t][i]` is the probability of sample i's label in epoch t, `p[t][i][c]` that of class c.
"""

import math


def dynamic_uncertainty(q, window, include_last=False, population=False, skip_epochs=0):
    scores = []
    for i in range(len(q[0])):
        track = [row[i] for row in q][skip_epochs:]
        last_start = len(track) - window if include_last else len(track) - window - 1
        spreads = []
        for k in range(last_start + 1):
            values = [track[k + j] for j in range(window)]
            centre = math.fsum(values) / window
            squares = math.fsum((value - centre) ** 2 for value in values)
            spreads.append(math.sqrt(squares / (window if population else window - 1)))
        scores.append(math.fsum(spreads) / len(spreads))
    return scores


def dual(q, window):
    scores = []
    for i in range(len(q[0])):
        terms = []
        for k in range(len(q) - window + 1):
            values = [q[k + j][i] for j in range(window)]
            centre = math.fsum(values) / window
            squares = math.fsum((value - centre) ** 2 for value in values)
            terms.append(math.sqrt(squares / (window - 1)) * (1 - centre))
        scores.append(math.fsum(terms) / len(terms))
    return scores


def divergence(after, before, kl=False):
    moved = []
    for new, old in zip(after, before, strict=True):
        terms = [
            a * (math.log(a + 1e-8) - math.log(b + 1e-8)) for a, b in zip(new, old, strict=True)
        ]
        moved.append(abs(math.fsum(terms)) if kl else math.fsum(abs(term) for term in terms))
    return moved


def tdds(p, window, decay, kl=False, squared=False):
    num_epochs = len(p)
    d = [divergence(p[t + 1], p[t], kl) for t in range(num_epochs - 1)]
    scores = []
    for i in range(len(p[0])):
        score = 0.0
        for k in range(num_epochs - window + 1):
            values = [d[m][i] for m in range(k, k + window - 1)]
            centre = math.fsum(values) / len(values)
            norm = math.sqrt(math.fsum((value - centre) ** 2 for value in values))
            weight = decay * (1 - decay) ** (num_epochs - window - k)
            score += weight * (norm**2 if squared else norm)
        scores.append(score)
    return scores


def confidence(q):
    return [math.fsum(row[i] for row in q) / len(q) for i in range(len(q[0]))]


def threshold_closeness(q):
    closest = []
    for i in range(len(q[0])):
        right = math.fsum(row[i] for row in q) / len(q)
        wrong = math.fsum(1.0 - row[i] for row in q) / len(q)
        closest.append(right * wrong)
    return closest


def variability(q):
    means = confidence(q)
    return [
        math.sqrt(math.fsum((row[i] - means[i]) ** 2 for row in q) / len(q))
        for i in range(len(means))
    ]


def el2n(runs, labels):
    scores = []
    for i, label in enumerate(labels):
        norms = []
        for p in runs:
            squares = [(value - (1.0 if c == label else 0.0)) ** 2 for c, value in enumerate(p[i])]
            norms.append(math.sqrt(math.fsum(squares)))
        scores.append(math.fsum(norms) / len(norms))
    return scores


def grand_last_layer(p, labels, features, bias):
    """The gradient written out: one entry per weight of the last layer, then its biases."""
    scores = []
    for row, label, h in zip(p, labels, features, strict=True):
        errors = [value - (1.0 if c == label else 0.0) for c, value in enumerate(row)]
        gradient = [error * x for error in errors for x in h]
        if bias:
            gradient += errors
        scores.append(math.sqrt(math.fsum(entry**2 for entry in gradient)))
    return scores


def entropy(p):
    return [math.fsum(-v * math.log(v) for v in row if v > 0) for row in p]


def margin(p):
    scores = []
    for row in p:
        first, second = sorted(row, reverse=True)[:2]
        scores.append(first - second)
    return scores


def cross_entropy(p, labels):
    smallest_normal = 2.0**-1022
    return [-math.log(max(p[i][label], smallest_normal)) for i, label in enumerate(labels)]


def forgetting(correct, presented, never_learned):
    scores = []
    for i in range(len(correct[0])):
        history = [correct[t][i] for t in range(len(correct)) if presented[t][i]]
        events = 0
        for m in range(1, len(history)):
            if history[m - 1] and not history[m]:
                events += 1
        if True not in history:
            events = len(history) if never_learned == "hardest" else 0
        scores.append(float(events))
    return scores


def aum(logits, labels):
    scores = []
    for i, label in enumerate(labels):
        margins = []
        for z in logits:
            others = [value for c, value in enumerate(z[i]) if c != label]
            margins.append(z[i][label] - max(others))
        scores.append(math.fsum(margins) / len(margins))
    return scores


def frequency(q):
    num_epochs = len(q)
    scores = []
    for i in range(len(q[0])):
        total = []
        for k in range(1, num_epochs):
            turns = [2 * math.pi * k * t / num_epochs for t in range(num_epochs)]
            real = math.fsum(q[t][i] * math.cos(turns[t]) for t in range(num_epochs))
            imaginary = math.fsum(q[t][i] * math.sin(turns[t]) for t in range(num_epochs))
            total.append(math.hypot(real, imaginary))
        scores.append(math.fsum(total))
    return scores


def cosine(a, b):
    lengths = math.hypot(*a) * math.hypot(*b)
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def nearest(point, centres, metric):
    """The number of the nearest centre and its distance; ties go to the lower."""
    if metric == "cosine":
        apart = [1 - cosine(point, centre) for centre in centres]
    else:
        apart = [math.dist(point, centre) for centre in centres]
    return apart.index(min(apart)), min(apart)


def prototypicality(points, centres, metric):
    return [nearest(point, centres, metric)[1] for point in points]


def median(values):
    middle = sorted(values)
    half = len(middle) // 2
    return middle[half] if len(middle) % 2 else (middle[half - 1] + middle[half]) / 2


def moderate_distance(points, labels):
    distances = []
    for point, label in zip(points, labels, strict=True):
        own = [other for other, name in zip(points, labels, strict=True) if name == label]
        centre = [median(column) for column in zip(*own, strict=True)]
        distances.append(math.dist(point, centre))
    return distances


def semdedup(points, centres, first):
    own = [nearest(point, centres, "cosine") for point in points]
    scores = []
    for i, point in enumerate(points):
        largest = 0.0
        for j, other in enumerate(points):
            if own[j][0] != own[i][0] or i == j:
                continue
            sooner = own[j][1] > own[i][1] if first == "far" else own[j][1] < own[i][1]
            if sooner or (own[j][1] == own[i][1] and j < i):
                largest = max(largest, cosine(point, other))
        scores.append(min(largest, 1.0))
    return scores


def edges(neighbours, distances):
    """{i: {j: distance}}, each edge both ways."""
    graph = {i: {} for i in range(len(neighbours))}
    for i, row in enumerate(neighbours):
        for j, d in zip(row, distances[i], strict=True):
            if i != j:
                graph[i][j] = min(d, graph[i].get(j, math.inf))
                graph[j][i] = min(d, graph[j].get(i, math.inf))
    return graph


def message_passing(values, neighbours, distances):
    graph = edges(neighbours, distances)
    return [
        value + math.fsum(math.exp(-d) * values[j] for j, d in graph[i].items())
        for i, value in enumerate(values)
    ]


def d2(values, neighbours, distances, gamma, absolute):
    graph = edges(neighbours, distances)
    level = message_passing(values, neighbours, distances)
    left, order = set(range(len(values))), [0.0] * len(values)
    while left:
        best = min(left, key=lambda i: (-level[i], i))
        order[best] = float(len(left))
        left.remove(best)
        for j, d in graph[best].items():
            if j in left:
                level[j] -= level[best] * (1.0 if absolute else math.exp(-gamma * d))
    return order
