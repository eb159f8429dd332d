"""What real runs need: signals, damaged checkpoints, averages, accumulation, crops."""

import json
import logging
import signal
import subprocess
import time
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import forks
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from launching import ROOT, TWO_CPUS
from PIL import Image
from torch import nn

import shardsieve as ss
from shardsieve import cli as program
from shardsieve.pack import pack
from shardsieve.train.config import TrainConfig
from shardsieve.train.crops import Crop, RandomCrops, cropped
from shardsieve.train.ending import Stopped
from shardsieve.train.images import NORMALISATIONS, Batch, normalised
from shardsieve.train.launch import make_accelerator
from shardsieve.train.loading import make_loader, set_epoch
from shardsieve.train.loop import Trainer
from shardsieve.train.nets import resnet50
from shardsieve.train.runfolder import RunFolder
from shardsieve.train.seeding import score_seeds
from shardsieve.train.stepping import Stepper
from shardsieve.train.subset import train_subset
from shardsieve.train.tracking import tracked_as

TOOL = str(ROOT / "tools/train_subset.py")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    return pack("digits", folder, samples_per_shard=100, test_fraction=0.7)


@pytest.fixture(scope="module")
def store(packed, tmp_path_factory):
    return ss.index(packed[0].pattern, tmp_path_factory.mktemp("store") / "s.zarr")


# Stopped and killed ------------------------------------------------------------------------


def arguments(store, out, *more):
    how = ["--store", store.path, "--out", out, "--epochs", 6, "--batch-size", 8]
    how += ["--augment", "crop", "--policy", "infobatch", "--checkpoint-steps", 3, "--ema", 0.9]
    return [*map(str, how), "--accumulate", "2", *more]


def outcome(folder):
    """Losses of every epoch and the final weights."""
    lines = (folder / "history.jsonl").read_text().splitlines()
    weights = torch.load(folder / "model.pt", weights_only=True)["weights"]
    return [json.loads(line)["loss"] for line in lines], weights


def assert_same(folders):
    (losses, weights), (again, twins) = map(outcome, folders)
    # A stop adds a place where losses are added up: their sum may differ in its last bit.
    np.testing.assert_allclose(losses, again, rtol=1e-12)
    assert all(torch.equal(weights[name], twins[name]) for name in weights)


def steps_saved(folder):
    """The step of the newest checkpoint, 0 if there is none."""
    return max((int(p.name.split("-")[1]) for p in folder.glob("checkpoint-*.pt")), default=0)


DRAWN = ("--augment", "trivial", "--workers", "1")


@pytest.fixture(scope="module")
def of_two_ranks(store, tmp_path_factory):
    """The folder of an undisturbed run on two ranks."""
    whole = tmp_path_factory.mktemp("two") / "whole"
    forks.run(TOOL, *arguments(store, whole, *DRAWN), ranks=2)
    return whole


@pytest.mark.slow
@pytest.mark.xdist_group("two ranks killed")
def test_two_ranks_stopped_end_as_an_undisturbed_run(store, of_two_ranks, tmp_path):
    cut = tmp_path / "cut"
    command = [TOOL, *arguments(store, cut, *DRAWN)]
    with subprocess.Popen([*TWO_CPUS, *command]) as launched:
        while steps_saved(cut) < 3:
            assert launched.poll() is None
            time.sleep(0.01)
        launched.terminate()
    assert launched.returncode != 0
    assert not (cut / "result.json").exists()
    forks.run(*command, ranks=2)
    assert_same([of_two_ranks, cut])


@pytest.mark.slow
@pytest.mark.xdist_group("two ranks killed")
def test_two_ranks_killed_have_the_losses_of_an_undisturbed_run_to_the_last_bit(
    store, of_two_ranks, tmp_path
):
    cut = tmp_path / "cut"
    command = [TOOL, *arguments(store, cut, *DRAWN)]
    kill_two_ranks(command, cut, 6)
    forks.run(*command, ranks=2)
    (losses, weights), (again, twins) = map(outcome, [of_two_ranks, cut])
    assert len(losses) == 6
    assert losses == again
    assert all(torch.equal(weights[name], twins[name]) for name in weights)


