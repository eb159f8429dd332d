"""Images that cannot be read, and the workers that read them."""

import multiprocessing
import os
import resource
import signal
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
import zarr
from accelerate import Accelerator
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import shardsieve as ss
from shardsieve.pack import pack
from shardsieve.shards.pixels import in_8_bits
from shardsieve.store.layout import make_array
from shardsieve.train import launch
from shardsieve.train.config import TrainConfig
from shardsieve.train.crops import Crop, cropped
from shardsieve.train.embedding import embed
from shardsieve.train.encoder import load_encoder
from shardsieve.train.evaluation import evaluate
from shardsieve.train.fresh import fresh_model
from shardsieve.train.images import normalised
from shardsieve.train.launch import let_go, make_accelerator
from shardsieve.train.loading import make_loader
from shardsieve.train.loop import Trainer
from shardsieve.train.nets import embed_batch, light
from shardsieve.train.recorder import Recorder, Watcher
from shardsieve.train.seeding import score_seeds
from shardsieve.train.subset import train_subset


def damaged_store(folder, broken):
    """A store of 40 random images, some of whose bytes are no image."""
    generator = np.random.default_rng(0)
    (folder / "img").mkdir()
    for label in ("a", "b"):
        (folder / "img" / label).mkdir()
        for i in range(20):
            path = folder / "img" / label / f"{i:02d}.png"
            Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
    made = pack(folder / "img", folder / "shards", samples_per_shard=10)[0]
    store = ss.index(made.pattern, folder / "s.zarr")
    for sample_id in broken:
        shard, position = divmod(sample_id, store.rows_per_shard)
        offset, length = store.ranges[shard, position].tolist()
        data = bytearray(Path(store.urls[shard]).read_bytes())
        at = data.index(b"\x89PNG", offset, offset + length)
        data[at : at + 4] = b"oops"
        stat = Path(store.urls[shard]).stat()
        Path(store.urls[shard]).write_bytes(data)
        os.utime(store.urls[shard], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return ss.open_store(folder / "s.zarr")


@contextmanager
def full_disk():
    """Lets no file grow beyond 50 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_who_reads_the_table_of_contents_finds_an_embedding_that_was_begun_by_a_killed_start(
    tmp_path,
):
    store = damaged_store(tmp_path, [])
    network = light(2)
    dim = embed_batch(network, torch.zeros(1, 3, 8, 8)).shape[1]
    make_array(store.group, "embedding/cut", (4, store.rows_per_shard, dim), "float16", np.nan)
    how = {"name": "cut", "accelerator": Accelerator()}
    with full_disk(), pytest.raises(ss.ShardsieveError, match=r"write the store .*File too large"):
        embed(store, network, seeds="x" * 100_000, **how)
    embed(store, network, **how)
    table = zarr.open_group(store.path, mode="r", use_consolidated=True)
    assert table["embedding/cut"].attrs["cost"]["forward"] == len(store)


def test_what_the_starts_of_a_pass_took_is_added_up_and_nothing_where_all_is_done(tmp_path):
    store, network = damaged_store(tmp_path, []), light(2)
    how = {"name": "mine", "batch_size": 5, "accelerator": Accelerator(cpu=True)}
    assert embed(store, network, **how) == 40
    array = store.embedding_array("mine")
    points, first = array[:], array.attrs["cost"]
    assert np.isfinite(points).all(axis=-1).sum() == 40  # batches end with the shards of ten
    array[0] = np.nan
    assert embed(store, network, **how) == 10
    array = store.embedding_array("mine")
    np.testing.assert_allclose(array[:], points, rtol=1e-3)
    took = array.attrs["cost"]
    assert (first["forward"], took["forward"]) == (40, 50)
    assert embed(store, network, **how) == 0
    assert store.embedding_array("mine").attrs["cost"] == took


def test_unreadable_images_are_named_counted_and_limited(tmp_path, caplog):
    store = damaged_store(tmp_path, broken := [1, 66])
    key = store.keys(0)[1]
    network, accelerator = light(2), Accelerator()
    with pytest.raises(ss.UnreadableSampleError, match=rf"sample {key} of shard .*train-000000"):
        embed(store, network, name="strict", accelerator=accelerator)
    with pytest.raises(ss.UnreadableSampleError, match="more than 1 samples cannot be read"):
        embed(store, network, name="one", max_unreadable=1, accelerator=accelerator)
    embed(store, network, name="two", max_unreadable=2, accelerator=accelerator)
    assert embed(store, network, name="two", max_unreadable=2, accelerator=accelerator) == 0
    missing = ~np.isfinite(store.embedding("two")).all(axis=1)
    assert store.ids()[missing].tolist() == broken
    assert f"cannot decode sample {key}" in caplog.text
    assert "it is no image that Pillow knows" in caplog.text
    assert " at 0x" not in caplog.text
    config = TrainConfig(epochs=3, batch_size=8, max_unreadable=9)
    how = {"folder": tmp_path / "run", "window": 3, "accelerator": accelerator}
    with pytest.raises(ValueError, match="window=3"):
        score_seeds(store, store.ids(), replace(config, epochs=3), **how)
    result = score_seeds(store, store.ids(), replace(config, epochs=4), **how)
    assert result["unreadable"] == 2
    assert store.ids()[np.isnan(store.score("seed_el2n"))].tolist() == broken
    with pytest.raises(ss.MissingScoreError, match="2 of 40 are not scored"):
        ss.select(store, score="seed_el2n", keep_fraction=0.5)
    kept = ss.select(store, score="seed_el2n", keep_fraction=0.95, drop_missing=True)
    assert kept.ids().tolist() == sorted(set(store.ids().tolist()) - set(broken))
    with pytest.raises(ss.MissingScoreError, match="more than the 38 samples"):
        ss.select(store, score="seed_el2n", keep_fraction=1.0, drop_missing=True)


def test_a_damaged_first_image_is_skipped_where_size_and_channels_are_given(tmp_path):
    """It was looked at all the same, to guess what had been said."""
    store, how = damaged_store(tmp_path, [0]), {"name": "x", "accelerator": Accelerator()}
    with pytest.raises(ss.ShardsieveError, match="give size and channels"):
        embed(store, light(2), size=8, max_unreadable=1, **how)
    assert embed(store, light(2), size=8, channels=3, max_unreadable=1, **how) == len(store)


def test_unreadable_samples_are_counted_over_workers(tmp_path):
    store = damaged_store(tmp_path, [1, 66])
    keep = ss.select(store, keep_fraction=1.0)
    config = TrainConfig(batch_size=8, max_unreadable=5, workers=2, size=8, channels=3)
    loader, _ = make_loader(store, keep, config)
    assert sum(len(batch.ids) for batch in loader) == 38
    assert loader.dataset.unreadable == [1, 66]


class Says(torch.nn.Module):
    """Says one class of two of everything, and the other one as long as it trains."""

    def __init__(self, label):
        super().__init__()
        self.label = label

    def forward(self, images):
        return torch.eye(2)[self.label ^ self.training].expand(len(images), 2)


def test_of_some_samples_the_share_is_counted_that_a_network_tells_behind_its_training(tmp_path):
    store = damaged_store(tmp_path, [])
    keep = ss.KeepSet.from_ids(store, store.ids()[:13])
    share = (store.labels()[:13] == 1).mean()
    assert share not in (0, 0.5, 1)
    config = TrainConfig(batch_size=5, size=8, channels=3)
    found = evaluate(Says(1).train(), store, keep, config, Accelerator())
    assert found == pytest.approx(share)


def test_what_stands_in_for_unreadable_images_is_not_evaluated(tmp_path):
    store, accelerator = damaged_store(tmp_path, [0, 1]), Accelerator()
    keep = ss.select(store, keep_fraction=1.0)
    config = TrainConfig(batch_size=2, max_unreadable=2, size=8, channels=3)
    right = [evaluate(Says(label), store, keep, config, accelerator) for label in (0, 1)]
    assert sum(right) == pytest.approx(38 / 40)
    # As a cluster it stands for the larger class, whichever it says.
    clusters = [evaluate(Says(n), store, keep, config, accelerator, matched=True) for n in (0, 1)]
    assert clusters == [max(right)] * 2


def test_what_stands_in_for_unreadable_images_is_neither_learned_from_nor_averaged(tmp_path):
    """For a batch of which nothing can be read sample 4 stood in, and was counted again."""
    store, told = damaged_store(tmp_path, [0, 1, 2, 3]), []
    keep, recorder = ss.KeepSet.from_ids(store, range(8)), Recorder(store.ids(), 2)
    how = {"batch_size": 4, "max_unreadable": 4, "shuffle_window": 0, "size": 8, "channels": 3}
    config = TrainConfig(epochs=1, **how)
    trainer = Trainer(light(2), store, keep, config, make_accelerator())
    trainer.sampler.update = lambda ids, losses: told.extend(ids.tolist())
    for _ in trainer.epochs(recorder):
        recorder.end_epoch()
    assert [one for one in told if one >= 0] == [4, 5, 6, 7]
    losses = recorder.signal("loss")[0]
    assert np.flatnonzero(np.isfinite(losses)).tolist() == [4, 5, 6, 7]
    assert trainer.done.history[0]["loss"] == pytest.approx(np.nanmean(losses), rel=1e-5)


@pytest.mark.usefixtures("childless")
def test_evaluations_leave_no_workers_behind(tmp_path):
    store = damaged_store(tmp_path, [])
    keep = ss.select(store, keep_fraction=1.0)
    config = TrainConfig(epochs=3, batch_size=40, workers=1, size=8, channels=3)
    running = []

    def progress(done, total, note=""):
        running.append(len(multiprocessing.active_children()))

    how = {"test": store, "evaluate_every": 1, "progress": progress}
    how["accelerator"] = make_accelerator()
    train_subset(store, keep, config, folder=tmp_path / "run", **how)
    assert running == [1, 1, 1]
    assert multiprocessing.active_children() == []


def test_a_batch_for_which_there_is_no_shared_memory_left_ends_the_run(tmp_path):
    """A thread of the worker said so, and the loop waited without end."""
    store = damaged_store(tmp_path, [])
    config = TrainConfig(batch_size=20, workers=1, size=32, channels=3)
    loader, _ = make_loader(store, ss.select(store, keep_fraction=1.0), config)
    most = resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY)  # shared memory is a file, too
    loader.worker_init_fn = lambda _: resource.setrlimit(*most)
    loader.timeout = 60
    with pytest.raises(ss.ShardsieveError, match=r"share 61,440 bytes .*; give /dev/shm more room"):
        list(loader)


@pytest.mark.usefixtures("childless")
def test_what_accelerate_prepared_for_a_run_ends_with_it(tmp_path):
    store = damaged_store(tmp_path, [])
    accelerator = make_accelerator()
    ids, own = store.ids(), accelerator.prepare(torch.nn.Linear(2, 2))
    config = TrainConfig(epochs=3, batch_size=16, workers=1, size=8, channels=3)
    how = {"scores": ["el2n"], "held_out": ids[::4], "window": 2, "accelerator": accelerator}
    score_seeds(store, np.setdiff1d(ids, ids[::4]), config, folder=tmp_path / "run", **how)
    assert multiprocessing.active_children() == []
    assert accelerator._models == [own]
    assert accelerator._optimizers == accelerator._dataloaders == []


@pytest.mark.parametrize("workers", [0, 1])
def test_only_where_workers_are_left_is_there_a_search_for_them(monkeypatch, tmp_path, workers):
    """It goes through all objects of a process: some evaluations took four times as long."""
    store, accelerator = damaged_store(tmp_path, []), Accelerator()
    config = TrainConfig(batch_size=8, workers=workers, size=8, channels=3)
    loader = accelerator.prepare(make_loader(store, ss.select(store, keep_fraction=1.0), config)[0])
    held, searches = iter(loader), []
    next(held)
    monkeypatch.setattr(launch.gc, "collect", lambda: searches.append(1))
    let_go(accelerator, loader)
    assert len(searches) == workers


class Own(nn.Module):
    """Anybody's own network: pools an image and sends the channels through a linear layer."""

    def __init__(self, channels, outputs, wrap):
        super().__init__()
        self.head, self.wrap = nn.Linear(channels, outputs), wrap
        self.modes = []

    def forward(self, images):
        self.modes.append(self.training)
        return self.wrap(self.head(images.mean(dim=(2, 3))))


def own(num_classes):
    return Own(3, num_classes, torch.Tensor.contiguous)


def own_of_one_channel(num_classes):
    return Own(1, num_classes, torch.Tensor.contiguous)


def own_of_more_outputs(num_classes):
    return Own(3, num_classes + 3, torch.Tensor.contiguous)


def own_of_fewer_outputs(num_classes):
    return Own(3, num_classes - 1, torch.Tensor.contiguous)


def own_of_tuples(num_classes):
    return Own(3, num_classes, lambda logits: (logits,))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("own_of_one_channel", r"cannot take images of shape \(3, 8, 8\) \(.*\); give other chan"),
        ("own_of_more_outputs", r"_more_outputs' must give 2 logits for an image, got \(2, 5\) of"),
        ("own_of_fewer_outputs", r"must give 2 logits for an image, got \(2, 1\) of two; let"),
        ("own_of_tuples", "must give 2 logits for an image, got tuple of two; let"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_before_a_run_begins(tmp_path, factory, message):
    store, accelerator = damaged_store(tmp_path, []), Accelerator()
    config = TrainConfig(model=f"{__name__}:{factory}", epochs=3, batch_size=8)
    how = {"folder": tmp_path / "run", "accelerator": accelerator}
    with pytest.raises(ss.ShardsieveError, match=message):
        score_seeds(store, store.ids(), config, scores=["el2n"], **how)
    keep = ss.select(store, keep_fraction=0.5, rule="random")
    if factory == "own_of_more_outputs":  # those of no class are no harm to a training
        assert train_subset(store, keep, config, **how)["samples"] == 60
        return
    with pytest.raises(ss.ShardsieveError, match=message):
        train_subset(store, keep, config, **how)
    assert not (tmp_path / "run" / "run.json").exists()
    if factory == "own_of_one_channel":
        with pytest.raises(ss.ShardsieveError, match=message):
            embed(store, own_of_one_channel(2), name="e", accelerator=accelerator)


def test_trying_a_network_leaves_it_and_the_random_numbers_as_they_were():
    config = TrainConfig(model=f"{__name__}:own", size=8, resolutions=((0, 4),), seed=3)
    model = fresh_model(config, 2, Accelerator())
    assert model.modes == [False, False]
    assert model.training
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(own(2).head.weight, model.head.weight)
    assert torch.equal(torch.rand(1), after)


def test_a_clean_pass_shows_the_network_that_is_saved_plain_images(tmp_path):
    store, folder = damaged_store(tmp_path, []), tmp_path / "run"
    ids, accelerator = store.ids(), Accelerator()
    how = {"size": 8, "channels": 3, "normalise": "imagenet", "augment": "resized", "ema": 0.5}
    config = TrainConfig(epochs=3, batch_size=8, **how)
    how = {"scores": ["el2n", "grand_last_layer"], "window": 2, "accelerator": accelerator}
    how |= {"folder": folder, "held_out": ids[::4], "snapshots": 3}
    score_seeds(store, np.setdiff1d(ids, ids[::4]), config, **how)
    assert {path.name for path in folder.glob("model*")} == {
        "model-0001.pt",
        "model-0002.pt",
        "model.pt",
    }
    recorder = Recorder.load(store, "seed_held_out")
    assert (recorder.ids.tolist(), recorder.made["view"]) == (ids[::4].tolist(), "held out")
    loader, _ = make_loader(store, ss.KeepSet.from_ids(store, ids[::4]), config, in_order=True)
    seen = Recorder(ids[::4], 2, signals=recorder.signals)
    encoder = load_encoder(str(folder))
    with Watcher(seen, encoder.network) as watcher, torch.no_grad():
        for batch in loader:
            logits = encoder.network(normalised(batch.images, "imagenet"))
            watcher.record(batch.ids, logits, batch.labels)
    seen.end_epoch()
    for name in recorder.signals:
        if name != "divergence":
            got, want = recorder.signal(name)[-1], seen.signal(name)[-1]
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5, err_msg=name)
    for other in ({"held_out": ids[1::4]}, {"snapshots": 2}):
        with pytest.raises(ss.ShardsieveError, match=f"another run: {next(iter(other))} is"):
            score_seeds(store, np.setdiff1d(ids, ids[::4]), config, **(how | other))


@pytest.mark.parametrize("sides", [(501, 384), (384, 505)])
def test_a_jpeg_whose_sides_no_decoder_divides_is_cropped_where_its_pixels_are(tmp_path, sides):
    # Brightness says where a pixel comes from: 255 from one end to the other.
    wide, high = sides
    y, x = np.mgrid[:high, :wide]
    pixels = np.stack([x * 255 / wide, y * 255 / high, 0 * x], axis=-1).round().astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=98, subsampling=0)
    crop = Crop(wide - 160, high - 160, wide, high, mirrored=False)
    with Image.open(tmp_path / "a.jpg") as drafted, Image.open(tmp_path / "a.jpg") as whole:
        fast = np.asarray(cropped(drafted, crop, 20), dtype=float)
        assert drafted.size == (-(-wide // 4), -(-high // 4)), "decoded at full size"
        slow = np.asarray(cropped(whole.convert("RGB"), crop, 20), dtype=float)
    # One pixel of the crop is 8 of the image: 4 to 5 in brightness.
    assert np.abs((fast - slow)[..., :2].mean(axis=(0, 1))).max() < 0.7


def test_pixels_beyond_sixteen_bits_are_white_and_those_below_nothing_black():
    values = np.array([[-1, 0, 255, 256, 65_535, 65_536, 100_000, 2**31 - 1]], dtype=np.int32)
    found = np.asarray(in_8_bits(Image.fromarray(values)))
    assert found.tolist() == [[0, 0, 0, 1, 255, 255, 255, 255]]


def test_floating_point_is_no_range_of_pixels():
    with pytest.raises(OSError, match="its pixels are floating point; write them as 8 or 16"):
        in_8_bits(Image.fromarray(np.ones((2, 2), np.float32)))


def test_an_accelerator_forgets_what_is_let_go_and_nothing_else():
    accelerator = make_accelerator()
    made = [
        accelerator.prepare(net := nn.Linear(1, 1), torch.optim.SGD(net.parameters()), [0])
        for _ in range(2)
    ]
    held = (accelerator._models, accelerator._optimizers, accelerator._dataloaders)
    loaders = [accelerator.prepare(torch.utils.data.DataLoader([0])) for _ in range(2)]
    let_go(accelerator, *made[0][:2], loaders[0])
    assert [list(one) for one in held] == [[made[1][0]], [made[1][1]], [loaders[1]]]


def test_an_accelerator_tracks_only_into_a_folder_and_waits_for_half_a_day(tmp_path, monkeypatch):
    assert [str(one) for one in make_accelerator(tmp_path).log_with] == ["tensorboard"]
    assert make_accelerator(tmp_path, track=()).log_with == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    alone = make_accelerator(track=("wandb",))
    assert (alone.log_with, alone.init_handler.timeout) == ([], timedelta(hours=12))
    assert make_accelerator(tmp_path).log_with == []
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ss.ShardsieveError, match="2 processes were launched but each runs alone"):
        make_accelerator()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ss.ShardsieveError, match=r"WORLD_SIZE must be .*, got 'two'; unset it"):
        make_accelerator()


