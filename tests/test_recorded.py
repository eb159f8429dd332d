"""Scores from recorded signals: what a specification names, and its options."""

from itertools import pairwise

import numpy as np
import pytest
import reference_scores as reference

from shardsieve import scores
from shardsieve.scores import RECORDED, from_signals
from shardsieve.scores.recorded import about, parsed


def signals(epochs=7, samples=5):
    rng = np.random.default_rng(0)
    p = rng.dirichlet([0.5] * 4, size=(epochs, samples))
    labels = rng.integers(4, size=samples)
    rows = np.arange(samples)
    moved = [np.full(samples, np.nan), *(scores.divergence(*pair[::-1]) for pair in pairwise(p))]
    found = {
        "p_true": p[:, rows, labels],
        "loss": -np.log(p[:, rows, labels]),
        "margin": rng.normal(size=(epochs, samples)),
        "gap": np.stack([scores.margin(q) for q in p]),
        "el2n": np.stack([scores.el2n(q, labels) for q in p]),
        "entropy": np.stack([scores.entropy(q) for q in p]),
        "correct": (p.argmax(axis=2) == labels).astype(float),
        "divergence": np.stack(moved),
        "grand": rng.random((epochs, samples)),
    }
    return found, p, labels


def test_every_recorded_score_is_its_own_function():
    found, p, labels = signals()
    q, last = found["p_true"], p[-1]
    want = {
        "dyn_unc": scores.dynamic_uncertainty(q, 4),
        "tdds": scores.tdds(p, 4),
        "el2n": scores.el2n(p, labels),
        "aum": -found["margin"].mean(axis=0),
        "confidence": -scores.confidence(q),
        "cross_entropy": scores.cross_entropy(last, labels),
        "dual": scores.dual(q, 4),
        "entropy": scores.entropy(last),
        "forgetting": scores.forgetting(found["correct"]),
        "frequency": scores.frequency(q),
        "grand_last_layer": found["grand"].mean(axis=0),
        "margin": -scores.margin(last),
        "threshold_closeness": scores.threshold_closeness(q),
        "variability": scores.variability(q),
    }
    assert set(want) == set(RECORDED)
    for name, values in want.items():
        got = from_signals(name, found, window=4)
        np.testing.assert_allclose(got.values, values, rtol=1e-9, err_msg=name)
        assert got.name == name


def test_options_of_a_score_are_in_its_name_and_definition():
    found, p, _ = signals()
    q = found["p_true"].tolist()
    official = from_signals("dyn_unc:variant=official:window=3", found)
    want = [10 * value for value in reference.dynamic_uncertainty(q, 3)]
    np.testing.assert_allclose(official.values, want)
    assert official.name == "dyn_unc.variant-official.window-3"
    assert official.definition == "dyn_unc(window=3, variant=official)"
    easiest = from_signals("forgetting:never_learned=easiest", found)
    np.testing.assert_array_equal(easiest.values, scores.forgetting(found["correct"], "easiest"))
    first = from_signals("dual:first=5", found, window=3)
    np.testing.assert_allclose(first.values, reference.dual(q[:5], 3))
    last = from_signals("tdds:last=5:decay=0.5:squared=true", found, window=3)
    np.testing.assert_allclose(last.values, reference.tdds(p[-5:].tolist(), 3, 0.5, squared=True))
    spread = from_signals("variability:first=6:last=3", found)
    np.testing.assert_allclose(spread.values, scores.variability(found["p_true"][3:6]))
    whole = from_signals("el2n:last=7", found)
    np.testing.assert_array_equal(whole.values, from_signals("el2n", found).values)


@pytest.mark.parametrize(
    "how",
    [
        {"include_last": True, "population": True, "skip_epochs": 1},
        {"variant": "dual", "include_last": False},
    ],
)
def test_options_of_dynamic_uncertainty_are_the_functions_own(how):
    found = signals()[0]
    spec = ":".join(f"{key}={value}" for key, value in how.items())
    got = from_signals(f"dyn_unc:{spec}", found, window=3)
    want = scores.dynamic_uncertainty(found["p_true"], 3, **how)
    np.testing.assert_array_equal(got.values, want)
    assert got.parameters == {"window": 3, **how}
    said = about(got)
    assert said["parameters"] == got.parameters
    assert "2306.05175" in said["paper"]


REFUSED = {
    "best": r"^score must be one of dyn_unc, tdds, .*, got 'best'; ",
    "aum:window=3": r"^options of the score 'aum' must be among first=\.\.\., last=\.\.\., got ",
    "dual:first": r"^options of the score 'dual' must be among .* got 'first' in 'dual:first'",
    "dual:first=x": r"^first must be a int, got 'x' in 'dual:first=x'",
    "tdds:squared=maybe": r"^squared must be a bool, got 'maybe' in",
    "dual:first=9": r"^first must be at most the 7 recorded epochs, got 9; ",
    "el2n:first=3:last=4": r"^last must be at most the 3 recorded epochs that first=3 leaves, ",
    "dual:last=0": r"^last must be a whole number of at least 1, got 0; ",
    "dual:last=3": r"^p_true must have at least window=10 epochs, got 3; ",
    "dyn_unc:variant=best": r"^variant must be one of paper, .*, got 'best'; ",
}


@pytest.mark.parametrize("spec", REFUSED)
def test_a_wrong_specification_is_refused(spec):
    with pytest.raises(ValueError, match=REFUSED[spec]):
        from_signals(spec, signals()[0])


def test_a_score_without_options_says_so():
    with pytest.raises(ValueError, match="options of the score 'moderate' must be among none, got"):
        parsed("moderate:k=1", {"moderate": {}})


def test_a_signal_that_is_not_finite_is_no_mean_of_others():
    with pytest.raises(ValueError, match=r"^signal must be finite, got nan "):
        from_signals("el2n", {"el2n": [[0.5], [np.nan]]})


def test_a_missing_signal_is_named():
    with pytest.raises(ValueError, match=r"^score 'margin' must have the signal 'gap', got loss; "):
        from_signals("margin", {"loss": np.zeros((3, 2))})