def kill_two_ranks(command, folder, step):
    """Kill two ranks with SIGKILL once they have saved such a step."""
    ranks = forks.start(*command, ranks=2)
    forks.wait_for(lambda: steps_saved(folder) >= step, ranks)
    assert forks.kill(ranks) == [-signal.SIGKILL] * 2
    assert not (folder / "result.json").exists()


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(store, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    forks.run(TOOL, *arguments(store, whole))
    command = [TOOL, *arguments(store, cut)]
    alone = forks.start(*command)
    forks.wait_for(lambda: steps_saved(cut) >= 3, alone)
    alone[0].terminate()
    assert forks.ended(alone) == [143]
    assert not (cut / "result.json").exists()
    forks.run(*command)
    assert_same([whole, cut])


def stop_at(step):
    def progress(done, total, note=""):
        if done == step:
            signal.raise_signal(signal.SIGTERM)

    return progress


@pytest.mark.parametrize(("asked", "steps", "epochs"), [(1, 1, []), (2, 3, [0]), (4, 4, [0, 1])])
def test_who_is_asked_to_stop_in_an_epochs_last_step_ends_it(store, asked, steps, epochs):
    keep = ss.select(store, keep_fraction=0.1, rule="random")
    config = TrainConfig(epochs=2, batch_size=32, size=8, channels=1)
    trainer = Trainer(plain_net(1), store, keep, config, Accelerator(cpu=True))
    with nullcontext() if steps == 4 else pytest.raises(Stopped):
        list(trainer.epochs(progress=stop_at(asked)))
    assert (trainer.done.steps, [row["epoch"] for row in trainer.done.history]) == (steps, epochs)


def test_a_run_that_diverges_ends_after_that_epoch_and_leaves_no_network(store, tmp_path):
    keep, folder = ss.select(store, rule="random", keep_fraction=0.2), tmp_path / "run"
    config = TrainConfig(epochs=3, batch_size=8, learning_rate=1e30)
    for _ in range(2):  # started again it says the same
        with pytest.raises(ss.ShardsieveError, match=r"diverged in epoch 0.* lower learning rate"):
            train_subset(store, keep, config, folder=folder, accelerator=make_accelerator())
    how = {"accelerator": make_accelerator(), "scores": ["el2n"]}
    with pytest.raises(ss.ShardsieveError, match="diverged in epoch 0"):
        score_seeds(store, keep.ids(), config, folder=tmp_path / "seed", **how)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert not left & {"model.pt", "result.json"}
    assert not store.scores


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog):
    run = RunFolder(tmp_path)
    assert run.newest_checkpoint() is None
    for steps in (10, 20, 30):
        run.save_checkpoint({"steps": steps, "weights": torch.zeros(1000)}, steps)
    newest = sorted(tmp_path.glob("checkpoint-*.pt"))
    assert [int(p.name.split("-")[1]) for p in newest] == [20, 30]
    data = bytearray(newest[-1].read_bytes())
    data[len(data) // 2] ^= 1
    newest[-1].write_bytes(data)
    with caplog.at_level(logging.WARNING, logger="shardsieve"):
        assert run.need(run.newest_checkpoint())["steps"] == 20
    assert "is damaged; going on from the one before it" in caplog.text
    run.save_checkpoint({"steps": 25}, 25)
    assert run.need(run.newest_checkpoint())["steps"] == 25
    assert [int(p.name.split("-")[1]) for p in sorted(tmp_path.glob("*.pt"))] == [20, 25]
    for path in tmp_path.glob("checkpoint-*.pt"):
        path.write_bytes(path.read_bytes()[:100])
    assert run.newest_checkpoint() is None
    run.save_checkpoint({"steps": 1}, 1)
    assert [p.name.split("-")[1] for p in tmp_path.iterdir()] == ["000000001"]


@pytest.mark.parametrize("name", ["run.json", "result.json"])
def test_a_damaged_record_of_a_run_is_named(tmp_path, name):
    run = RunFolder(tmp_path)
    (tmp_path / name).write_text('{"kind": "tr')
    with pytest.raises(ss.ShardsieveError, match=f"{name} is damaged; delete {tmp_path}"):
        run.refuse_another({}) if name == "run.json" else run.result()


# Steps -------------------------------------------------------------------------------------


def batch_of(n, seed=0, side=6):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 4, (n,), generator=generator)
    return Batch(images, labels, torch.arange(n), torch.ones(n))


def plain_net(channels=3):
    torch.manual_seed(0)
    convolution = nn.Conv2d(channels, 5, 3)
    return nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 10))


