"""Generated recordings of training, and how scores of them are compared."""

import numpy as np
from hypothesis import strategies as st

SEEDS = st.integers(0, 2**32 - 1)


def softmax(logits):
    grown = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return grown / grown.sum(axis=-1, keepdims=True)


@st.composite
def tracks(draw, least_epochs=1):
    """Probabilities of the label, (T, n): anything in [0, 1], its ends and repeats included."""
    shape = draw(st.integers(least_epochs, 16)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(SEEDS))
    q = rng.random(shape)
    return np.where(rng.random(shape) < 0.3, np.round(q), q)


@st.composite
def outputs(draw, least_epochs=1, least_classes=2):
    """Probabilities (T, n, C), some exactly 0 or 1, and labels (n,)."""
    shape = draw(st.integers(least_epochs, 14)), draw(st.integers(1, 5))
    num_classes = draw(st.integers(least_classes, 5))
    rng = np.random.default_rng(draw(SEEDS))
    p = softmax(rng.normal(size=(*shape, num_classes)) * draw(st.sampled_from([0.1, 1, 30])))
    certain = np.eye(num_classes)[rng.integers(num_classes, size=shape)]
    p = np.where(rng.random(shape)[..., None] < 0.2, certain, p)
    return p, rng.integers(num_classes, size=shape[1])


@st.composite
def presentations(draw):
    shape = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(SEEDS))
    right = rng.random(shape) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    return right, rng.random(shape) < draw(st.sampled_from([0.3, 0.8, 1.0]))


def same(got, want):
    assert got.shape == (len(want),)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12, equal_nan=False)


def updates(shown, rng):
    """Each epoch's samples in two shuffled batches: (epoch, positions)."""
    for epoch, row in enumerate(shown):
        positions = rng.permutation(np.flatnonzero(row))
        cut = rng.integers(len(positions) + 1)
        yield epoch, positions[:cut]
        yield epoch, positions[cut:]
