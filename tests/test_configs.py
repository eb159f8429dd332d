"""Every configuration that is handed out: read as it is, and made whole with everything smaller."""

import io
import json

import numpy as np
import pytest
import yaml
from launching import ROOT
from PIL import Image
from tars import write_tar

import shardsieve as ss
from shardsieve.commands.meaning import score_of
from shardsieve.commands.recipe import read_recipe
from shardsieve.commands.running import run_recipe
from shardsieve.commands.sections import Recipe

CHAINS = sorted(
    path for path in ROOT.glob("configs/*.yaml") if "work" in yaml.safe_load(path.read_text())
)
CLASSES = {"imagenet.yaml": 1000, "places365.yaml": 365}
# Everything else stays as it is handed out.
SMALLER = {"model": "light", "size": 16, "epochs": 4, "batch_size": 16, "learning_rate": 0.02}
SMALLER |= {"workers": 0, "window": 3, "checkpoint_steps": 2, "evaluate_every": 2, "k": 5}
RESOLUTIONS = [[0, 8], [2, 12], [3, 16]]


def picture(draw, mode):
    width, height = draw.integers(18, 40, size=2)
    pixels = draw.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).convert(mode).save(file, "JPEG")
    return file.getvalue()


def write_pictures(path, labels, draw, *, damaged=False):
    """Write JPEGs of many shapes, also grey ones and those for print, as ImageNet has them.

    The damaged one is cut short.
    """
    members = []
    for row, label in enumerate(labels):
        mode = "L" if row % 9 == 3 else "CMYK" if row % 9 == 5 else "RGB"
        data = picture(draw, mode)
        data = data[: len(data) // 2] if damaged and row == 7 else data
        members.append((f"{path.stem}-{row:04d}.jpg", data))
        members.append((f"{path.stem}-{row:04d}.cls", str(label).encode()))
    write_tar(path, members)


def shrunk(path):
    """The recipe with fewer epochs and pixels; its keys are the ones that are handed out."""
    recipe = yaml.safe_load(path.read_text())
    for section in recipe.values():
        if isinstance(section, dict):
            section.update({k: v for k, v in SMALLER.items() if k in section})
    recipe["train"]["resolutions"] = RESOLUTIONS
    recipe["data"]["urls"], recipe["test"]["urls"] = "train-{000..003}.tar", "test-000.tar"
    return recipe


def test_all_are_tested():
    assert sorted(CLASSES) == [path.name for path in CHAINS]


@pytest.mark.parametrize("path", CHAINS, ids=lambda path: path.name)
def test_a_configuration_is_read_as_it_is_and_makes_every_step(path):
    recipe = read_recipe(path)
    left_out = {name for name in Recipe.model_fields if getattr(recipe, name) is None}
    assert left_out == {"ask"}  # which stands in the place of extrapolate
    assert recipe.score.precision == recipe.embed.precision == recipe.train.precision == "bf16"
    assert max(first for first, _ in recipe.train.resolutions) < recipe.train.epochs
    assert recipe.train.resolutions[-1][1] == recipe.train.size == recipe.score.size


@pytest.mark.parametrize("path", CHAINS, ids=lambda path: path.name)
def test_what_a_configuration_says_of_asking_can_be_done(path, tmp_path):
    text = path.read_text()
    assert "with seeds 1.0, scores [el2n] and a sixth of the epochs above, put `ask: {}`" in text
    recipe = yaml.safe_load(text) | {"extrapolate": None, "ask": {}}
    recipe["score"] |= {"seeds": 1.0, "epochs": recipe["score"]["epochs"] // 6, "scores": ["el2n"]}
    recipe["select"] |= {"rule": "ccs"}
    asking = tmp_path / path.name
    asking.write_text(yaml.safe_dump({k: v for k, v in recipe.items() if v is not None}))
    assert score_of(read_recipe(asking)) == "asked_el2n"


@pytest.mark.slow
@pytest.mark.parametrize("path", CHAINS, ids=lambda path: path.name)
def test_a_configuration_shrunk_makes_its_whole_chain(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw, classes = np.random.default_rng(0), CLASSES[path.name]
    labels = np.append(draw.integers(0, classes, 139), classes - 1)
    for shard, part in enumerate(np.split(labels, 4)):
        write_pictures(tmp_path / f"train-{shard:03d}.tar", part, draw, damaged=shard == 2)
    write_pictures(tmp_path / "test-000.tar", labels[:20], draw)
    recipe = tmp_path / path.name
    recipe.write_text(yaml.safe_dump(shrunk(path)))
    made = run_recipe(recipe)
    work, store = tmp_path / yaml.safe_load(path.read_text())["work"], made["index"]["store"]
    assert made["index"]["samples"] == 140
    assert made["train"]["kept"] == 70
    assert made["train"]["unreadable"] == 0
    assert made["train"]["accuracy"] is not None
    assert made["train"]["cost"]["uncounted"] == []
    assert np.isfinite(ss.open_store(store, mode="r").score("dyn_unc")).sum() == 139
    rows = (tmp_path / made["train"]["run"] / "history.jsonl").read_text().splitlines()
    assert ["accuracy" in json.loads(row) for row in rows] == [False, True, False, True]
    assert (work / "report.html").is_file()
    again = run_recipe(recipe)
    assert again["skipped"] == ["score", "embed", "extrapolate", "train", "report"]