def stepped(config, batches):
    stepper = Stepper(plain_net(), config, Accelerator(cpu=True))
    for number, batch in enumerate(batches):
        how = {
            "epoch": 0,
            "place": number,
            "share": len(batch.ids) / sum(len(one.ids) for one in batches),
        }
        stepper.batch(batch, **how, last=number + 1 == len(batches))
    stepper.update(0.5)
    return stepper


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_accumulated_batches_of_any_sizes_make_the_step_of_one_large_batch(sizes):
    whole, ends = batch_of(sum(sizes)), np.cumsum([0, *sizes])
    cut = [Batch(*(x[a:b] for x in whole)) for a, b in pairwise(ends.tolist())]
    config = TrainConfig(weight_decay=0.01)
    one, many = stepped(config, [whole]), stepped(config, cut)
    for a, b in zip(one.bare.parameters(), many.bare.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_run_that_is_stopped_makes_the_steps_of_a_plain_loop(store, tmp_path):
    keep = ss.select(store, keep_fraction=0.5, rule="random")
    how = {"momentum": 0.8, "weight_decay": 0.02, "label_smoothing": 0.1, "ema": 0.5, "size": 8}
    config = TrainConfig(epochs=2, batch_size=48, accumulate=4, channels=1, seed=3, **how)
    how = {"folder": RunFolder(tmp_path), "checkpoint_steps": 1}
    rates, begin = [], time.perf_counter()
    for stop, end in ((3, pytest.raises(Stopped)), (0, nullcontext())):
        trainer = Trainer(plain_net(1), store, keep, config, Accelerator(cpu=True), **how)
        sgd = trainer.stepper.optimizer.optimizer
        sgd.register_step_post_hook(lambda sgd, *_: rates.append(sgd.param_groups[0]["lr"]))
        with end:
            list(trainer.epochs(progress=stop_at(stop)))
    assert trainer.done.training.seconds <= time.perf_counter() - begin

    net, slow, losses, wanted = plain_net(1), None, [], []
    sgd = torch.optim.SGD(net.parameters(), 1, 0.8, nesterov=True, weight_decay=0.02)
    loader, sampler = make_loader(store, keep, config)
    for epoch in range(2):
        set_epoch(loader, sampler, epoch)
        place, batches = 0, list(loader)
        assert [len(batch.ids) for batch in batches] == [48] * 5 + [30]
        for step_of in (batches[:4], batches[4:]):
            images, labels, _, _ = map(torch.cat, zip(*step_of, strict=True))
            wanted.append(config.rate((epoch + place / len(keep)) / 2))
            sgd.param_groups[0]["lr"] = wanted[-1]
            loss = nn.functional.cross_entropy(net(normalised(images)), labels, label_smoothing=0.1)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            place += len(labels)
            losses.append(loss.item() * len(labels))
            now = [p.detach().clone() for p in net.parameters()]
            slow = now if slow is None else [(a + b) / 2 for a, b in zip(slow, now, strict=True)]
    assert rates == wanted
    for ours, theirs in ((trainer.stepper.bare, now), (trainer.network, slow)):
        for a, b in zip(ours.parameters(), theirs, strict=True):
            torch.testing.assert_close(a.data, b, rtol=1e-4, atol=1e-5)
    means = np.array(losses).reshape(2, -1).sum(axis=1) / len(keep)
    np.testing.assert_allclose([row["loss"] for row in trainer.done.history], means, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_progress_ends_at_the_steps_that_were_announced(store, accumulate):
    config = TrainConfig(epochs=2, batch_size=64, size=8, channels=1, accumulate=accumulate)
    keep = ss.select(store, keep_fraction=0.8, rule="random")
    net, told = plain_net(1).eval(), []
    trainer = Trainer(net, store, keep, config, Accelerator(cpu=True))
    step = lambda done, total, note="": told.append((done, total, net.training))  # noqa: E731
    for _ in trainer.epochs(progress=step):
        net.eval()
    of_epoch = -(-len(keep) // (64 * accumulate))
    assert len(keep) % (64 * accumulate)
    assert told == [(done, 2 * of_epoch, True) for done in range(1, 2 * of_epoch + 1)]


def test_one_value_per_channel_is_normalised_by_the_running_statistics():
    """The last batch of an epoch may be one; here the last map is one pixel."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 5), nn.BatchNorm1d(5), nn.Linear(5, 4))
    stepper = Stepper(net, TrainConfig(), Accelerator(cpu=True))
    stepper.batch(batch_of(4), epoch=0, place=0, share=1.0, last=True)
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    one = batch_of(1)
    logits, _ = stepper.batch(one, epoch=0, place=4, share=1.0, last=True)
    assert all(module.training and not module._forward_pre_hooks for module in net.modules())
    torch.testing.assert_close(dict(net.named_buffers()), before, rtol=0, atol=0)
    torch.testing.assert_close(logits, net.eval()(normalised(one.images)))


def test_one_sample_of_larger_maps_has_statistics_of_its_own():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.LazyLinear(4)]
    net = nn.Sequential(*layers).train()
    one = batch_of(1)
    with torch.no_grad():
        wanted = net(normalised(one.images))
    stepper = Stepper(net, TrainConfig(), Accelerator(cpu=True))
    logits, _ = stepper.batch(one, epoch=0, place=0, share=1.0, last=True)
    torch.testing.assert_close(logits.detach(), wanted)


def test_the_average_of_weights_is_the_slow_one_and_is_what_is_evaluated():
    config = TrainConfig(ema=0.8, learning_rate=0.5)
    stepper = Stepper(plain_net(), config, Accelerator(cpu=True))
    slow = None
    for number in range(6):
        stepper.batch(batch_of(4, seed=number), epoch=0, place=0, share=1.0, last=True)
        stepper.update(number / 6)
        now = [p.detach().double() for p in stepper.bare.parameters()]
        slow = now if slow is None else [0.8 * a + 0.2 * b for a, b in zip(slow, now, strict=True)]
    for a, b in zip(slow, stepper.network.parameters(), strict=True):
        torch.testing.assert_close(a, b.double(), rtol=1e-5, atol=1e-6)
    assert stepper.evaluated() is stepper.network is not stepper.bare
    twin = Stepper(plain_net(), config, Accelerator(cpu=True))
    twin.load_state_dict(stepper.state_dict())
    for a, b in zip(twin.network.parameters(), stepper.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_one_weight_that_is_no_number_is_found():
    stepper = Stepper(plain_net(), TrainConfig(), Accelerator(cpu=True))
    assert stepper.is_finite()
    stepper.bare[0].weight.data[0, 0, 0, 0] = torch.nan
    assert not stepper.is_finite()


def test_images_are_scaled_normalised_and_laid_out_before_the_network():
    config = TrainConfig(resolutions=((1, 4),), channels_last=True, normalise="imagenet")
    stepper = Stepper(plain_net(), config, Accelerator(cpu=True))
    seen = []
    stepper.bare.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = batch_of(2)
    for epoch in (0, 1):
        stepper.batch(batch, epoch=epoch, place=0, share=1.0, last=True)
    assert [tuple(images.shape[2:]) for images in seen] == [(6, 6), (4, 4)]
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(seen[0], normalised(batch.images, "imagenet"))


@pytest.mark.parametrize("how", NORMALISATIONS)
def test_normalising_is_what_its_table_says(how):
    mean, deviation = (np.array(x).reshape(-1, 1, 1) for x in NORMALISATIONS[how])
    pixels = batch_of(3).images
    slow = (pixels.numpy() / 255 - mean) / deviation
    np.testing.assert_allclose(normalised(pixels, how).numpy(), slow, rtol=1e-5, atol=1e-6)


# Crops -------------------------------------------------------------------------------------


@given(st.integers(0, 2**40), st.integers(1, 600), st.integers(1, 600), st.integers(0, 90))
def test_a_crop_lies_in_its_image_and_depends_on_seed_epoch_and_id_alone(
    sample_id, width, height, epoch
):
    crops, twins = RandomCrops(3), RandomCrops(3)
    for one in (crops, twins):
        one.set_epoch(epoch)
    crop = crops.crop(sample_id, width, height)
    assert 0 <= crop.left < crop.right <= width
    assert 0 <= crop.top < crop.bottom <= height
    assert crop == twins.crop(sample_id, width, height)


def test_crops_cover_areas_and_sides_evenly():
    crops = RandomCrops(0)
    made = [crops.crop(i, 200, 200) for i in range(3000)]
    areas = np.array([(c.right - c.left) * (c.bottom - c.top) for c in made]) / 200**2
    ratios = np.array([(c.right - c.left) / (c.bottom - c.top) for c in made])
    assert 0.07 < areas.min() < 0.12
    assert areas.max() > 0.95
    assert 0.7 < ratios.min() < 0.78 < 1.28 < ratios.max() < 1.4
    assert abs(np.mean([c.mirrored for c in made]) - 0.5) < 0.03
    centres = np.array([(c.left + c.right) / 400 for c in made])
    assert abs(centres.mean() - 0.5) < 0.02
    crops.set_epoch(1)
    assert sum(crops.crop(i, 200, 200) == made[i] for i in range(100)) < 5


def test_a_crop_of_a_jpeg_shows_what_a_crop_of_its_pixels_shows(tmp_path):
    y, x = np.mgrid[:256, :384]
    pixels = np.stack([x * 255 // 384, y * 255 // 256, (x + y) % 256 // 2], axis=-1)
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    crop = Crop(64, 32, 320, 224, mirrored=True)
    with Image.open(tmp_path / "a.jpg") as drafted, Image.open(tmp_path / "a.jpg") as whole:
        fast = np.asarray(cropped(drafted, crop, 32).convert("RGB"), dtype=float)
        assert drafted.size == (96, 64), "decoded at full size: the draft did not run"
        slow = cropped(whole.convert("RGB"), crop, 32)
    assert np.abs(fast[..., :2] - np.asarray(slow, dtype=float)[..., :2]).mean() < 3


def test_workers_crop_alike_and_hear_of_the_epoch(store):
    keep = ss.select(store, rule="random", keep_fraction=0.1)
    seen = {}
    for workers in (0, 2):
        how = {"batch_size": 16, "size": 6, "channels": 1, "augment": "resized"}
        loader, sampler = make_loader(store, keep, TrainConfig(**how, workers=workers))
        for epoch in (0, 1):
            set_epoch(loader, sampler, epoch)
            for batch in loader:
                for sample_id, image in zip(batch.ids.tolist(), batch.images, strict=True):
                    seen.setdefault((epoch, sample_id), []).append(image)
    assert all(torch.equal(*pair) for pair in seen.values())
    moved = [not torch.equal(seen[0, i][0], seen[1, i][0]) for i in keep.ids().tolist()]
    assert np.mean(moved) > 0.8


# Around ------------------------------------------------------------------------------------


def test_resnet50_has_the_usual_size_and_embeds_2048():
    net = resnet50(10).eval()
    with torch.inference_mode():
        assert net.features(torch.zeros(1, 3, 64, 64)).shape == (1, 2048)


def test_a_tracker_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="track must be among tensorboard, wandb, got 'mlflow'"):
        make_accelerator(tmp_path, track=("mlflow",))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ss.ShardsieveError, match="tracking with wandb needs it: pip install wandb"):
        make_accelerator(tmp_path, track=("wandb",))


def test_a_tracker_keeps_its_files_with_the_run_and_goes_on_with_it(tmp_path):
    first, again = (tracked_as(RunFolder(tmp_path / "run"), {"seed": 0}) for _ in range(2))
    assert first == again
    assert first["wandb"]["dir"] == str(tmp_path / "run/logs")
    assert (tmp_path / "run/logs").is_dir()
    others = [
        tracked_as(RunFolder(tmp_path / "run"), {"seed": 1}),
        tracked_as(RunFolder(tmp_path / "other"), {"seed": 0}),
    ]
    assert len({one["wandb"]["id"] for one in (first, *others)}) == 3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"ema": 1.0}, r"ema must lie in \[0, 1\), got 1.0"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"normalise": "none"}, "normalise must be one of half, imagenet"),
        ({"resolutions": ((0, 0),)}, "resolutions must be pairs"),
        ({"resolutions": ((0, 16.0),)}, "resolutions must be pairs"),
        ({"resolutions": ((0, 65_536),)}, "resolutions must be pairs"),
        ({"resolutions": (0, 16)}, "resolutions must be pairs"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**setting)


# Shards elsewhere --------------------------------------------------------------------------


@pytest.mark.slow
def test_shards_in_an_object_store_train_the_same_network(packed, s3, tmp_path, capsys):
    def trained(name, urls):
        store, run = tmp_path / f"{name}.zarr", tmp_path / name
        keep = ["--rule", "random", "--epochs", "1", "--workers", "1", "--track", ""]
        for command in (
            ["index", *map(str, urls), "--store", str(store)],
            ["train", "--store", str(store), "--out", str(run), *keep],
        ):
            program.app([*command, "--json"], standalone_mode=False)
        return json.loads(capsys.readouterr().out.splitlines()[-1]), torch.load(run / "model.pt")

    files = sorted(Path(packed[0].pattern).parent.glob("train-*.tar"))
    (here, mine), (there, other) = trained("local", files), trained("remote", s3.upload(files))
    assert here["samples"] == there["samples"] == there["kept"]
    assert there["reads_since_start"]["kept"] == here["reads_since_start"]["kept"] > 0
    weights = mine["weights"], other["weights"]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
