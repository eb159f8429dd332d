"""The streaming forms: the batch forms' numbers, stopped anywhere, untouched by what is refused."""

import numpy as np
import pytest
import reference_scores as reference
from hypothesis import given
from hypothesis import strategies as st
from recordings import presentations, same, tracks, updates

import shardsieve as ss
from shardsieve import scores
from shardsieve.scores import (
    StreamingDUAL,
    StreamingDynamicUncertainty,
    StreamingForgetting,
    StreamingTDDS,
)


@given(tracks(least_epochs=3), st.booleans(), st.booleans(), st.data())
def test_streaming_dynamic_uncertainty_is_the_batch_form_to_the_bit(q, last, population, data):
    window = data.draw(st.integers(2, len(q) - (not last)))
    options = {"include_last": last, "population": population}
    stream = StreamingDynamicUncertainty(q.shape[1], window, **options)
    for epoch, positions in updates(np.ones_like(q), np.random.default_rng(0)):
        stream.update(positions, q[epoch, positions])
    np.testing.assert_array_equal(stream.score(), scores.dynamic_uncertainty(q, window, **options))


@given(tracks(least_epochs=3), st.booleans(), st.data())
def test_streaming_tdds_is_the_batch_form_to_the_bit(d, squared, data):
    window = data.draw(st.integers(3, len(d) + 1))
    stream = StreamingTDDS(d.shape[1], window, 0.8, squared=squared)
    for epoch, positions in updates(np.ones_like(d), np.random.default_rng(0)):
        stream.update(positions, d[epoch, positions])
    want = scores.tdds_from_divergence(d, window, 0.8, squared=squared)
    np.testing.assert_array_equal(stream.score(), want)


@given(presentations(), st.sampled_from(["hardest", "easiest"]))
def test_streaming_forgetting_is_the_batch_form(recorded, never_learned):
    right, shown = recorded
    stream = StreamingForgetting(right.shape[1])
    for epoch, positions in updates(shown, np.random.default_rng(0)):
        stream.update(positions, right[epoch, positions])
    want = reference.forgetting(right.tolist(), shown.tolist(), never_learned)
    same(stream.score(never_learned), want)


def test_a_sample_that_missed_epochs_is_scored_from_the_values_it_has():
    rng = np.random.default_rng(3)
    tracks_of = [rng.random(9), rng.random(5)]
    stream = StreamingDynamicUncertainty(2, 4)
    for epoch in range(9):
        shown = np.flatnonzero([True, epoch % 2 == 0])
        stream.update(shown, [tracks_of[i][epoch // (1 + i)] for i in shown])
    want = [scores.dynamic_uncertainty(track[:, None], 4)[0] for track in tracks_of]
    np.testing.assert_array_equal(stream.score(), want)


def test_without_settings_they_are_the_batch_forms_without_settings():
    values, everyone = np.random.default_rng(2).random((15, 3)), np.arange(3)
    for stream, batch in (
        (StreamingDynamicUncertainty(3), scores.dynamic_uncertainty),
        (StreamingDUAL(3), scores.dual),
        (StreamingTDDS(3), scores.tdds_from_divergence),
    ):
        for row in values:
            stream.update(everyone, row)
        np.testing.assert_array_equal(stream.score(), batch(values))


def test_a_state_of_squared_norms_is_not_one_of_norms():
    norms, squares = StreamingTDDS(2, 3), StreamingTDDS(2, 3, squared=True)
    for one, other in ((norms, squares), (squares, norms)):
        with pytest.raises(ValueError, match="state must hold "):
            one.load_state_dict(other.state_dict())


STREAMS = {
    "dynamic uncertainty": lambda: StreamingDynamicUncertainty(4, 3),
    "tdds": lambda: StreamingTDDS(4, 3, 0.6),
    "forgetting": lambda: StreamingForgetting(4),
}


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("stop", range(8))
def test_stopping_anywhere_changes_nothing(make, stop):
    values = np.random.default_rng(1).integers(0, 2, size=(7, 4))
    whole, first = make(), make()
    everyone = np.arange(4)
    for row in values:
        whole.update(everyone, row)
    for row in values[:stop]:
        first.update(everyone, row)
    saved = first.state_dict()
    first.update(everyone, values[0])
    for _ in range(2):  # what goes on from a state leaves the state alone
        second = make()
        second.load_state_dict(saved)
        for row in values[stop:]:
            second.update(everyone, row)
        np.testing.assert_array_equal(second.score(), whole.score())
    assert whole.score().any()


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
def test_a_refused_update_adds_nothing(make):
    stream = make()
    before = stream.state_dict()
    with pytest.raises(ValueError, match="values must"):
        stream.update([0, 1], [1.0, -1.0])
    with pytest.raises(ValueError, match="positions must"):
        stream.update([1, 1], [1.0, 1.0])
    after = stream.state_dict()
    assert len(after) >= 5
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


def test_a_probability_a_hair_above_1_counts_as_1():
    """Scores stay in their ranges, and rules take them."""
    above = np.full((3, 2), 1 + 9e-7)
    assert scores.confidence(above).tolist() == [1, 1]
    assert scores.cross_entropy(above, [0, 0, 0]).tolist() == [0, 0, 0]
    assert scores.entropy(above).tolist() == [0, 0, 0]
    assert scores.least_confidence(above).tolist() == [0, 0, 0]
    assert ss.keep_beta(scores.dual(above, 2), scores.confidence(above), 0.5).tolist() == [0]
    streamed = StreamingDUAL(2, window=2)
    for row in above[:2] * [1, 0.5]:
        streamed.update([0, 1], row)
    assert (streamed.score() == scores.dual(above[:2] * [1, 0.5], 2)).all()
