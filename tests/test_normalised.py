"""Images are normalised for a network of the user's as that network wants them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tars import write_tar
from typer.testing import CliRunner

import shardsieve as ss
from shardsieve.cli import app
from shardsieve.commands.training import embed_store
from shardsieve.train.config import TrainConfig
from shardsieve.train.encoder import save_network
from shardsieve.train.nets import load_model
from shardsieve.train.runfolder import RunFolder

MEANS = {"half": ((0.5,) * 3, (0.25,) * 3)}
MEANS["imagenet"] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def flat():
    """A network that embeds what it is shown."""
    return torch.nn.Flatten()


MODEL = f"{__name__}:flat"


def indexed(folder, mode):
    members, shown = [], []
    for row in range(3):
        size = (4, 4, 3) if mode == "RGB" else (4, 4)
        pixels = np.random.default_rng(row).integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(pixels).save(out := io.BytesIO(), "PNG")
        members += [(f"{row}.png", out.getvalue()), (f"{row}.cls", b"%d" % row)]
        shown.append(pixels)
    return ss.index(write_tar(folder / "s.tar", members), folder / "s.zarr"), np.stack(shown)


def test_an_encoder_of_the_users_is_shown_what_it_wants(tmp_path):
    store, pixels = indexed(tmp_path, "RGB")
    for asked in (None, "half", "imagenet"):
        embed_store(store.path, model=MODEL, name=f"e{asked}", normalise=asked)
        mean, deviation = MEANS[asked or "half"]
        want = ((pixels / 255 - mean) / deviation).transpose(0, 3, 1, 2).reshape(3, -1)
        found = ss.open_store(store.path).embedding_array(f"e{asked}")[0, :3]
        np.testing.assert_allclose(found, want, atol=2e-3)
    with pytest.raises(ss.StoreMismatchError, match="from images of another size or normalisation"):
        embed_store(store.path, model=MODEL, name="eNone", normalise="imagenet")
    del store.embedding_array("eNone").attrs["normalise"]  # as an earlier release left it
    assert embed_store(store.path, model=MODEL, name="eNone")["embedded_now"] == 0
    with pytest.raises(ss.StoreMismatchError, match="another size or normalisation"):
        embed_store(store.path, model=MODEL, name="eNone", normalise="imagenet")


def test_a_runs_network_is_shown_what_it_was_trained_on(tmp_path):
    store, _ = indexed(tmp_path, "RGB")
    config = TrainConfig(normalise="imagenet", size=4, channels=3)
    save_network(RunFolder(tmp_path), load_model("light", 3), config, 3)
    run = str(tmp_path / "model.pt")
    with pytest.raises(
        ValueError, match=r"normalise must be imagenet for .*model.pt, got half; le"
    ):
        embed_store(store.path, model=run, name="e", normalise="half")
    embed_store(store.path, model=run, name="e", normalise="imagenet")
    assert embed_store(store.path, model=run, name="e")["embedded_now"] == 0


def test_grey_images_and_slips_are_refused(tmp_path):
    store, _ = indexed(tmp_path, "L")
    with pytest.raises(ValueError, match="normalise must be half for 1-channel images"):
        embed_store(store.path, model=MODEL, name="e", normalise="imagenet")
    embed_store(store.path, model=MODEL, name="e", channels=3, normalise="imagenet")
    said = ["embed", "--store", str(store.path), "--model", MODEL, "--normalise", "imagnet"]
    found = CliRunner().invoke(app, said)
    assert "normalise must be one of half, imagenet, got 'imagnet'" in str(found.exception)
