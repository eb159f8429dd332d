"""`prune_loader` against the real FFCV."""

import copy
import json
import os
import shutil
from contextlib import nullcontext
from itertools import chain

import forks
import lightning
import numpy as np
import pytest
import torch
from betons import image, write_beton
from ffcv.loader import Loader, OrderOption
from ffcv.traversal_order.base import TraversalOrder

import shardsieve as ss
from shardsieve.loaders.ffcv import prune_loader

# One process compiles FFCV's pipelines for all of them.
pytestmark = pytest.mark.xdist_group("ffcv")

N = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beton")
    ss.index(write_beton(folder / "train.beton", N), folder / "s.zarr").put_score("up", range(N))
    return folder


@pytest.fixture
def store(folder):
    return ss.open_store(folder / "s.zarr")


@pytest.fixture(scope="module")
def loaders(folder):
    """One compiled loader per (order, os_cache): pruning must not need another."""
    made = {}

    def get(order="SEQUENTIAL", os_cache=True, **more):
        return Loader(
            str(folder / "train.beton"),
            batch_size=32,
            num_workers=1,
            order=OrderOption[order],
            os_cache=os_cache,
            seed=7,
            **{"drop_last": False, **more},
        )

    def cached(order="SEQUENTIAL", os_cache=True, **more):
        key = (order, os_cache, json.dumps(more, default=str))
        if key not in made:
            made[key] = get(order, os_cache, **more)
        return made[key]

    return cached


def batches_of(loader):
    return [(x.clone().numpy(), y.clone().numpy().ravel()) for x, y in loader]


def flat(batches):
    return list(chain.from_iterable(batches))


def sorted_by_label(batches):
    images, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    order = np.argsort(labels)
    return [(images[order], labels[order])]


def keep_of(store, seed, fraction=0.4):
    return ss.select(store, keep_fraction=fraction, rule="random", seed=seed)


@pytest.mark.parametrize("os_cache", [True, False])
@pytest.mark.parametrize("order", ["SEQUENTIAL", "RANDOM", "QUASI_RANDOM"])
def test_batches_are_those_of_ffcvs_own_indices(store, loaders, order, os_cache):
    pruned = prune_loader(loaders(order, os_cache), store, keep_fraction=0.3, rule="random")
    kept = pruned.keep_set.ids()
    theirs = loaders(order, os_cache, indices=kept.tolist())
    theirs.next_epoch = 0
    for _ in range(2):
        ours, want = batches_of(pruned), batches_of(theirs)
        assert len(ours) == len(want) == len(pruned) == 4
        if order == "QUASI_RANDOM":
            # FFCV shuffles its tables in place, so its order depends on the passes before.
            ours, want = sorted_by_label(ours), sorted_by_label(want)
        for (x, y), (wx, wy) in zip(ours, want, strict=True):
            np.testing.assert_array_equal(y, wy)
            np.testing.assert_array_equal(x, wx)


