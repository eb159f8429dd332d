"""Augmentation in workers: torchvision's own transforms, and anybody's."""

import json
import pickle
import random
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train import Killed, digest, kill_after
from torch import nn
from torchvision.transforms import v2

import shardsieve as ss
from shardsieve.order import hash_key
from shardsieve.pack import pack
from shardsieve.train.config import TrainConfig
from shardsieve.train.encoder import load_encoder
from shardsieve.train.images import Batch, ImageDecoder, augment, normalised
from shardsieve.train.loading import make_loader, set_epoch
from shardsieve.train.seeding import draw_seeds, score_seeds
from shardsieve.train.stepping import Stepper
from shardsieve.train.subset import train_subset
from shardsieve.train.transforms import RandomTransform, _made, check_augment

THEIRS = {"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment}
LEGACY = np.random.mtrand  # NumPy's global generator, which transforms of others may draw from


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    packed = pack("digits", folder, samples_per_shard=100, test_fraction=0.7)[0]
    return ss.index(packed.pattern, folder / "s.zarr")


def seeded():
    torch.manual_seed(0)
    random.seed(0)
    LEGACY.seed(0)


def drawn():
    return torch.rand(3).tolist(), random.random(), LEGACY.rand(3).tolist()


def everywhere():
    """A factory whose transform draws from all global generators, and cannot be pickled."""

    def shifted(pixels):
        shift = torch.randint(256, ()).item() + random.randrange(256) + LEGACY.randint(256)
        return (pixels.int() + shift).remainder(256).to(torch.uint8)

    return shifted


def no_transform():
    return v2.ColorJitter(brightness=0.5), v2.RandomErasing()


def broken():
    return lambda pixels: pixels.missing


def scaled():
    return lambda pixels: pixels / 255


def chosen_once():
    shift = torch.randint(256, ())
    return lambda pixels: pixels + shift.to(torch.uint8)


OURS = "test_augment:everywhere"
PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 24, 24), dtype=np.uint8))


@settings(max_examples=30)
@given(st.sampled_from(sorted(THEIRS)), *[st.integers(0, 2**40)] * 2, st.sampled_from([1, 3]))
def test_a_sample_becomes_what_torchvision_makes_of_it_with_its_seed(name, sample_id, epoch, c):
    """Runs resume across releases, so other draws are a breaking change: announce them."""
    got = RandomTransform(name, 5)(PIXELS[:c], epoch=epoch, sample_id=sample_id)
    torch.manual_seed(hash_key(5, 0x5452, epoch, sample_id) % 2**63)
    want = THEIRS[name](interpolation=v2.InterpolationMode.BILINEAR)(PIXELS[:c])
    assert torch.equal(got, want)


@given(st.integers(0, 2**63 - 1), st.integers(0, 99), st.integers(0, 2**60))
def test_draws_depend_on_seed_epoch_and_id_alone_and_disturb_nothing(seed, epoch, sample_id):
    transform = partial(RandomTransform(OURS, seed), PIXELS, epoch=epoch, sample_id=sample_id)
    seeded()
    before, first, after = drawn(), transform(), drawn()
    assert torch.equal(first, pickle.loads(pickle.dumps(transform))())
    seeded()
    assert (drawn(), drawn()) == (before, after)


def test_samples_epochs_and_seeds_draw_apart():
    made = {
        int(RandomTransform(OURS, seed)(PIXELS, epoch=epoch, sample_id=one)[0, 0, 0])
        for seed in range(5)
        for epoch in range(5)
        for one in range(20)
    }
    assert len(made) > 200


def test_what_a_factory_draws_is_the_same_in_every_process():
    transform, made = RandomTransform("test_augment:chosen_once", 0), []
    for seed in (0, 1):
        _made.cache_clear()
        torch.manual_seed(seed)
        made.append(transform(PIXELS, epoch=0, sample_id=0))
    assert torch.equal(*made)


@pytest.mark.parametrize("name", [*THEIRS, OURS])
def test_workers_transform_alike_and_hear_of_the_epoch(store, name):
    keep = ss.select(store, rule="random", keep_fraction=0.1)
    seen, plain = {}, {}
    for workers, how_made in ((0, name), (2, name), (0, "resized")):
        how = {"batch_size": 16, "size": 16, "channels": 3, "augment": how_made}
        loader, sampler = make_loader(store, keep, TrainConfig(**how, workers=workers))
        for epoch in (0, 1):
            set_epoch(loader, sampler, epoch)
            for batch in loader:
                for sample_id, image in zip(batch.ids.tolist(), batch.images, strict=True):
                    if how_made == name:
                        seen.setdefault((epoch, sample_id), []).append(image)
                    else:
                        plain[epoch, sample_id] = image
    assert all(torch.equal(*pair) for pair in seen.values())
    moved = [not torch.equal(seen[0, i][0], seen[1, i][0]) for i in keep.ids().tolist()]
    assert np.mean(moved) > 0.8
    transform = RandomTransform(name, 0)
    for (epoch, sample_id), crop in plain.items():
        want = transform(crop, epoch=epoch, sample_id=sample_id)
        assert torch.equal(seen[epoch, sample_id][0], want)


