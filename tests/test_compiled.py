"""The settings of a GPU, all together on the CPU: compiled, bf16, channels last, growing images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch._dynamo.utils import counters

import shardsieve as ss
from shardsieve.commands.recipe import read_recipe
from shardsieve.commands.training import score_store, train_store
from shardsieve.pack import pack
from shardsieve.train.adversary import Adversary
from shardsieve.train.config import TrainConfig
from shardsieve.train.images import Batch
from shardsieve.train.launch import make_accelerator
from shardsieve.train.recorder import Recorder
from shardsieve.train.stepping import Stepper

ALL = TrainConfig(
    model="test_compiled:small",
    epochs=4,
    batch_size=16,
    channels=3,
    size=8,
    precision="bf16",
    channels_last=True,
    compile=True,
    normalise="imagenet",
    augment="flip",
    ema=0.9,
    accumulate=2,
    resolutions=((0, 6), (2, 8)),
    label_smoothing=0.1,
)


def small(num_classes):
    """A network that compiles in seconds."""
    pool = nn.AdaptiveAvgPool2d(2)
    convolution = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    body = [convolution, nn.BatchNorm2d(16), nn.ReLU(), pool, nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(64, num_classes))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    train, _ = pack("digits", folder, samples_per_shard=100, test_fraction=0.8)
    return ss.index(train.pattern, folder / "s.zarr").path


class Killed(Exception):
    pass


def trained(store, out, config, monkeypatch, *, kill=None):
    """Train, killed after so many steps and started again; return result and weights."""
    rule = {"keep_fraction": 0.5, "rule": "random"}
    how = {"out": out, "rule": rule, "test": store, "checkpoint_steps": 2, "track": ()}
    if kill is not None:
        update, left = Stepper.update, iter(range(kill, 0, -1))

        def killing(self, progress):
            update(self, progress)
            if next(left) == 1:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Stepper, "update", killing)
            with pytest.raises(Killed):
                train_store(store, config, **how)
        torch._dynamo.reset()  # another process compiles for the sizes that it meets first
    result = train_store(store, config, **how)
    return result, torch.load(out / "model.pt", weights_only=True)["weights"]


@pytest.mark.slow
def test_everything_together_goes_on_to_the_bit_and_compiles_once_per_resolution(
    packed, tmp_path, monkeypatch
):
    torch._dynamo.reset()
    counters.clear()
    whole, weights = trained(packed, tmp_path / "a", ALL, monkeypatch)
    assert counters["stats"]["unique_graphs"] == len(ALL.resolutions)
    assert whole["steps"] * 2 * ALL.batch_size > whole["samples"], "no smaller last batch"
    kill = whole["steps"] // 2 + 2
    again, twins = trained(packed, tmp_path / "b", ALL, monkeypatch, kill=kill)
    assert again["accuracy"] == whole["accuracy"] > 0.3
    assert small(10).state_dict().keys() == weights.keys()
    assert all(torch.equal(weights[name], twins[name]) for name in weights)
    plain, _ = trained(packed, tmp_path / "c", replace(ALL, compile=False), monkeypatch)
    assert abs(plain["accuracy"] - whole["accuracy"]) < 0.1


@pytest.mark.slow
def test_a_compiled_seed_run_records_what_a_plain_one_does(packed, tmp_path):
    store = ss.open_store(packed)
    wanted = ["grand_last_layer", "el2n", "dyn_unc"]
    how = {"seed_fraction": 0.5, "per_class": False, "window": 3, "scores": wanted}
    for name, compiled in (("plain", False), ("compiled", True)):
        config = replace(ALL, precision="no", ema=0.0, resolutions=(), compile=compiled)
        score_store(packed, config, **how, folder=tmp_path / name, name=name)
    plain, compiled = (Recorder.load(store, name) for name in ("plain", "compiled"))
    assert "grand" in plain.signals
    for signal in plain.signals:
        ours, theirs = compiled.signal(signal), plain.signal(signal)
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4, err_msg=signal)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_an_attack_is_made_in_the_precision_of_the_training(method, compiled):
    seen, network = [], small(10)
    adversary = Adversary(method=method, steps=2, predictions="clean")
    # Compiled for another size of batch: what torch compiles, it does not tell of.
    config = replace(ALL, compile=compiled, batch_size=64)
    stepper = Stepper(network, config, make_accelerator(precision="bf16"), adversary)
    network[-1].register_forward_hook(lambda layer, given, made: seen.append(made.dtype))
    pixels, labels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1])
    batch = Batch(pixels, labels, labels, torch.ones(2))
    logits, _ = stepper.batch(batch, epoch=0, place=0, share=1.0, last=True)
    assert seen == [torch.bfloat16] * adversary.passes[0]
    assert logits.dtype == torch.float32


def test_half_precision_without_a_gpu_is_one_line():
    with pytest.raises(ValueError, match=r"precision must be bf16 or no without a GPU, got 'fp16'"):
        make_accelerator(precision="fp16")


@pytest.mark.parametrize("launcher", ["no", "bf16", "fp16", None])
@pytest.mark.parametrize("precision", ["no", "bf16", None])
def test_settings_decide_the_precision_and_a_launcher_may_only_agree(
    monkeypatch, launcher, precision
):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launcher is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    if precision is None or launcher in (None, "no", precision):
        assert make_accelerator(precision=precision).mixed_precision == (precision or "no")
        make_accelerator()  # the state is the process's
        return
    with pytest.raises(ValueError, match=f"precision must be {launcher}, as the launcher's"):
        make_accelerator(precision=precision)


@pytest.mark.parametrize(
    ("name", "word"), [("FSDP", "FSDP"), ("PARALLELISM_CONFIG", "parallelism_config")]
)
def test_a_launcher_that_splits_networks_is_refused(monkeypatch, name, word):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ss.ShardsieveError, match=f"hold a whole network, got {word} from the laun"):
        make_accelerator()
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "false")
    make_accelerator()


def test_a_launchers_accumulation_does_not_shrink_the_steps(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    weight = torch.ones((), requires_grad=True)
    make_accelerator().backward(weight * 8)
    assert weight.grad == 8


@pytest.mark.parametrize("section", ["score", "embed", "train"])
def test_a_recipe_that_forgets_the_launchers_precision_is_refused_at_once(
    monkeypatch, tmp_path, section
):
    parts = {"work": "w", "data": {"store": "s.zarr"}, "select": {"rule": "random"}}
    parts |= {"score": {"precision": "bf16"}, "embed": {"precision": "bf16"}}
    parts |= {"train": {"precision": "bf16"}}
    path = tmp_path / "recipe.yaml"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    path.write_text(yaml.safe_dump(parts))
    read_recipe(path)
    path.write_text(yaml.safe_dump({**parts, section: {}}))
    with pytest.raises(ss.ShardsieveError, match=f"{section}: precision must be bf16, as the"):
        read_recipe(path)


def test_imagenets_mean_of_grey_images_is_refused_before_training(packed, tmp_path):
    config = TrainConfig(epochs=1, normalise="imagenet")
    how = {"out": tmp_path / "run", "rule": {"keep_fraction": 0.5, "rule": "random"}, "track": ()}
    with pytest.raises(ValueError, match="normalise must be half for 1-channel images"):
        train_store(packed, config, **how)
    assert not (tmp_path / "run").exists()