@pytest.mark.parametrize("os_cache", [True, False])
@pytest.mark.parametrize("order", ["SEQUENTIAL", "RANDOM", "QUASI_RANDOM"])
@pytest.mark.parametrize("how", ["loader", "pages"])
def test_keep_sets_change_every_epoch_and_ids_match(store, loaders, order, os_cache, how):
    loader = loaders(order, os_cache)
    pruned = prune_loader(loader, store, order=how)
    code = loader.code
    weights = np.arange(N) / 8
    for epoch in range(5):
        keep = keep_of(store, epoch, fraction=(epoch + 1) / 5)
        pruned.set_keep_set(keep, weights=weights)
        assert len(pruned) == -(-len(keep) // 32)
        seen = []
        for batch in pruned:
            images, labels = batch
            assert labels.ravel().tolist() == batch.ids.tolist()
            assert batch.weights.tolist() == (batch.ids / 8).tolist()
            np.testing.assert_array_equal(images[-1].numpy(), image(int(batch.ids[-1])))
            seen += batch.ids.tolist()
        assert pruned.epoch == epoch
        assert sorted(seen) == keep.ids().tolist()
    assert loader.code is code


def test_own_indices_are_intersected_in_their_order(store, loaders):
    mine = np.random.default_rng(0).permutation(N)[:100]
    pruned = prune_loader(
        loaders(indices=mine.tolist()), store, keep_set=keep_of(store, 1, fraction=0.5)
    )
    kept = set(pruned.keep_set.ids().tolist())
    seen = [i for batch in pruned for i in batch.ids.tolist()]
    assert seen == [i for i in mine.tolist() if i in kept]
    assert 0 < len(seen) < 100


def test_a_users_order_loses_only_the_rows_that_are_not_kept(store, loaders, monkeypatch):
    class Backwards(TraversalOrder):
        def sample_order(self, epoch):
            return self.indices[::-1][epoch:].copy()

    loader = loaders("SEQUENTIAL", True, batches_ahead=2)
    loader.traversal_order = Backwards(loader)
    pruned = prune_loader(loader, store, keep_fraction=0.5, score="up")
    assert [i for b in pruned for i in b.ids.tolist()] == list(range(N - 1, N // 2 - 1, -1))
    assert len(pruned) == 7
    assert sum(len(b.ids) for b in pruned) == N // 2 - 1
    monkeypatch.setattr(loader, "distributed", True)
    with pytest.raises(ValueError, match="order must be 'pages' for a distributed loader with a c"):
        prune_loader(loader, store, keep_fraction=0.5, score="up")


def test_an_order_that_draws_anew_is_asked_once_in_a_pass(store, loaders):
    class Drawn(TraversalOrder):
        """Fewer rows every time that it is asked."""

        asked = 0

        def sample_order(self, epoch):
            self.asked += 1
            return self.indices[: N - 32 * self.asked]

    loader = loaders("SEQUENTIAL", True, batches_ahead=1)
    loader.traversal_order = Drawn(loader)
    pruned = prune_loader(loader, store, keep_fraction=0.5, score="up")
    for asked in (1, 2, 3):
        steps = [(len(pruned), batch.ids.tolist()) for batch in pruned]
        assert flat(ids for _, ids in steps) == list(range(N // 2, N - 32 * asked))
        assert {known for known, _ in steps} == {len(steps)}


def test_rows_are_those_that_the_traversal_order_has(store, loaders):
    loader = loaders("RANDOM", True, batches_ahead=4)
    loader.traversal_order.indices = np.arange(150, 350)
    loader.indices = np.arange(10)
    for how in ("loader", "pages"):
        pruned = prune_loader(loader, store, keep_fraction=0.5, score="up", order=how)
        assert sorted(i for batch in pruned for i in batch.ids.tolist()) == list(range(200, 350))


def test_a_class_that_iterates_in_its_own_way_is_refused(store, folder):
    class Mixing(Loader):
        def __iter__(self):
            return ((images.flip(0), labels) for images, labels in super().__iter__())

    class Ordered(Loader):
        def next_traversal_order(self):
            return super().next_traversal_order()[::-1].copy()

    for kind, name in ((Mixing, "__iter__"), (Ordered, "next_traversal_order")):
        loader = kind(str(folder / "train.beton"), batch_size=32, num_workers=1)
        with pytest.raises(ss.ShardsieveError, match=f"{kind.__name__} has a method {name} of its"):
            ss.prune(loader, store, keep_fraction=0.5, score="up")


def test_what_a_loader_has_and_a_pruned_one_has_not_says_where_it_is(store, loaders):
    pruned = prune_loader(loaders("RANDOM"), store, keep_fraction=0.5, score="up")
    assert (pruned.batch_size, pruned.indices.tolist()) == (32, list(range(N // 2, N)))
    with pytest.raises(AttributeError, match=r"no next_traversal_order: rows\(epoch\) tells it"):
        pruned.next_traversal_order()
    with pytest.raises(AttributeError, match="next_epoch cannot be set: set_epoch says it"):
        pruned.next_epoch = 3
    with pytest.raises(AttributeError, match="indices cannot be set: set_keep_set"):
        pruned.indices = range(10)
    assert not hasattr(pruned, "dataset")
    assert copy.copy(pruned).rows(1).tolist() == pruned.rows(1).tolist()


def test_custom_fields_and_disabled_pipelines_stay(tmp_path):
    from ffcv.fields import FloatField, IntField

    class Own(IntField):
        """A field that only this class can read."""

    class Numbers:
        def __len__(self):
            return 90

        def __getitem__(self, row):
            return 3 * row, row / 2, -row

    fields = {"own": Own(), "real": FloatField(), "unused": IntField()}
    path = write_beton(tmp_path / "c.beton", data=Numbers(), fields=fields)
    loader = Loader(
        str(path),
        batch_size=16,
        num_workers=1,
        drop_last=False,
        custom_fields={"own": Own},
        pipelines={"unused": None},
    )
    store = ss.index(path, tmp_path / "c.zarr")
    assert (store.labels() == -1).all()
    store.put_score("up", np.arange(90))
    pruned = prune_loader(loader, store, keep_fraction=0.5, score="up")
    seen = [(b.ids.tolist(), b[0].ravel().tolist(), b[1].ravel().tolist()) for b in pruned]
    assert flat(ids for ids, _, _ in seen) == list(range(45, 90))
    assert all(own == [3 * i for i in ids] for ids, own, _ in seen)
    assert all(real == [i / 2 for i in ids] for ids, _, real in seen)


def test_a_rank_without_a_sample_repeats_one(store, loaders):
    loader = loaders()
    keep = ss.KeepSet.from_ids(store, np.arange(66))
    ranks = [
        prune_loader(loader, store, keep_set=keep, world=ss.World(rank, 3)) for rank in range(3)
    ]
    state = {**ranks[0].state_dict(), "samples_done": 64}
    for pruned in ranks:
        pruned.load_state_dict(state)
    seen = [[(b.ids.tolist(), b.weights.tolist()) for b in pruned] for pruned in ranks]
    assert seen == [[([64], [1])], [([65], [1])], [([64], [0])]]


def test_ranks_of_a_world_that_is_given_share_an_order(store, folder):
    def rank(number):
        # FFCV draws a seed for a loader without one, another one in every process.
        how = {"order": OrderOption.RANDOM, "batch_size": 32, "num_workers": 1}
        loader = Loader(str(folder / "train.beton"), drop_last=False, **how)
        world = ss.World(number, 2)
        return prune_loader(loader, store, keep_fraction=0.5, score="up", world=world)

    one, other = rank(0), rank(1)
    assert one.state_dict() == other.state_dict()
    seen = [[b.ids.tolist() for b in loader] for loader in (one, other)]
    assert len(seen[0]) == len(seen[1]) == 4
    assert sorted(flat(seen[0] + seen[1])) == list(range(N // 2, N))


def test_drop_last_drops_and_len_is_right(store, loaders):
    pruned = prune_loader(loaders(drop_last=True), store, keep_fraction=0.25, score="up")
    sizes = [len(batch.ids) for batch in pruned]
    assert sizes == [32, 32, 32]
    assert len(pruned) == 3


def test_a_keep_set_that_is_set_in_a_pass_is_for_the_next_one(store, loaders):
    now = ss.KeepSet.from_ids(store, range(5, 75), weights=np.arange(6, 76))
    then = ss.KeepSet.from_ids(store, range(0, N, 2))

    def pruned(keep):
        return prune_loader(loaders("RANDOM"), store, keep_set=keep)

    first = pruned(now)
    undisturbed = [batch.ids.tolist() for batch in pruned(now)]
    for step, batch in enumerate(first):
        first.set_keep_set(then)
        assert len(first) == 3
        assert batch.ids.tolist() == undisturbed[step]
        assert batch.weights.tolist() == (batch.ids + 1).tolist()
        if step == 1:
            in_pass = first.state_dict()
    with pytest.raises(ss.StoreMismatchError):
        pruned(then).load_state_dict(in_pass)
    again = pruned(now)
    again.load_state_dict(in_pass)
    assert [batch.ids.tolist() for batch in again] == undisturbed[2:]
    after = pruned(then)
    after.load_state_dict(first.state_dict())
    assert len(after) == len(first) == -(-N // 2 // 32)
    rest = [[batch.ids.tolist() for batch in loader] for loader in (after, first)]
    assert rest[0] == rest[1]
    assert after.epoch == first.epoch == 1
    assert sorted(flat(rest[0])) == then.ids().tolist()


@pytest.mark.parametrize("how", ["loader", "pages"])
def test_stopping_and_going_on_gives_the_rest_on_another_world_and_batch_size(store, loaders, how):
    def pruned(batch_size=32, world=None):
        loader = loaders("RANDOM")
        loader.batch_size = batch_size
        return prune_loader(
            loader, store, keep_fraction=0.5, score="up", order=how, world=world, seed=3
        )

    loader = loaders("RANDOM")
    first = pruned()
    first.set_epoch(2)
    whole = [i for b in first for i in b.ids.tolist()]
    first.set_epoch(2)
    head = []
    for step, batch in enumerate(first, 1):
        head += batch.ids.tolist()
        if step == 2:
            break
    state = json.loads(json.dumps(first.state_dict(steps_done=2)))
    rest, steps = [], set()
    for rank in range(3):
        again = pruned(8, ss.World(rank, 3))
        again.load_state_dict(state)
        again.set_epoch(2)
        mine = [b.ids.tolist() for b in again]
        steps.add(len(mine))
        rest += flat(mine)
    loader.batch_size = 32
    assert head == whole[:64]
    assert sorted(head + rest) == sorted(whole) == list(range(200, 400))
    assert len(steps) == 1
    other = prune_loader(loader, store, keep_fraction=0.4, score="up", order=how)
    with pytest.raises(ss.StoreMismatchError, match="another plan"):
        other.load_state_dict(state)
    # The passes that follow a resumed one are whole.
    again = pruned()
    again.load_state_dict(state)
    assert flat(b.ids.tolist() for b in again) == whole[64:]
    assert again.state_dict() == {**state, "samples_done": 200}
    next(following := iter(again))
    assert again.state_dict() == {**state, "epoch": 3, "samples_done": 32}
    assert len(list(following)) == 6
    again.load_state_dict(state)
    list(again)
    again.set_epoch(2)
    assert len(again) == 7


def test_a_state_is_of_one_plan(store, loaders):
    def pruned(*, kept=(0, 7), batch_size=32, how="RANDOM", **more):
        loader = loaders(how)
        loader.batch_size = batch_size
        return prune_loader(loader, store, keep_set=ss.KeepSet.from_ids(store, kept), **more)

    state = pruned(seed=3).state_dict()
    pruned(seed=3, batch_size=8).load_state_dict(state)
    pages = pruned(order="pages").state_dict()
    quasi = pruned(how="QUASI_RANDOM").state_dict()
    for saved, other in (
        (state, {"seed": 4}),
        (state, {"seed": 3, "kept": (0, 8)}),
        (state, {"seed": 3, "how": "SEQUENTIAL"}),
        (pages, {"order": "pages", "window": 2}),
        (quasi, {"how": "QUASI_RANDOM", "batch_size": 8}),
    ):
        with pytest.raises(ss.StoreMismatchError, match="another plan"):
            pruned(**other).load_state_dict(saved)
    one, same, other = (pruned(kept=range(N), seed=seed) for seed in (3, 3, 4))
    assert one.rows(1).tolist() == same.rows(1).tolist() != other.rows(1).tolist()
    # FFCV shuffles its table of pages in place.
    one, same = (pruned(kept=range(N), how="QUASI_RANDOM") for _ in range(2))
    assert one.rows(0).tolist() != one.rows(1).tolist() == same.rows(1).tolist()
    assert not len(pruned(kept=(), how="QUASI_RANDOM").rows(0))


def test_a_pass_begins_with_its_first_batch(store, loaders):
    def pruned():
        return prune_loader(loaders("RANDOM"), store, keep_fraction=0.5, score="up")

    loader, want = pruned(), pruned()
    for _ in range(2):
        iter(loader)
        iter(loader)
        assert [b.ids.tolist() for b in loader] == [b.ids.tolist() for b in want]
    loader = pruned()
    next(iter(loader))
    again = pruned()
    again.load_state_dict(loader.state_dict())
    iter(again)
    # A trainer adds the steps that are left to those that it has counted.
    assert [len(again) for _ in again] == [7] * 6
    assert len(again) == 7


def test_lightning_stops_and_goes_on(store, loaders, tmp_path):
    class Module(lightning.LightningModule):
        def __init__(self, stop=None):
            super().__init__()
            self.net, self.stop, self.seen = torch.nn.Linear(1, 1), stop, []
            self.loader = prune_loader(loaders("RANDOM"), store, keep_fraction=0.5, score="up")

        def train_dataloader(self):
            self.loader.set_epoch(self.current_epoch)
            return self.loader

        def training_step(self, batch, batch_idx):
            assert batch.weights.tolist() == [1] * len(batch.ids)
            self.seen.append((self.current_epoch, batch.ids.tolist(), batch[1].ravel().tolist()))
            return self.net(torch.zeros(1)).sum()

        def on_train_batch_end(self, outputs, batch, batch_idx):
            if self.global_step == self.stop:
                self.trainer.save_checkpoint(tmp_path / "a.ckpt")
                raise InterruptedError

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    def run(stop=None, path=None):
        module, off = Module(stop), ("logger", "enable_progress_bar", "enable_checkpointing")
        how = {"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1, "accelerator": "cpu"}
        trainer = lightning.Trainer(default_root_dir=tmp_path, **how, **dict.fromkeys(off, False))
        with pytest.raises(InterruptedError) if stop else nullcontext():
            trainer.fit(module, ckpt_path=path, weights_only=False)
        return module.seen

    whole = run()
    assert [epoch for epoch, _, _ in whole] == sorted([0, 1, 2] * 7)
    assert all(ids == labels for _, ids, labels in whole)
    assert run(stop=10) + run(path=tmp_path / "a.ckpt") == whole


@pytest.mark.slow
def test_two_ranks_see_each_kept_row_once_in_equal_steps(folder, store, tmp_path):
    forks.run("tests/two_ranks_ffcv.py", folder, tmp_path, ranks=2)
    a, b = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    want = ss.select(store, keep_fraction=0.655, rule="random").ids().tolist()
    for how in ("pages", "loader"):
        for one, two in zip(a[how], b[how], strict=True):
            assert len(one) == len(two) == 5
            assert sorted(flat(one + two)) == want


@pytest.mark.filterwarnings("ignore:Using a pytorch transform:ResourceWarning")
def test_an_error_in_a_pipeline_reaches_the_loop(store, folder):
    from ffcv.fields.basics import IntDecoder
    from ffcv.transforms import ToTensor

    class Fails(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("no such luck")

    loader = Loader(
        str(folder / "train.beton"),
        batch_size=32,
        num_workers=1,
        pipelines={"image": None, "label": [IntDecoder(), ToTensor(), Fails()]},
    )
    with pytest.raises(RuntimeError, match="no such luck"):
        list(prune_loader(loader, store, keep_fraction=0.5, score="up"))


def test_what_does_not_belong_together_is_refused(folder, store, loaders, tmp_path, monkeypatch):
    write_beton(tmp_path / "other.beton", 50)
    other = ss.index(tmp_path / "other.beton", tmp_path / "o.zarr")
    with pytest.raises(ss.StoreMismatchError, match="index that file"):
        prune_loader(loaders(), other)
    copied = shutil.copyfile(folder / "train.beton", tmp_path / "copy.beton")
    loader = Loader(str(copied), batch_size=32, num_workers=1)
    with pytest.raises(
        ss.StoreMismatchError, match="if it is a copy open the store with copies=FOLDER"
    ):
        prune_loader(loader, store)
    shutil.copystat(folder / "train.beton", copied)
    assert len(prune_loader(loader, store, keep_fraction=0.5, score="up")) == 6
    with pytest.raises(ss.StoreMismatchError, match="another shard index"):
        prune_loader(loaders(), store, keep_set=ss.select(other, keep_fraction=1.0))
    nothing = ss.KeepSet.from_ids(store, np.zeros(0, dtype=np.int64))
    assert list(prune_loader(loaders(), store, keep_set=nothing)) == []
    with pytest.raises(TypeError, match="keep_fraction must come without keep_set"):
        prune_loader(loaders(), store, keep_set=nothing, keep_fraction=0.5)
    with pytest.raises(TypeError, match="must be an ffcv"):
        prune_loader([1], store)
    with pytest.raises(ValueError, match="order must be one of"):
        prune_loader(loaders(), store, order="random")
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        prune_loader(loaders(), store).set_epoch(-1)
    os.utime(tmp_path / "other.beton", (1, 1))
    with pytest.raises(ss.StoreMismatchError, match="is not the one"):
        ss.open_store(tmp_path / "o.zarr")
    monkeypatch.setitem(__import__("sys").modules, "ffcv.loader", None)
    with pytest.raises(ImportError, match="pip install"):
        prune_loader(loaders(), store)
