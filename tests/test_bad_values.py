"""What is no number, no id or no name is refused from Python too, and nothing is lost by it."""

import numpy as np
import pytest
import torch
from tars import write_shards

import shardsieve as ss

N = 9


@pytest.fixture
def store(tmp_path):
    """Two shards with a score and an embedding."""
    made = ss.index(write_shards(tmp_path / "d", [5, 4]), tmp_path / "s.zarr")
    made.put_score("mine", np.arange(N))
    made.embedding_array("points", 2)[:] = 1
    return made


NO_NUMBERS = {
    "complex": np.ones(N, dtype=complex),
    "text": np.array(["0.5"] * N),
    "dates": np.datetime64("2020-01-01") + np.arange(N),
    "masked": np.ma.masked_array(np.ones(N), mask=[True] + [False] * (N - 1)),
    "a dictionary": dict.fromkeys(range(N), 0.5),
    "a set": set(range(N)),
    "a generator": (0.5 for _ in range(N)),
    "sparse": torch.ones(N).to_sparse(),
    "beyond all floats": [10**400] * N,
}


@pytest.mark.parametrize("values", NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_values_that_are_no_real_numbers_are_refused_wherever_scores_are_taken(store, values):
    fit = ss.extrapolate.KNN(k=1).fit
    points = np.ones((N, 2), dtype=np.float32)
    for take in (
        lambda: store.put_score("new", values),
        lambda: ss.keep_top(values, 0.5),
        lambda: ss.keep_threshold(values, 0.5),
        lambda: fit(points, values),
        lambda: ss.scores.confidence(values),
    ):
        with pytest.raises(ValueError, match=r"real numbers|masked values"):
            take()
    assert store.scores == ["mine"]


def test_numbers_of_any_real_type_are_taken_alike(store):
    for values in (
        np.arange(N, dtype=">f8"),
        np.arange(N, dtype=object),
        np.ma.masked_array(np.arange(N)),
        torch.arange(N),
        np.repeat(np.arange(N), 2)[::2],
        range(N),
    ):
        store.put_score("mine", values)
        assert store.score("mine").tolist() == list(range(N))
    store.put_score("mine", [None, *range(N - 1)])
    assert np.isnan(store.score("mine")[0])


@pytest.mark.parametrize(
    "ids", [[1.5], [True] * N, ["1"], torch.tensor([1.0]), np.ma.masked_array([1, 2], [1, 0])]
)
def test_ids_never_go_through_a_float_or_a_mask(store, ids):
    for take in (store.rows, lambda ids: ss.KeepSet.from_ids(store, ids)):
        with pytest.raises(ValueError, match=r"ids must (be integers|hold no masked)"):
            take(ids)
    assert store.rows([]).tolist() == ss.KeepSet.from_ids(store, []).ids().tolist() == []


@pytest.mark.parametrize("mode", ["w", "a", "x", "rb", "", None])
def test_a_store_opened_in_another_mode_is_not_made_afresh(store, mode):
    with pytest.raises(ValueError, match="mode must be r or r"):
        ss.open_store(store.path, mode=mode)
    assert ss.open_store(store.path).scores == ["mine"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../score", "mine/..", None, 3, b"mine", "x" * 300]
)
def test_what_is_no_name_names_nothing_and_deletes_nothing(store, name):
    assert not store.has_score(name)
    for forget in (store.forget_score, store.forget_embedding, store.forget_pseudo_labels):
        forget(name)
    assert (store.scores, store.embeddings) == (["mine"], ["points"])
    with pytest.raises(ss.MissingScoreError, match="score must be one of those in"):
        store.score(name)
    with pytest.raises(ss.StoreFormatError, match="has no array"):
        store.embedding(name)
    with pytest.raises(ValueError, match="name must be made of letters"):
        store.put_score(name, np.arange(N))


def test_the_place_of_a_store_is_a_path(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    for place in (None, 3, b"s.zarr", store):
        for take in (ss.open_store, lambda place: ss.index(tmp_path / "d/s-000.tar", place)):
            with pytest.raises(TypeError, match="the place of a store must be a path or a URL"):
                take(place)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_open_store_is_asked_for_where_something_else_is_given(store):
    for other in (None, 3, {}):
        with pytest.raises(TypeError, match="store must be what open_store or index returns"):
            ss.select(other, keep_fraction=0.5, rule="random")
        with pytest.raises(TypeError, match="store must be what open_store or index returns"):
            ss.realign(other, store)
    with pytest.raises(TypeError, match="store must be open, got its path"):
        ss.realign(store, str(store.path))


def test_one_score_is_realigned_by_its_name(store, tmp_path):
    other = ss.index(tmp_path / "d/s-001.tar", tmp_path / "other.zarr")
    assert ss.realign(store, other, scores="mine") == ["mine"]


def test_a_truth_value_is_no_fraction_and_no_count():
    with pytest.raises(ValueError, match=r"keep_fraction must lie in \(0, 1\], got True"):
        ss.num_kept(10, True)
    with pytest.raises(ValueError, match=r"keep_fraction must lie in \(0, 1\], got '0.5'"):
        ss.keep_top([1.0, 2.0], "0.5")
    with pytest.raises(ValueError, match="window must be a whole number of at least 2, got True"):
        ss.scores.dynamic_uncertainty(np.ones((4, 2)), window=True)
