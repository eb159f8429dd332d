"""What scorers refuse: the message names the value, where it stands, and the cure."""

import numpy as np
import pytest

from shardsieve import scores
from shardsieve.scores import (
    StreamingDynamicUncertainty,
    StreamingForgetting,
    StreamingTDDS,
    oriented,
)

HALF = np.full((8, 3), 0.5)
PAIR = [[0.5, 0.5], [0.5, 0.5]]
NAN_TRACK = HALF.copy()
NAN_TRACK[6, 1] = NAN_TRACK[2, 2] = NAN_TRACK[7, 1] = np.nan

REFUSED = {
    "too short": (
        lambda: scores.dynamic_uncertainty(HALF),
        r"^p_true must have more than window=10 epochs, got 8; "
        r"train longer or pass a smaller window$",
    ),
    "as long as the window": (
        lambda: scores.dynamic_uncertainty(HALF, 8),
        r"^p_true must have more than window=8 epochs, got 8; ",
    ),
    "too short once skipped": (
        lambda: scores.dynamic_uncertainty(HALF, 6, skip_epochs=2),
        r"^p_true must have more than window=6 epochs, got 6 after skip_epochs=2; ",
    ),
    "too short for dual": (
        lambda: scores.dual(HALF, 9),
        r"^p_true must have at least window=9 epochs, got 8; train longer",
    ),
    "too short for tdds": (
        lambda: scores.tdds(np.full((4, 1, 2), 0.5), 5),
        r"^probs must have at least window=5 epochs, got 4; train longer",
    ),
    "too few divergences": (
        lambda: scores.tdds_from_divergence(HALF),
        r"^divergence must have at least window - 1 = 9 rows, got 8; train longer",
    ),
    "window of one": (
        lambda: scores.dynamic_uncertainty(HALF, 1),
        r"^window must be a whole number of at least 2, got 1; ",
    ),
    "window of half an epoch": (
        lambda: scores.dual(HALF, 2.5),
        r"^window must be a whole number of at least 2, got 2\.5; ",
    ),
    "a single divergence per window": (
        lambda: scores.tdds_from_divergence(HALF, 2),
        r"^window must be a whole number of at least 3, got 2; ",
    ),
    "negative skip": (
        lambda: scores.dynamic_uncertainty(HALF, 2, skip_epochs=-1),
        r"^skip_epochs must be a whole number of at least 0, got -1; ",
    ),
    "decay of zero": (
        lambda: scores.tdds_from_divergence(HALF, 3, 0.0),
        r"^decay must lie in \(0, 1\], got 0\.0; ",
    ),
    "first sample that is NaN": (
        lambda: scores.confidence(NAN_TRACK),
        r"^p_true must be finite, got nan for sample 1 in epoch 6 \(3 of 24 values\); record",
    ),
    "infinite logit": (
        lambda: scores.aum([[[0.0, 1.0], [np.inf, 0.0]]], [0, 1]),
        r"^logits must be finite, got inf for sample 1 in epoch 0 \(1 of 4 values\); ",
    ),
    "logits as probabilities": (
        lambda: scores.el2n([PAIR, [[0.5, 0.5], [-3.0, 4.0]]], [0, 1]),
        r"^probs must lie in \[0, 1\], got -3\.0 for sample 1 in run 1 \(2 of 8 values\); "
        r"pass probabilities, not logits$",
    ),
    "percent": (
        lambda: scores.variability([[0.5, 50.0]]),
        r"^p_true must lie in \[0, 1\], got 50\.0 for sample 1 in epoch 0 ",
    ),
    "missing axis": (
        lambda: scores.entropy([0.5, 0.5]),
        r"^probs must have shape \(n, C\), got \(2,\); ",
    ),
    "too many axes": (
        lambda: scores.el2n(np.zeros((1, 1, 1, 2)), [0]),
        r"^probs must have shape \(n, C\) or \(R, n, C\), got \(1, 1, 1, 2\); ",
    ),
    "no epochs": (
        lambda: scores.confidence(np.zeros((0, 3))),
        r"^p_true must have an entry along every axis of \(T, n\), got shape \(0, 3\); ",
    ),
    "label out of range": (
        lambda: scores.el2n(PAIR, [1, 2]),
        r"^labels must lie in \[0, 2\), got 2 for sample 1 \(1 of 2 values\); ",
    ),
    "negative label": (
        lambda: scores.cross_entropy(PAIR, [-1, 0]),
        r"^labels must lie in \[0, 2\), got -1 for sample 0 ",
    ),
    "labels of another length": (
        lambda: scores.aum([PAIR], [0]),
        r"^labels must have shape \(2,\), got \(1,\); pass one per sample$",
    ),
    "fractional labels": (
        lambda: scores.el2n(PAIR, [0.5, 1.0]),
        r"^labels must be integers, got float64; ",
    ),
    "features of another length": (
        lambda: scores.grand_last_layer(PAIR, [0, 1], [[1.0]]),
        r"^features must have shape \(2, D\), as probs has, got \(1, 1\); ",
    ),
    "epochs of different samples": (
        lambda: scores.divergence(PAIR, PAIR[:1]),
        r"^p_before must have the shape of p_next, \(2, 2\), got \(1, 2\); ",
    ),
    "one class has no margin": (
        lambda: scores.margin([[1.0]]),
        r"^probs must have at least 2 classes, got 1; ",
    ),
    "one class has no aum": (
        lambda: scores.aum([[[1.0]]], [0]),
        r"^logits must have at least 2 classes, got 1; ",
    ),
    "probabilities as truths": (
        lambda: scores.forgetting([[1.0, 0.7]]),
        r"^correct must be true or false, got 0\.7 for sample 1 in epoch 0 ",
    ),
    "presented of another shape": (
        lambda: scores.forgetting([[True, False]], presented=[[True]]),
        r"^presented must have the shape of correct, \(1, 2\), got \(1, 1\); ",
    ),
    "no such end": (
        lambda: scores.forgetting([[True]], "zero"),
        r"^never_learned must be 'hardest' or 'easiest', got 'zero'; ",
    ),
    "no such score": (
        lambda: oriented("eln2", [1.0]),
        r"^name must be one of aum, confidence, .*, got 'eln2'; ",
    ),
    "embeddings without columns": (
        lambda: scores.k_means(np.zeros((3, 0)), 1),
        r"^embeddings must have shape \(n, D\) with n >= clusters=1 and D >= 1, got \(3, 0\); ",
    ),
    "distances of several runs": (
        lambda: oriented("moderate_distance", [[1.0, 2.0]]),
        r"^values of moderate_distance must have shape \(n,\), got \(1, 2\)",
    ),
    "score too early": (
        lambda: StreamingDynamicUncertainty(2, 3).score(),
        r"^updates must bring more than window=3 values per sample, got 0 for sample 0; train",
    ),
    "tdds too early": (
        lambda: StreamingTDDS(2, 3).score(),
        r"^updates must bring at least window - 1 = 2 values per sample, got 0 for sample 0; ",
    ),
    "position out of range": (
        lambda: StreamingForgetting(2).update([0, 2], [True, True]),
        r"^positions must lie in \[0, 2\), got 2; ",
    ),
    "position twice": (
        lambda: StreamingForgetting(2).update([1, 1], [True, True]),
        r"^positions must be unique within an update, got 1 more than once; ",
    ),
    "positions of two axes": (
        lambda: StreamingForgetting(2).update([[0, 1]], [True, True]),
        r"^positions must have shape \(b,\), got \(1, 2\); ",
    ),
    "mask for positions": (
        lambda: StreamingForgetting(2).update([True, False], [True, True]),
        r"^positions must be integers, got bool; ",
    ),
    "one truth for two positions": (
        lambda: StreamingForgetting(2).update([0, 1], [True]),
        r"^values must have shape \(2,\), got \(1,\); pass one per position$",
    ),
    "one value for two positions": (
        lambda: StreamingTDDS(2).update([0, 1], [1.0]),
        r"^values must have shape \(2,\), got \(1,\); pass one per position$",
    ),
    "streamed logit": (
        lambda: StreamingDynamicUncertainty(9).update([8, 4, 6], [0.5, 3.0, np.nan]),
        r"^values must lie in \[0, 1\], got 3\.0 for sample 4; ",
    ),
    "streamed NaN": (
        lambda: StreamingTDDS(9).update([8], [np.nan]),
        r"^values must be finite and at least 0, got nan for sample 8; ",
    ),
    "negative size": (
        lambda: StreamingTDDS(-1),
        r"^num_samples must be a whole number of at least 0, got -1; ",
    ),
    "state of another window": (
        lambda: StreamingTDDS(2, 5).load_state_dict(StreamingTDDS(2, 4).state_dict()),
        r"^state must have window=5, got 4; ",
    ),
    "state of another scorer": (
        lambda: StreamingTDDS(2).load_state_dict(StreamingForgetting(2).state_dict()),
        r"^state must hold average, count, .*, got before, ",
    ),
    "state of another size": (
        lambda: StreamingForgetting(2).load_state_dict(StreamingForgetting(3).state_dict()),
        r"^state must have num_samples=2, got 3; ",
    ),
    "cut state": (
        lambda: StreamingForgetting(2).load_state_dict(
            StreamingForgetting(2).state_dict() | {"events": [1]}
        ),
        r"^state must have events of shape \(2,\), got \(1,\); ",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_argument_is_refused_with_its_value_and_a_cure(call, message):
    with pytest.raises(ValueError, match=message):
        call()
