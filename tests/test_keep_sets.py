"""Keep sets in the store: what is saved comes back, with its weights, in every loader."""

import json
import sys

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import write_shards
from torch.utils.data import DataLoader

import shardsieve as ss
from shardsieve.cli import main

SIZES = [9, 1, 14, 6]
N = sum(SIZES)
SMALLER = "keep set was made from another shard index"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keep")
    return ss.index(write_shards(folder / "d", SIZES), folder / "s.zarr").path


@pytest.fixture
def store(tmp_path):
    return ss.index(write_shards(tmp_path / "d", SIZES), tmp_path / "s.zarr")


@st.composite
def weighted_rows(draw):
    rows = draw(st.lists(st.integers(0, N - 1), unique=True, max_size=N))
    weight = st.floats(2**-10, 2**10, width=32)
    weights = draw(st.none() | st.lists(weight, min_size=len(rows), max_size=len(rows)))
    return rows, weights


def test_a_keep_set_is_a_set_of_ids(store):
    kept = store.ids()[[2, 9, 10, 29]]
    keep = ss.KeepSet.from_ids(store, kept)
    assert list(keep) == kept.tolist()
    assert [one for one in range(-300, 300) if one in keep] == kept.tolist()
    assert kept[1] in keep
    assert 10**18 not in keep
    assert None not in keep


def test_numpy_takes_a_keep_set_for_its_ids(store):
    kept = store.ids()[[2, 9, 10, 29]]
    keep = ss.KeepSet.from_ids(store, kept)
    assert np.isin(store.ids(), keep).sum() == 4
    assert np.asarray(keep).tolist() == kept.tolist()
    assert np.array(keep, dtype=np.float64).tolist() == kept.tolist()
    assert ss.KeepSet.from_ids(store, keep) == keep


def test_a_notebook_shows_what_is_at_hand(store):
    keep = ss.KeepSet.from_ids(store, store.ids()[[2, 9, 10, 29]])
    weighted = ss.KeepSet.from_ids(store, store.ids()[:2], weights=[1, 2])
    assert repr(store) == f"Store('{store.path}', 30 samples in 4 shards)"
    assert repr(keep) == "KeepSet(4 samples)"
    assert repr(weighted) == "KeepSet(2 samples, weighted)"
    assert repr(ss.ShardDataset(store)) == f"ShardDataset({store!r})"
    policy = ss.RandomDynamic(0.5)
    assert repr(policy) == "RandomDynamic(keep_fraction=0.5, replacement=False, seed=0)"
    still, moving = (
        ss.PrunedShardSampler(store, **how) for how in ({"keep_set": keep}, {"policy": policy})
    )
    moving.set_epoch(3)
    assert repr(still) == f"PrunedShardSampler({store!r}, {keep!r}, epoch=0)"
    assert repr(moving).endswith(f"KeepSet(15 samples), policy={policy!r}, epoch=3)")


def test_ids_alone_are_no_keep_set(store):
    for ids in (store.ids()[:3], [1, 2], 3):
        with pytest.raises(TypeError, match=r"got \w+; make one of sample ids: KeepSet.from_ids"):
            ss.PrunedShardSampler(store, keep_set=ids)


def test_keep_sets_are_equal_where_ids_weights_and_index_are(store, tmp_path):
    keep, same, other = (
        ss.KeepSet.from_ids(store, store.ids()[rows]) for rows in ([3, 1], [1, 3], [1])
    )
    assert {keep, same, other} == {same, other}
    assert keep != other
    assert keep != [1, 3]
    weighted = ss.KeepSet.from_ids(store, keep.ids(), [1.0, 2.0])
    assert weighted != keep
    elsewhere = ss.index(write_shards(tmp_path / "e", [9, 1, 14, 7]), tmp_path / "e.zarr")
    assert ss.KeepSet.from_ids(elsewhere, keep.ids()) != keep


@settings(max_examples=25, deadline=None)
@given(weighted_rows())
def test_a_saved_keep_set_comes_back_equal(place, chosen):
    rows, weights = chosen
    store = ss.open_store(place)
    keep = ss.KeepSet.from_ids(store, store.ids()[rows], weights)
    store.forget_keep_set("mine")
    keep.save(store, "mine", provenance={"rule": "by hand"})
    again = ss.KeepSet.load(ss.open_store(place, mode="r"), "mine")
    assert again.ids().tolist() == sorted(store.ids()[rows].tolist())
    assert again == keep
    if weights is None:
        assert again.weights is None
    else:
        of_row = dict(zip(rows, weights, strict=True))
        assert again.weights.tolist() == [of_row[row] for row in sorted(rows)]
    made = store.keep_provenance("mine")
    assert made["rule"] == "by hand"
    assert {"version", "date"} <= set(made)


