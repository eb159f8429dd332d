"""Rules from scores to keep sets again, in Python loops and exact fractions; nothing of shardsieve.

Scores are whole numbers or `Fraction`s, so that no edge of a bin is a matter of rounding.
"""

from fractions import Fraction


def rounded(product):
    """Half up, exactly."""
    return int((Fraction(product) + Fraction(1, 2)) // 1)


def cut(hardness, share):
    """The rows that are left without the hardest; of equals the higher row goes first."""
    gone = rounded(Fraction(share) * len(hardness)) if share else 0
    order = sorted(range(len(hardness)), key=lambda row: (hardness[row], row))
    return sorted(order[: len(hardness) - gone])


def bins_of(values, count):
    """Equal width; the top bin is closed."""
    low, high = min(values, default=0), max(values, default=0)
    if low == high:
        return [0] * len(values)
    width = Fraction(high - low, count)
    return [min(int(Fraction(value - low) // width), count - 1) for value in values]


def budgets(sizes, total):
    """Methods.md 5.2: from the smallest bin to the largest, min(size, left // bins left)."""
    given, left = [0] * len(sizes), total
    order = sorted(range(len(sizes)), key=lambda one: (sizes[one], one))
    for done, one in enumerate(order):
        given[one] = min(sizes[one], left // (len(sizes) - done))
        left -= given[one]
    return given


def quotas(sizes, total, floor=0):
    """Largest remainders; classes below their floor get it, the others share the rest."""
    fixed = {}
    while True:
        free = [c for c in range(len(sizes)) if c not in fixed]
        left, n = total - sum(fixed.values()), sum(sizes[c] for c in free)
        exact = {c: Fraction(left * sizes[c], n) for c in free}
        share = {c: int(value // 1) for c, value in exact.items()}
        for c in sorted(free, key=lambda c: (share[c] - exact[c], c))[: left - sum(share.values())]:
            share[c] += 1
        short = [c for c in free if share[c] < min(floor, sizes[c])]
        if not short:
            return [fixed.get(c, share.get(c)) for c in range(len(sizes))]
        fixed |= {c: min(floor, sizes[c]) for c in short}


def beta_weights(scores, confidence, fraction, exponent=4):
    """DUAL's weights as its code has them, by scipy's density."""
    from scipy.stats import beta

    highest = sorted(range(len(scores)), key=lambda row: -scores[row])[:10]
    mean = sum(confidence[row] for row in highest) / len(highest)
    removed = 1 - round(fraction * len(scores)) / len(scores)
    b = 15 * (1 - mean) * (1 - removed**exponent)
    weights = [beta.pdf(q, 16 - b, b) * s for q, s in zip(confidence, scores, strict=True)]
    return [weight / sum(weights) for weight in weights]


def drawn_shares(weights, count):
    """How often each is among `count` successive weighted draws, by all their orders."""
    from itertools import permutations

    shares = [0.0] * len(weights)
    for order in permutations(range(len(weights)), count):
        chance, left = 1.0, 1.0
        for row in order:
            chance *= weights[row] / left
            left -= weights[row]
        for row in order:
            shares[row] += chance
    return shares
