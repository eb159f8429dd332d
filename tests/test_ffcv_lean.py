"""`LeanLoader` answers as FFCV's own `Loader`, without its dictionaries."""

import numpy as np
import pytest
from betons import PAGE, write_beton
from ffcv.fields import IntField
from ffcv.loader import Loader, OrderOption
from ffcv.reader import Reader
from hypothesis import given
from hypothesis import strategies as st

import shardsieve as ss
from shardsieve.loaders.ffcv_lean import LeanLoader, Pages, PageToSamples, SampleToPages
from shardsieve.shards.beton import ALLOCATION, read_beton

# One process compiles FFCV's pipelines for all of them.
pytestmark = pytest.mark.xdist_group("ffcv")

N = 240


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_beton(tmp_path_factory.mktemp("lean") / "train.beton", N)


def tables(loader):
    """The three dictionaries of a loader's memory manager, as plain Python."""
    manager = loader.memory_manager
    return (
        {int(s): {int(p) for p in manager.sample_to_pages[s]} for s in range(N)},
        {int(p): set(map(int, manager.page_to_samples[p])) for p in manager.page_to_samples},
    )


def made(kind, path, **how):
    return kind(str(path), batch_size=32, num_workers=1, seed=3, drop_last=False, **how)


def passes(loader, epochs=2):
    return [[(x.clone().numpy(), y.ravel().tolist()) for x, y in loader] for _ in range(epochs)]


@pytest.mark.parametrize(("order", "os_cache"), [("RANDOM", False), ("QUASI_RANDOM", True)])
def test_a_lean_loader_gives_what_ffcvs_loader_gives(path, order, os_cache):
    how = {"order": OrderOption[order], "os_cache": os_cache, "indices": list(range(0, N, 2))}
    lean, theirs = made(LeanLoader, path, **how), made(Loader, path, **how)
    assert tables(lean) == tables(theirs)
    assert len(lean.memory_manager.sample_to_pages) == len(theirs.memory_manager.sample_to_pages)
    for ours, want in zip(passes(lean), passes(theirs), strict=True):
        assert len(ours) == len(want) == 4
        for (x, y), (wx, wy) in zip(ours, want, strict=True):
            assert y == wy
            np.testing.assert_array_equal(x, wx)


def test_pruning_lets_the_dictionaries_of_a_plain_loader_go(path, tmp_path):
    store = ss.index(path, tmp_path / "s.zarr")
    loader = made(Loader, path, order=OrderOption.QUASI_RANDOM, os_cache=False)
    before = tables(loader)
    pruned = ss.prune(loader, store, keep_fraction=0.5, rule="random")
    manager = loader.memory_manager
    assert not any(isinstance(v, dict) and v for v in vars(manager).values())
    assert tables(loader) == before
    kept = pruned.keep_set.ids().tolist()
    assert sorted(i for b in pruned for i in b.ids.tolist()) == kept
    # The given loader still reads everything.
    assert sorted(y for _, labels in passes(loader, 1)[0] for y in labels) == list(range(N))


def test_a_lean_loader_is_pruned_like_any_other(path, tmp_path):
    store = ss.index(path, tmp_path / "s.zarr")
    pruned = ss.prune(
        made(LeanLoader, path, os_cache=False),
        store,
        keep_fraction=0.3,
        rule="random",
        order="pages",
    )
    seen = [
        (i, y) for b in pruned for i, y in zip(b.ids.tolist(), b[1].ravel().tolist(), strict=True)
    ]
    assert all(i == y for i, y in seen)
    assert sorted(i for i, _ in seen) == pruned.keep_set.ids().tolist()


def test_a_file_whose_samples_are_all_inline_has_no_pages(tmp_path):
    class Numbers:
        def __len__(self):
            return 50

        def __getitem__(self, row):
            return (row,)

    path = write_beton(tmp_path / "n.beton", data=Numbers(), fields={"number": IntField()})
    assert read_beton(path).ranges.tolist() == [[-1, 0]] * 50
    loader = made(LeanLoader, path)
    assert not loader.memory_manager.page_to_samples
    assert [y for (part,) in loader for y in part.ravel().tolist()] == list(range(50))
    with pytest.raises(ValueError, match="won't benefit"):
        made(LeanLoader, path, order=OrderOption.QUASI_RANDOM)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), max_size=60))
def test_page_tables_are_those_of_a_slow_loop(entries):
    page_of = {sample: (sample * 7) % 5 for sample, _ in entries}
    table = np.array(
        [(s, page_of[s] * PAGE + 100 * k + s, 10) for s, k in entries], dtype=ALLOCATION
    )
    pages = Pages(table, 31, PAGE)
    by_sample, by_page = SampleToPages(pages), PageToSamples(pages)
    assert {s: set(map(int, by_sample[s])) for s in by_sample} == {
        s: {page} for s, page in page_of.items()
    }
    want = {}
    for sample, page in page_of.items():
        want.setdefault(page, set()).add(sample)
    assert {int(p): by_page[p] for p in by_page} == want
    assert by_sample[30] == ({page_of[30]} if 30 in page_of else set())


def test_samples_over_several_pages_keep_ffcvs_own_tables(path, tmp_path, monkeypatch):
    table = np.array([(0, 0, 10), (0, PAGE, 10)], dtype=ALLOCATION)
    with pytest.raises(ValueError, match="one page each"):
        Pages(table, 1, PAGE)
    store = ss.index(path, tmp_path / "s.zarr")
    loader = made(Loader, path)
    torn = Reader(str(path)).alloc_table.copy()
    torn[0]["sample_id"] = torn[-1]["sample_id"]
    loader.reader.alloc_table = torn
    before = loader.memory_manager.page_to_samples
    ss.prune(loader, store)
    assert loader.memory_manager.page_to_samples is before
