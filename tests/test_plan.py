import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardsieve.plan import TAILS, Steps, World


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 7), st.sampled_from(["pad", "drop"]))
def test_pad_covers_all_and_drop_loses_less_than_a_step(total, batch, world, tail):
    steps = Steps(total, batch, world, tail)
    spans = [steps.share(t, r) for t in range(len(steps)) for r in range(world)]
    places = [p for a, b in spans for p in range(a, b)]
    assert places == list(range(len(places)))
    assert len(places) == (total if tail == "pad" else total - total % (batch * world))
    assert {steps.rank_length(r) for r in range(world)} == {len(steps) * batch}


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 7))
def test_uneven_gives_each_sample_once_and_no_rank_an_empty_step(total, batch, world):
    steps = Steps(total, batch, world)
    seen, repeats = [], 0
    for step in range(len(steps)):
        shares = [steps.share(step, rank) for rank in range(world)]
        sizes = [steps.size(step, rank) for rank in range(world)]
        for start, stop in shares:
            assert start < steps.bounds(step)[1]  # what a rank without a sample repeats
            seen += range(start, stop)
        assert steps.places_done(step + 1) == len(seen)
        repeats += sum(sizes) - sum(stop - start for start, stop in shares)
        assert 1 <= min(sizes) <= max(sizes) <= batch
        assert max(sizes) - min(sizes) <= 1
    assert seen == list(range(total))
    assert (steps.places_done(0), steps.places_done(len(steps) + 1)) == (0, total)
    lends = batch > 1 and total >= world
    assert repeats == (0 if lends else -total % world)
    for rank in range(world):
        last = len(steps) - 1
        assert steps.rank_length(rank) == last * batch + steps.size(last, rank)


@given(
    st.integers(1, 60),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from(TAILS),
)
def test_weighted_means_of_ranks_have_the_mean_of_all_their_samples(
    total, batch, world, accumulate, tail
):
    steps, values = Steps(total, batch, world, tail), np.random.default_rng(total).random(total)
    for first in range(0, len(steps), accumulate):
        numbers = range(first, min(first + accumulate, len(steps)))
        means = []
        for rank in range(world):
            parts = [values[slice(*steps.share(step, rank))] for step in numbers]
            size = sum(steps.size(step, rank) for step in numbers)  # fillers count as zeros
            means.append(sum(map(np.sum, parts)) / size * steps.weight(rank, first, numbers.stop))
        begin, stop = steps.bounds(numbers[0])[0], steps.bounds(numbers[-1])[1]
        np.testing.assert_allclose(np.mean(means), values[begin:stop].mean())


def test_the_weight_of_whole_steps_is_one_exactly():
    for batch, world in ((7, 3), (1, 5), (96, 7)):
        steps = Steps(batch * world * 4, batch, world)
        assert {steps.weight(rank, 1, 4) for rank in range(world)} == {1.0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Steps(5, 0, 1), "batch_size must be at least 1"),
        (lambda: Steps(5, 1, 1, "even"), "tail must be one of"),
        (lambda: World(2, 2), r"rank must lie in \[0, 2\), got 2"),
        (lambda: World(0.5, 2), "rank and size must be whole numbers, got 0.5 of 2"),
        (lambda: World(0, 2.0), "rank and size must be whole numbers, got 0 of 2.0"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
