"""Shards that are sorted by class are noticed, and what is trained on is mixed all the same."""

import io
import json
import re
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from betons import image as pixels
from betons import write_beton
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tars import write_tar

import shardsieve as ss
from shardsieve.store.append import append_shards
from shardsieve.store.sorting import is_sorted_by_class, likeness
from shardsieve.train.config import TrainConfig
from shardsieve.train.embedding import weights_fingerprint
from shardsieve.train.encoder import load_encoder
from shardsieve.train.launch import make_accelerator
from shardsieve.train.loading import make_loader
from shardsieve.train.ordering import training_order
from shardsieve.train.runfolder import IDENTITY
from shardsieve.train.subset import train_subset

CLASSES, ROWS = 40, 10
BY_CLASS = [[label] * ROWS for label in range(CLASSES)]
MIXED = np.random.default_rng(0).permutation(np.ravel(BY_CLASS)).reshape(CLASSES, ROWS).tolist()
SAID = 'sorted by class: 16 of them shuffled together .* give shuffle="global" to PrunedShardSamp'


def alike(labels):
    return sum(one == other for one, other in combinations(labels, 2))


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=2, max_size=6))
def test_likeness_is_that_over_all_windows(shards):
    everything = [label for shard in shards for label in shard]
    count = len(everything)
    for window in range(1, len(shards) + 1):
        windows = [np.concatenate(chosen) for chosen in combinations(shards, window)]
        pairs = sum(len(one) * (len(one) - 1) // 2 for one in windows)
        want = 1.0
        if pairs and alike(everything):
            want = sum(map(alike, windows)) / pairs
            want /= alike(everything) / (count * (count - 1) // 2)
        assert likeness(map(np.array, shards), window) == pytest.approx(want)
    more = likeness(map(np.array, shards), 99)
    assert more == pytest.approx(1.0)  # there are no more than all


def tars(folder, shards):
    """Small images in tars, one per list of labels."""
    out = io.BytesIO()
    Image.new("L", (8, 8), 99).save(out, "PNG")
    folder.mkdir(exist_ok=True)
    return [
        write_tar(
            folder / f"s-{number:03d}.tar",
            [
                (f"{number:03d}-{row:03d}.{suffix}", data)
                for row, label in enumerate(labels)
                for suffix, data in (("png", out.getvalue()), ("cls", str(label).encode()))
            ],
        )
        for number, labels in enumerate(shards)
    ]


@pytest.fixture(scope="module")
def by_class(tmp_path_factory):
    folder = tmp_path_factory.mktemp("by-class")
    return ss.index(tars(folder, BY_CLASS), folder / "s.zarr")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    return ss.index(tars(folder, MIXED), folder / "s.zarr")


def test_shards_of_one_class_each_are_sorted_unless_all_meet_in_a_window(by_class, mixed):
    found = [
        [is_sorted_by_class(store, store.labels(), window) for window in (4, 16, 39, 40, 99)]
        for store in (by_class, mixed)
    ]
    assert found == [[True, True, False, False, False], [False] * 5]
    unlabelled = np.full(len(by_class), -1)
    assert not is_sorted_by_class(by_class, unlabelled, 1)


def test_sorted_shards_are_warned_of_when_they_are_indexed(tmp_path, caplog):
    paths = tars(tmp_path, [*MIXED, *BY_CLASS])
    store = ss.index(paths[:CLASSES], tmp_path / "s.zarr")
    append_shards(paths[: CLASSES + 1], store.path)
    assert caplog.messages == []
    append_shards(paths, store.path)
    ss.index(paths[CLASSES:], tmp_path / "by-class.zarr")
    ss.index(paths[CLASSES:], tmp_path / "by-class.zarr")  # it is there
    ss.index(paths[CLASSES:], tmp_path / "unlabelled.zarr", label_member="none")
    grown, made = caplog.messages
    assert re.search(f"s.zarr are {SAID}", grown)
    assert re.search(f"class.zarr are {SAID}", made)


def met(store, **settings):
    """How many classes meet in a batch of 20, on average, over an epoch of the trainer's loader."""
    config = TrainConfig(batch_size=20, size=8, channels=1, **settings)
    loader, _ = make_loader(store, ss.select(store, keep_fraction=1.0), config)
    batches = [np.unique(batch.labels).tolist() for batch in loader]
    assert len(batches) == CLASSES * ROWS // 20
    return np.mean([len(classes) for classes in batches])


def test_a_training_shuffles_sorted_shards_as_a_whole(by_class, mixed):
    whole, windows = met(by_class), met(by_class, shuffle="window")
    assert whole == met(by_class, shuffle="global") == met(by_class, shuffle_window=16)
    assert windows < 12 < 14.5 < whole < 17.5  # 20 draws of 40 classes are of 15.9
    assert met(by_class, shuffle_window=0) == 2
    assert met(by_class, shuffle_window=40) == met(by_class, shuffle_window=40, shuffle="window")
    assert met(mixed) == met(mixed, shuffle="window") != met(mixed, shuffle="global")


def test_what_is_learned_decides_and_not_the_labels(by_class):
    config = TrainConfig(pseudo_labels="mine")
    for labels, order in ((np.arange(len(by_class)) % 4, "window"), (by_class.labels(), "global")):
        by_class.put_pseudo_labels("mine", labels)
        assert training_order(by_class, config)["shuffle"] == order
        by_class.forget_pseudo_labels("mine")


def test_a_training_says_its_shuffle_only_where_it_is_told_one():
    assert "shuffle" not in TrainConfig().to_dict()  # runs of earlier releases go on
    assert TrainConfig(shuffle="global").to_dict()["shuffle"] == "global"
    with pytest.raises(ValueError, match="shuffle must be one of auto, window, global, got 'none'"):
        TrainConfig(shuffle="none")


def test_a_run_that_an_earlier_release_began_goes_on_in_windows(by_class, tmp_path):
    """Such a run knew windows alone, and its folder does not say so."""
    config = TrainConfig(epochs=2, batch_size=20, size=8, channels=1, shuffle="window")
    keep = ss.select(by_class, keep_fraction=0.5, rule="random")

    def trained(name, how, progress=None):
        accelerator = make_accelerator(precision=how.precision)
        run = {"folder": tmp_path / name, "accelerator": accelerator, "progress": progress}
        return train_subset(by_class, keep, config=how, **run)

    trained("whole", config)

    def stop(done, steps, *_):
        if done > steps // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained("run", config, stop)
    told = tmp_path / "run" / IDENTITY
    of = json.loads(told.read_text())
    del of["shuffle"]
    told.write_text(json.dumps(of))
    trained("run", replace(config, shuffle="auto"))
    ended, whole = (load_encoder(str(tmp_path / name)).network for name in ("run", "whole"))
    assert weights_fingerprint(ended) == weights_fingerprint(whole)


class Sorted:
    """Rows of 60 classes, a hundred of each one after the other."""

    def __len__(self):
        return 6000

    def __getitem__(self, row):
        return pixels(row % 9, 8), row // 100


@pytest.mark.xdist_group("ffcv")
def test_pages_of_a_beton_are_sorted_too(tmp_path, monkeypatch):
    store = ss.index(write_beton(tmp_path / "s.beton", data=Sorted()), tmp_path / "s.zarr")
    monkeypatch.setattr("shardsieve.train.ffcv_batches.FfcvImages", lambda *_, **__: None)
    monkeypatch.setattr("shardsieve.train.ffcv_batches.FfcvBatches", lambda *_: None)
    keep, config = ss.select(store, keep_fraction=0.5, rule="random"), TrainConfig(size=8)

    def order(page_size):
        store.group.attrs["page_size"] = page_size
        return make_loader(store, keep, config)[1].order.shuffle

    assert order(1 << 13) == "global"  # 42 rows a page, 49 pages of 143 at a time
    assert order(1 << 21) == "window"  # one page
