"""The training loop over a .beton, read by the real FFCV: the loop does not notice."""

import io
import json
import os
import threading

import forks
import numba
import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from betons import write_beton
from PIL import Image
from test_train import Killed, digest, kill_after

import shardsieve as ss
from shardsieve.commands.running import run_recipe
from shardsieve.loaders.ffcv_images import FfcvImages, decoding_threads
from shardsieve.loaders.ffcv_iterator import open_batches
from shardsieve.pack import pack
from shardsieve.pack.beton import pack_beton
from shardsieve.train.config import TrainConfig
from shardsieve.train.embedding import embed
from shardsieve.train.ffcv_batches import grey
from shardsieve.train.images import ImageDecoder
from shardsieve.train.loading import make_loader
from shardsieve.train.loop import Trainer
from shardsieve.train.nets import light, load_model
from shardsieve.train.runfolder import RunFolder
from shardsieve.train.seeding import draw_seeds, score_seeds
from shardsieve.train.subset import train_subset

# One process compiles FFCV's pipelines for all of them.
pytestmark = pytest.mark.xdist_group("ffcv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits as tars and as .beton files, with a store of each training split."""
    folder = tmp_path_factory.mktemp("digits")
    pack_beton("digits", folder)
    tars = pack("digits", folder / "tars", samples_per_shard=400)[0]
    ss.index(tars.pattern, folder / "tars.zarr")
    for name in ("train", "test"):
        ss.index(folder / f"{name}.beton", folder / f"{name}.zarr")
    return folder


@pytest.fixture
def store(folder):
    return ss.open_store(folder / "train.zarr")


def slowly(store):
    return ss.ShardDataset(store, ImageDecoder(size=8))


def in_order(store, **settings):
    """Every batch in the order of the file, as the loop gets it."""
    config = TrainConfig(batch_size=64, **{"size": 8, "channels": 1, **settings})
    keep = ss.select(store, keep_fraction=1.0)
    return [
        tuple(part.clone() for part in batch)
        for batch in make_loader(store, keep, config, in_order=True)[0]
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_loop_gets_the_same_batches_from_a_beton_as_from_tars(folder, store, channels):
    tars = ss.open_store(folder / "tars.zarr")
    ours, theirs = in_order(store, channels=channels), in_order(tars, channels=channels)
    assert len(ours) == len(theirs) == -(-len(store) // 64)
    for one, two in zip(ours, theirs, strict=True):
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            if number != 2:  # ids are counted differently in the two layouts
                assert a.dtype == b.dtype
                assert torch.equal(a, b)
        assert tars.labels()[tars.rows(two[2])].tolist() == store.labels()[one[2]].tolist()


def test_a_run_that_augments_while_decoding_may_be_evaluated_on_a_beton(store):
    plain, evaluated = in_order(store), in_order(store, augment="resized")
    assert len(plain) == len(evaluated)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(plain, evaluated, strict=True))


def test_images_of_other_sizes_are_scaled_and_cut_as_those_of_tars(tmp_path):
    y, x = np.mgrid[0:96, 0:128]
    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        for n in range(3):
            pixels = np.stack([x + 40 * n, 2 * y, x + y], axis=-1) % 256
            side = 96 + 32 * (n % 2)
            Image.fromarray(pixels[:, :side].astype(np.uint8)).resize((side, 96)).save(
                tmp_path / "images" / label / f"{n}.png"
            )
    pack_beton(tmp_path / "images", tmp_path)
    tars = pack(tmp_path / "images", tmp_path / "tars")[0]
    stores = [
        ss.index(pattern, tmp_path / f"{n}.zarr")
        for n, pattern in enumerate([tmp_path / "train.beton", tars.pattern])
    ]
    (ours,), (theirs,) = (in_order(store, size=48, channels=3) for store in stores)
    assert ours[0].shape == theirs[0].shape == (6, 3, 48, 48)
    # FFCV averages where Pillow interpolates: no pixel far off, none shifted.
    assert (ours[0].float() - theirs[0].float()).abs().mean() < 4
    assert torch.equal(ours[1], theirs[1])


def test_batches_may_be_kept_and_know_their_samples(store):
    """FFCV fills the same memory again after a few batches."""
    sampler = ss.PrunedShardSampler(store, keep_fraction=0.4, rule="random", batch_size=64)
    held = list(FfcvImages(store, sampler, slowly=slowly(store), batch_size=64, size=8))
    assert len(held) == 9
    raw = ss.ShardDataset(store)
    for images, labels, ids, weights in ((*b, b.ids, b.weights) for b in held):
        for image, sample in zip(images, raw.__getitems__(ids.tolist()), strict=True):
            want = np.asarray(Image.open(io.BytesIO(sample["ppm"])))
            np.testing.assert_array_equal(image.permute(1, 2, 0), want)
        assert labels.tolist() == store.labels()[ids].tolist()
        assert weights.tolist() == [1] * len(ids)
    assert sorted(i for b in held for i in b.ids.tolist()) == sampler.keep_set.ids().tolist()


def test_torch_trains_with_its_own_number_of_threads(store):
    """FFCV gives torch its own number: one, unless there are workers."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        config = TrainConfig(batch_size=64, size=8, channels=1)
        loader, _ = make_loader(store, ss.select(store, keep_fraction=1.0), config)
        assert {torch.get_num_threads() for _ in loader} == {3}
    finally:
        torch.set_num_threads(before)


def test_ffcv_decodes_with_no_more_threads_than_numba_has(monkeypatch):
    """A process may be given fewer cores than the machine has, as by Slurm or taskset."""
    monkeypatch.setattr(os, "cpu_count", lambda: 10_000)
    before = numba.get_num_threads()
    try:
        for asked, least in ((0, 1), (1, 1), (10_000, before)):
            numba.set_num_threads(decoding_threads(asked))
            assert numba.get_num_threads() >= least
        assert decoding_threads(0) == decoding_threads(1) == 1
    finally:
        numba.set_num_threads(before)


def test_a_file_that_was_written_anew_is_not_read_by_its_compiled_loader_of_before(tmp_path):
    def loader(n, name):
        store = ss.index(write_beton(tmp_path / "train.beton", n, side=8), tmp_path / name)
        sampler = ss.PrunedShardSampler(store, batch_size=4)
        how = {"slowly": slowly(store), "batch_size": 4, "size": 8}
        first, again = (FfcvImages(store, sampler, **how).loader for _ in range(2))
        assert first is again
        return first

    assert [loader(n, f"{n}.zarr").reader.num_samples for n in (5, 6)] == [5, 6]


def test_a_loop_that_is_left_reads_no_further(store):
    sampler = ss.PrunedShardSampler(store, keep_fraction=1.0, batch_size=64)
    loader = FfcvImages(store, sampler, slowly=slowly(store), batch_size=64, size=8).loader
    fields = open_batches(loader, [np.array([row], dtype=np.uint64) for row in range(400)])
    left = fields.iter_ixes
    next(fields)
    fields.close()
    assert not fields.is_alive()
    assert len(list(left)) > 300
    fields.close()


def test_a_loop_over_images_that_is_left_ends_their_thread(store):
    sampler = ss.PrunedShardSampler(store, keep_fraction=1.0, batch_size=8)
    images = FfcvImages(store, sampler, slowly=slowly(store), batch_size=8, size=8)
    batches, before = iter(images), set(threading.enumerate())
    next(batches)
    batches.close()
    assert set(threading.enumerate()) == before


def test_labels_may_be_others_than_the_stores(store):
    sampler = ss.PrunedShardSampler(store, keep_fraction=0.1, rule="random", batch_size=64)
    how = {"slowly": slowly(store), "batch_size": 64, "size": 8, "labels": np.arange(len(store))}
    for batch in FfcvImages(store, sampler, **how):
        assert torch.equal(batch[1], batch.ids)


def test_of_nothing_kept_there_are_no_batches(store):
    sampler = ss.PrunedShardSampler(store, keep_set=ss.KeepSet.from_ids(store, []), batch_size=8)
    images = FfcvImages(store, sampler, slowly=slowly(store), batch_size=8, size=8)
    assert len(images) == len(list(images)) == 0


def test_a_policys_weights_come_with_the_batches(store):
    policy = ss.InfoBatch(num_epochs=3)
    sampler = ss.PrunedShardSampler(store, policy=policy, batch_size=64)
    images = FfcvImages(store, sampler, slowly=slowly(store), batch_size=64, size=8)
    for batch in images:
        sampler.update(batch.ids, batch.ids.float())  # the loss of a row is its number
    sampler.set_epoch(1)
    weights = {
        i: w for b in images for i, w in zip(b.ids.tolist(), b.weights.tolist(), strict=True)
    }
    assert sorted(weights) == sampler.keep_set.ids().tolist()
    assert len(weights) < len(store)
    assert set(weights.values()) == {1, 2}


@pytest.mark.parametrize("augment", ["resized", "trivial", "rand", "no_such:factory"])
def test_augmenting_while_decoding_is_refused_before_a_run_begins(store, tmp_path, augment):
    config = TrainConfig(size=8, channels=1, augment=augment)
    how = {"folder": tmp_path / "run", "accelerator": Accelerator(cpu=True)}
    message = f"must be none, crop, flip for a .beton, got '{augment}', whose crops FFCV cannot"
    with pytest.raises(ValueError, match=message):
        score_seeds(store, draw_seeds(store, 0.2), config, window=5, **how)
    with pytest.raises(ValueError, match=message):
        train_subset(store, ss.select(store, rule="random", keep_fraction=0.5), config, **how)
    assert not (tmp_path / "run/run.json").exists()


def test_a_chain_says_so_before_its_first_training(folder, tmp_path):
    data = {"store": str(folder / "train.zarr"), "urls": str(folder / "train.beton")}
    made = {"work": str(tmp_path / "work"), "data": data, "select": {"rule": "random"}}
    made |= {"score": {"epochs": 5, "window": 3}, "train": {"augment": "resized"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(made))
    with pytest.raises(ValueError, match=r"recipe.yaml: train: augment must .* for a \.beton"):
        run_recipe(tmp_path / "recipe.yaml")
    assert not (tmp_path / "work").exists()


def test_grey_is_pillows():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    want = np.asarray(Image.fromarray(pixels).convert("L"))
    got = grey(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0, 0]
    np.testing.assert_array_equal(got.numpy(), want)


def trained(store, keep, folder, kills=()):
    """Train, killed at these steps; return the weights and the ids in the order of training."""
    config = TrainConfig(epochs=3, batch_size=32, size=8, channels=1, augment="crop")
    seen = []
    for kill in (*kills, None):
        torch.manual_seed(0)
        trainer = Trainer(
            load_model("light", 10, 1),
            store,
            keep,
            config,
            Accelerator(cpu=True),
            folder=RunFolder(folder),
            checkpoint_steps=4,
        )
        del seen[trainer.done.samples + trainer.done.place :]

        class Watch:
            def record(self, ids, logits, labels):
                assert labels.tolist() == store.labels()[ids].tolist()
                seen.extend(ids.tolist())

        try:
            for _ in trainer.epochs(Watch(), kill_after(kill) if kill else None):
                pass
        except Killed:
            continue
    return digest(trainer.network), seen


def test_a_killed_run_makes_the_same_steps_as_an_undisturbed_one(store, tmp_path):
    keep = ss.select(store, rule="random", keep_fraction=0.25)
    for name in "ab":
        (tmp_path / name).mkdir()
    whole, order = trained(store, keep, tmp_path / "a")
    cut, again = trained(store, keep, tmp_path / "b", kills=(7, 13, 30))
    assert again == order
    assert sorted(order) == sorted(np.tile(keep.ids(), 3).tolist())
    assert order[: len(keep)] != order[len(keep) : 2 * len(keep)]
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_training_learns_and_says_what_it_took(folder, store, tmp_path):
    keep = ss.select(store, rule="random", keep_fraction=0.5)
    test = ss.open_store(folder / "test.zarr")
    config = TrainConfig(epochs=4, batch_size=32)
    result = train_subset(
        store, keep, config, folder=tmp_path / "run", accelerator=Accelerator(), test=test
    )
    assert result["accuracy"] > 0.8
    assert result["steps"] == -(-len(keep) // 32) * 4
    assert result["phases"]["train"]["bytes"] == keep.nbytes(store) * 4
    reads = result["reads_since_start"]
    assert reads.pop("kept") == keep.nbytes(store) * 4
    assert set(reads.values()) == {None}  # what the page cache read nobody counts


@pytest.mark.parametrize("clean_pass", [False, True])
def test_seeds_of_a_beton_are_scored_and_embedded(folder, tmp_path, clean_pass):
    store = ss.index(folder / "train.beton", tmp_path / "s.zarr")
    seeds = draw_seeds(store, 0.1)
    config = TrainConfig(epochs=4, batch_size=32)
    how = {"folder": tmp_path / "run", "window": 3, "clean_pass": clean_pass}
    score_seeds(store, seeds, config, accelerator=Accelerator(), **how)
    assert store.ids()[np.isfinite(store.score("seed_tdds"))].tolist() == seeds.tolist()
    if clean_pass:
        assert embed(store, light(10), name="e", accelerator=Accelerator()) == len(store)
        assert np.isfinite(store.embedding("e")).all()


@pytest.mark.slow
def test_two_ranks_train_on_the_keep_set_exactly_once_in_equal_steps(folder, tmp_path):
    forks.run("tests/two_ranks_train.py", folder / "train.zarr", tmp_path, ranks=2)
    a, b = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    for first, second in zip(a["epochs"], b["epochs"], strict=True):
        assert len(first) == len(second) > 1
        assert sorted(i for batch in first + second for i in batch) == a["keep"] == b["keep"]
    assert a["epochs"][0] != a["epochs"][1]


@pytest.mark.slow
def test_a_run_over_a_beton_makes_its_store_on_two_processes(folder, tmp_path):
    data = ["--data", str(folder / "train.beton"), "--test", str(folder / "test.beton")]
    data += ["--store", str(tmp_path / "made.zarr"), "--rule", "random", "--keep-fraction", "0.5"]
    how = ["--out", str(tmp_path / "run"), "--epochs", "3", "--batch-size", "16", "--json"]
    how += ["--checkpoint-steps", "2", "--schedule", "cosine"]
    script = "tools/train_subset.py"
    result = json.loads(forks.run(script, *data, *how, ranks=2).splitlines()[-1])
    assert result["processes"] == 2
    assert result["accuracy"] > 0.5
    assert result["samples"] == 3 * ss.num_kept(len(ss.open_store(tmp_path / "made.zarr")), 0.5)