def test_trackers_are_told_of_every_epoch_and_of_the_settings(tmp_path):
    store, run = damaged_store(tmp_path, []), tmp_path / "run"
    keep = ss.select(store, rule="random", keep_fraction=0.5)
    config = TrainConfig(epochs=3, batch_size=10, resolutions=((1, 6),))
    how = {"folder": run, "accelerator": make_accelerator(run), "test": store}
    result = train_subset(store, keep, config, **how, evaluate_every=2)
    assert (result["kept"], result["of"], result["steps"]) == (20, 40, 6)
    assert result["cost"]["evaluation"]["forward"] == 2 * 40
    spent = {name: phase["bytes"] for name, phase in result["phases"].items()}
    whole = ss.select(store, keep_fraction=1.0)
    assert spent == {"train": 3 * keep.nbytes(store), "evaluate": 2 * whole.nbytes(store)}
    logged = EventAccumulator(str(run / "shardsieve")).Reload()
    steps = {tag: [one.step for one in logged.Scalars(tag)] for tag in logged.Tags()["scalars"]}
    every = {tag: [2, 4, 6] for tag in ("kept", "loss", "rate", "seconds")}
    assert steps == {**every, "accuracy": [4, 6]}
    assert logged.Scalars("accuracy")[-1].value == pytest.approx(result["accuracy"])
    (written,) = run.rglob("hparams.yml")
    settings = yaml.safe_load(written.read_text())
    assert settings["resolutions"] == "((1, 6),)"
    assert settings["epochs"] == 3
    assert "pseudo_labels" not in settings
    assert not list(run.glob("checkpoint-*"))