@settings(max_examples=25, deadline=None)
@given(weighted_rows(), st.lists(st.booleans(), min_size=len(SIZES), max_size=len(SIZES)))
def test_what_is_kept_of_some_shards(place, chosen, shards):
    rows, weights = chosen
    store = ss.open_store(place)
    keep = ss.KeepSet.from_ids(store, store.ids()[rows], weights)
    part = keep.within(np.array(shards))
    inside = [shards[one // store.rows_per_shard] for one in keep.ids().tolist()]
    assert part.ids().tolist() == keep.ids()[inside].tolist()
    if weights is not None:
        assert part.weights.tolist() == keep.weights[inside].tolist()


def test_weights_change_the_digest_and_only_they(store):
    ids = store.ids()[[3, 1, 20]]
    plain = ss.KeepSet.from_ids(store, ids)
    one, other = (ss.KeepSet.from_ids(store, ids, weights) for weights in ([1, 2, 3], [3, 2, 1]))
    assert len({plain.digest, one.digest, other.digest}) == 3
    assert ss.KeepSet.from_ids(store, ids[::-1], [3, 2, 1]).digest == one.digest
    # Pinned: plans and run folders name keep sets by it.
    assert (plain.digest, one.digest) == ("12c67e18143d5aeb", "6ace112e6bbd576c")


def samples_of_sampler(store, name):
    sampler = ss.PrunedShardSampler(store, keep_set=name, seed=3)
    return DataLoader(
        ss.ShardDataset(store), sampler=sampler, batch_size=4, num_workers=1, collate_fn=list
    )


def samples_of_pipeline(store, name):
    # One shard less: what is kept of the others keeps its weights.
    return [ss.prune(wds.WebDataset(store.urls[1:], shardshuffle=False), store, keep_set=name)]


@pytest.mark.parametrize("loader", [samples_of_sampler, samples_of_pipeline])
def test_loaders_take_the_name_and_give_the_weights(store, loader):
    rows = [0, 5, 9, 12, 29]
    keep = ss.KeepSet.from_ids(store, store.ids()[rows], [0.5, 2, 3, 0.25, 8])
    keep.save(store, "mine")
    found = {s["__id__"]: s["__weight__"] for part in loader(store, "mine") for s in part}
    first = 0 if loader is samples_of_sampler else 2
    assert found == dict(zip(keep.ids()[first:], keep.weights[first:], strict=True))


def test_an_ffcv_loader_takes_the_name_and_gives_the_weights(tmp_path):
    from betons import write_beton
    from ffcv.loader import Loader, OrderOption

    path = write_beton(tmp_path / "d.beton", 40, side=8)
    store = ss.index(path, tmp_path / "s.zarr")
    ss.KeepSet.from_ids(store, [3, 17, 39], [0.5, 2, 4]).save(store, "mine")
    loader = Loader(str(path), batch_size=2, num_workers=1, order=OrderOption.SEQUENTIAL)
    pruned = ss.prune(loader, store, keep_set="mine", tail="uneven")
    found = [(batch.ids.tolist(), batch.weights.tolist()) for batch in pruned]
    assert found == [([3, 17], [0.5, 2.0]), ([39], [4.0])]
    plain = ss.select(store, keep_fraction=1.0)
    pruned.set_keep_set(plain)
    assert all(batch.weights.tolist() == [1.0, 1.0] for batch in pruned)


REFUSED = {
    "a weight of 0": (lambda s: ([1, 2], [1, 0]), r"^weights must be finite and above 0, got 0.0 "),
    "no number": (lambda s: ([1, 2], [1, np.nan]), r"^weights must be finite and above 0, got nan"),
    "too few": (lambda s: ([1, 2], [1]), r"^weights must have shape \(2,\), as ids, got \(1,\)"),
    "twice": (lambda s: ([1, 1], [1, 2]), r"^ids must come once with weights, got 1 again"),
    "strange": (lambda s: ([10**6], [1]), r"^ids must name samples of .*, got 1000000"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_ids_and_weights_that_do_not_fit_are_refused(store, case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        ss.KeepSet.from_ids(store, *make(store))


def test_a_name_stands_for_one_keep_set(store, tmp_path):
    ids = store.ids()
    ss.KeepSet.from_ids(store, ids[:5]).save(store, "mine")
    ss.KeepSet.from_ids(store, ids[:5]).save(store, "mine", provenance={"again": True})
    assert store.keep_provenance("mine")["again"] is True
    with pytest.raises(ss.StoreMismatchError, match=r"keep set 'mine' of .* keeps other samples"):
        ss.KeepSet.from_ids(store, ids[:6]).save(store, "mine")
    with pytest.raises(ValueError, match="name must be made of letters"):
        ss.KeepSet.from_ids(store, ids[:6]).save(store, "a/b")
    with pytest.raises(ss.MissingScoreError, match=r"keep_set must be among .* \(mine\), got 'no'"):
        ss.PrunedShardSampler(store, keep_set="no")
    with pytest.raises(TypeError, match="keep_fraction must come without keep_set"):
        ss.PrunedShardSampler(store, keep_set="mine", keep_fraction=0.5)
    other = ss.index(write_shards(tmp_path / "other", [3]), tmp_path / "other.zarr")
    with pytest.raises(ss.StoreMismatchError, match=SMALLER):
        ss.KeepSet.from_ids(other, [0]).save(store, "other")
    assert store.keep_sets == ["mine"]


def test_a_keep_set_of_before_shards_were_appended_is_refused(store, tmp_path):
    keep = ss.KeepSet.from_ids(store, store.ids()[:5])
    keep.save(store, "mine")
    more = write_shards(tmp_path / "more", [4])
    grown = ss.append_shards(more, store.path)
    with pytest.raises(ss.StoreMismatchError, match=SMALLER):
        ss.KeepSet.load(grown, "mine")
    assert grown.keep_sets == ["mine"]
    grown.forget_keep_set("mine")
    ss.KeepSet.from_ids(grown, grown.ids()[-3:]).save(grown, "mine")
    assert ss.KeepSet.load(grown, "mine").ids().tolist() == grown.ids()[-3:].tolist()


@pytest.mark.parametrize("table", ["bits", "weight"])
def test_a_lost_part_is_named(store, table):
    ss.KeepSet.from_ids(store, store.ids(), np.ones(N)).save(store, "mine")
    (store.path / "keep/mine" / table / "c/2/0").unlink()
    with pytest.raises(ss.StoreFormatError, match="has lost part of keep set 'mine'"):
        ss.KeepSet.load(store, "mine")


def test_what_was_cut_short_is_not_listed(store):
    ss.KeepSet.from_ids(store, store.ids()[:5]).save(store, "mine")
    del store.group["keep/mine"].attrs["date"]
    assert ss.open_store(store.path).keep_sets == []
    ss.KeepSet.from_ids(store, store.ids()[:6]).save(store, "mine")
    assert len(ss.KeepSet.load(store, "mine")) == 6


@pytest.fixture
def told(store, capsys, monkeypatch):
    """Runs a command on the store; returns its status and what it says."""

    def call(command, *arguments):
        line = ["shardsieve", command, "--store", store.path, "--json", *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, line)))
        with pytest.raises(SystemExit) as ended:
            main()
        out = capsys.readouterr()
        return json.loads(out.out) if ended.value.code == 0 else out.err

    return call


def test_select_saves_and_the_others_take_what_it_saved(store, told, tmp_path):
    store.put_score("made", np.arange(N))
    saved = told("select", "--score", "made", "--keep-fraction", 0.3, "--save", "best")
    assert saved["kept"] == 9
    assert told("info")["keep_sets"] == ["best"]
    made = ss.open_store(store.path).keep_provenance("best")
    assert (made["score"], made["keep_fraction"], made["rule"]) == ("made", 0.3, "top")
    assert told("select", "--keep-set", "best") == saved
    told("export", "--keep-set", "best", tmp_path / "ids")
    want = ss.select(store, score="made", keep_fraction=0.3).ids().tolist()
    assert [int(one) for one in (tmp_path / "ids").read_text().split()] == want
    said = told("select", "--keep-set", "best", "--rule", "random")
    assert said == "shardsieve: --rule must come without --keep-set, or would be left unused\n"
    said = told("select", "--score", "made", "--keep-fraction", 0.4, "--save", "best")
    assert "keep set 'best'" in said
    assert said.count("\n") == 1
    said = told("train", "--out", tmp_path / "run", "--policy", "ucb", "--keep-set", "best")
    assert said.startswith("shardsieve: --keep-set must come without --policy")