def test_a_step_draws_by_seed_epoch_place_and_rank_alone():
    net, shown = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(192, 4)), []
    net[2].register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
    images = torch.arange(8 * 192).reshape(8, 3, 8, 8).to(torch.uint8)
    batch = Batch(images, torch.zeros(8, dtype=torch.int64), torch.arange(8), torch.ones(8))

    def drawn(seed=0, epoch=0, place=0, rank=0):
        stepper = Stepper(net, TrainConfig(augment="crop", seed=seed), Accelerator(cpu=True))
        stepper.accelerator = SimpleNamespace(process_index=rank, backward=torch.Tensor.backward)
        stepper.batch(batch, epoch=epoch, place=place, share=1.0, last=True)
        return shown.pop()

    assert torch.equal(drawn(), drawn())
    for name in ("seed", "epoch", "place", "rank"):
        assert not torch.equal(drawn(), drawn(**{name: 1})), name
    net[1] = nn.Identity()
    for how in ("crop", "flip"):
        stepper = Stepper(net, TrainConfig(augment=how), Accelerator(cpu=True))
        stepper.batch(batch, epoch=1, place=2, share=1.0, last=True)
        generator = torch.Generator().manual_seed(hash_key(0, 1, 2, 0) % 2**63)
        want = augment(normalised(images), generator, flip=how == "flip")
        assert torch.equal(shown.pop(), want.flatten(1))


def test_evaluation_is_of_plain_images(store):
    keep = ss.select(store, rule="random", keep_fraction=0.1)
    config = TrainConfig(size=8, channels=1, augment="trivial")
    decoder = make_loader(store, keep, config, in_order=True)[0].dataset.decode
    assert decoder == ImageDecoder(8, 1)


def test_a_killed_run_ends_as_an_undisturbed_one_and_keeps_its_setting(store, tmp_path):
    keep = ss.select(store, rule="random", keep_fraction=0.5)
    how = {"accelerator": Accelerator(cpu=True), "checkpoint_steps": 2}
    settings = {"epochs": 2, "batch_size": 32, "size": 8, "channels": 1, "augment": "trivial"}
    train_subset(store, keep, TrainConfig(**settings), folder=tmp_path / "whole", **how)
    cut = partial(train_subset, store, keep, folder=tmp_path / "cut", **how)
    with pytest.raises(Killed):
        cut(TrainConfig(**settings), progress=kill_after(3))
    cut(TrainConfig(**settings, workers=2))
    whole, again = (digest(load_encoder(str(tmp_path / name)).network) for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert json.loads((tmp_path / "cut/run.json").read_text())["augment"] == "trivial"
    with pytest.raises(ss.ShardsieveError, match="another run: augment is 'trivial' there, 'rand'"):
        cut(TrainConfig(**{**settings, "augment": "rand"}))


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ("autoaugment", "^augment must be one of none, .*, rand or package.module:factory, got 'a"),
        ("no_such:thing", "^cannot load augment 'no_such:thing': No module .*; check the name"),
        ("torchvision.transforms.v2:RandomCrop", "^cannot make augment .*'size'; it must be calle"),
        ("test_augment:no_transform", "^augment .* must return a transform, got <class 'tuple'>"),
        ("test_augment:broken", r"^augment .* cannot be applied to uint8 \(3, 16, 16\): Attribute"),
        ("test_augment:scaled", r"^augment .* must turn .*, got torch.float32 \(3, 16, 16\);"),
        ("torchvision.transforms.v2:Grayscale", r"^augment .* must turn .*, got .* \(1, 16, 16\);"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_run_begins(store, tmp_path, augment, message):
    how = {"folder": tmp_path / "run", "accelerator": Accelerator(cpu=True)}
    for begin in (
        partial(train_subset, store, ss.select(store, keep_fraction=0.5, rule="random")),
        partial(score_seeds, store, draw_seeds(store, 0.5), window=5),
    ):
        with pytest.raises((ValueError, ss.ShardsieveError), match=message) as refused:
            begin(TrainConfig(size=16, channels=3, augment=augment, max_unreadable=99), **how)
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "run/run.json").exists()


def test_a_torchvision_that_was_built_for_another_torch_is_one_line(tmp_path, monkeypatch):
    said = "operator torchvision::nms does not exist"
    (tmp_path / "torchvision.py").write_text(f"raise RuntimeError({said!r})")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    _made.cache_clear()
    with pytest.raises(ss.MissingDependencyError, match=rf"^augment rand needs .* \({said}\): pip"):
        check_augment("rand")


WITHOUT = """
import sys
sys.modules["torchvision"] = None
from shardsieve.cli import app, run
for arguments in {commands!r}:
    print(run(lambda: app(arguments)))
"""


def test_without_torchvision_one_line_says_so_before_anything_is_made(tmp_path):
    shards = {"urls": f"{tmp_path}/*.tar", "store": f"{tmp_path}/s.zarr"}
    recipe = {"work": f"{tmp_path}/work", "data": shards, "select": {"rule": "random"}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe, "train": {"augment": "rand"}}))
    chosen = ["--store", shards["store"], "--augment", "trivial"]
    commands = [
        ["train", *chosen, "--out", f"{tmp_path}/run"],
        ["score", *chosen],
        ["build", shards["urls"], *chosen],
        ["run", str(path)],
    ]
    code = WITHOUT.format(commands=commands)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["2"] * 4
    lines = done.stderr.splitlines()
    assert len(lines) == 4
    for line, name in zip(lines, ["trivial"] * 3 + ["rand"], strict=True):
        assert f"augment {name} needs torchvision" in line
        assert "pip install 'shardsieve[augment]'" in line
    assert lines[3].startswith(f"shardsieve: {path}: train: augment rand")
    assert list(tmp_path.iterdir()) == [path]
