import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from shardsieve import scores

shapes = st.tuples(st.integers(4, 12), st.integers(1, 4), st.integers(2, 5), st.integers(0, 99))


def probs_of(epochs, n, num_classes, seed):
    raw = np.random.default_rng(seed).random((epochs, n, num_classes)) ** 4
    return raw / raw.sum(axis=-1, keepdims=True)


@given(shapes, st.integers(2, 3))
def test_window_scores_match_the_reference(shape, window):
    p = probs_of(*shape)
    q = p[:, :, 0]
    n = q.shape[1]
    pairs = [
        (scores.dynamic_uncertainty(q, window), reference.dynamic_uncertainty, (window,)),
        (scores.dual(q, window), reference.dual, (window,)),
    ]
    for got, slow, more in pairs:
        want = [slow(q[:, i].tolist(), *more) for i in range(n)]
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
    want = [reference.tdds(p[:, i].tolist(), window, 0.9) for i in range(n)]
    np.testing.assert_allclose(scores.tdds(p, window), want, rtol=1e-7, atol=1e-12)


def test_the_last_window_is_left_out_unless_asked_for():
    q = [[0.0], [0.0], [1.0]]
    assert scores.dynamic_uncertainty(q, 2).tolist() == [0.0]
    assert scores.dynamic_uncertainty(q, 2, include_last=True)[0] == pytest.approx(0.5**0.5 / 2)


def test_snapshot_scores_match_values_worked_by_hand():
    p = np.array([[0.6, 0.3, 0.1], [0.0, 1.0, 0.0]])
    y = [0, 0]
    assert scores.el2n(p, y) == pytest.approx([0.26**0.5, 2**0.5])
    assert scores.el2n([p, p[::-1]], y)[0] == pytest.approx((0.26**0.5 + 2**0.5) / 2)
    assert scores.grand_last_layer(p, y, [[3, 4], [0, 0]]) == pytest.approx(
        [(0.26 * 26) ** 0.5, 2**0.5]
    )
    assert scores.grand_last_layer(p, y, [[3, 4], [0, 0]], bias=False)[1] == 0
    assert scores.margin(p) == pytest.approx([0.3, 1.0])
    assert scores.entropy(p)[1] == 0
    assert scores.cross_entropy(p, [1, 1]) == pytest.approx([-np.log(0.3), 0])


def test_events_match_values_worked_by_hand():
    correct = [[1, 0, 0], [0, 0, 1], [1, 0, 1], [0, 0, 1]]
    assert scores.forgetting(correct).tolist() == [2, 4, 0]
    assert scores.forgetting(correct, "easiest").tolist() == [2, 0, 0]
    logits = [[[3.0, 1, 2]], [[0.0, 5, 1]]]
    assert scores.aum(logits, [0]).tolist() == [(1 - 5) / 2]
    assert scores.confidence([[0.0], [1.0]]).tolist() == [0.5]
    assert scores.variability([[0.0], [1.0]]).tolist() == [0.5]


def test_the_low_end_of_a_margin_is_kept_first():
    assert scores.oriented("aum", [1.0, -2.0]).tolist() == [-1, 2]
    assert scores.oriented("el2n", [1.0, 2.0]).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scores.dynamic_uncertainty(np.zeros((10, 2))), "at least 11 epochs .* got 10"),
        (lambda: scores.tdds(np.ones((3, 1, 2)) / 2), "at least 10 epochs"),
        (lambda: scores.el2n([[np.nan, 1]], [0]), r"got nan at \(0, 0\)"),
        (lambda: scores.el2n([[0.5, 0.5]], [2]), r"lie in \[0, 2\), got 2 for sample 0"),
        (lambda: scores.el2n([[0.5, 0.5]], [0, 1]), r"labels must have shape \(1,\)"),
        (lambda: scores.margin([[1.0]]), "at least 2 classes"),
        (lambda: scores.entropy([1.0]), "2 dimensions"),
        (lambda: scores.forgetting([[1]], "zero"), "never_learned must be"),
        (lambda: scores.oriented("best", [1]), "name must be one of"),
    ],
)
def test_bad_input_is_refused_with_its_case(call, message):
    with pytest.raises(ValueError, match=message):
        call()
