"""`pack` on ImageNet and Places365 as they are handed out, in small."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from tars import by_webdataset

import shardsieve as ss
from shardsieve.pack import pack
from shardsieve.pack.beton import pack_beton

CATEGORIES = ["/a/airfield", "/b/bakery/shop", "/b/balcony/exterior", "/z/zen_garden"]
NAMES = ["airfield", "bakery/shop", "balcony/exterior", "zen_garden"]


def write_image(path, label, number):
    """A grey that says the label; one pixel that says which of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((4, 4), 40 * label, np.uint8)
    pixels[0, 0] = number
    Image.fromarray(pixels).save(path, "PNG")


@pytest.fixture
def places(tmp_path):
    """The small images of Places365: no folder says a label."""
    folder, lines = tmp_path / "places", {"train": list[str](), "val": list[str]()}
    for label, category in enumerate(CATEGORIES):
        for number in range(5):
            lines["train"].append(f"{category}/{number:08d}.jpg {label}")
            write_image(folder / f"data_256{category}/{number:08d}.jpg", label, number)
        name = f"Places365_val_{7 * label % 4:08d}.jpg"
        lines["val"].append(f"{name} {label}")
        write_image(folder / "val_256" / name, label, 0)
    write_image(folder / "test_256" / "Places365_test_00000001.jpg", 0, 0)
    rows = [f"{name} {label}" for label, name in enumerate(CATEGORIES)]
    (folder / "categories_places365.txt").write_text("\n".join(rows) + "\n")
    (folder / "places365_train_standard.txt").write_text("\n".join(lines["train"]) + "\n")
    (folder / "places365_val.txt").write_text("\n".join(lines["val"]) + "\n")
    return folder


def samples_of(pattern, store):
    data = ss.ShardDataset(ss.index(pattern, store))
    return [data[one] for one in data.store.ids().tolist()]


def grey_of(sample):
    image = Image.open(io.BytesIO(sample.get("jpg") or sample["ppm"]))
    return np.array(image.convert("L"))[-1, -1]


@pytest.mark.parametrize("to", [pack, pack_beton])
def test_places_is_labelled_by_its_lists(places, tmp_path, to):
    train, val = to(places, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == NAMES
    assert (train.split, train.samples) == ("train", 20)
    assert (val.split, val.samples) == ("val", 4)
    for split in (train, val):
        samples = samples_of(split.pattern, tmp_path / f"{split.split}.zarr")
        labels = [int(sample["cls"]) for sample in samples]
        assert sorted(set(labels)) == [0, 1, 2, 3]
        greys = [grey_of(sample) for sample in samples]
        assert greys == [40 * label for label in labels]


def test_places_in_parts_is_refused(places, tmp_path):
    def refused(folder, words):
        with pytest.raises(ss.ShardsieveError, match=words):
            pack(folder, tmp_path / "out")

    refused(places / "data_256", "whose labels lie beside it; give the folder")
    (places / "data_large").mkdir()
    refused(places, "one of data_256 and data_large, got both")
    (places / "data_large").rmdir()
    val = places / "places365_val.txt"
    val.write_text("Places365_val_00000001.jpg 4\n")
    refused(places, "labels below 4, got 'Places365_val_00000001.jpg 4'")
    val.write_text("Places365_val_00000009.jpg 1\n")
    refused(places, "must list images of .*val_256")
    val.unlink()
    refused(places, "without places365_val.txt; unpack filelist_places365-standard.tar")
    shutil.rmtree(places / "val_256")
    assert [split.samples for split in pack(places, tmp_path / "out")] == [20]
    (places / "categories_places365.txt").unlink()
    refused(places, "without categories_places365.txt")


def test_a_folder_of_classes_may_have_the_name_of_placess_images(places, tmp_path):
    own = tmp_path / "own" / "data_256"
    for label, name in enumerate(["cat", "dog"]):
        write_image(own / name / "1.png", label, 0)
    (split,) = pack(own, tmp_path / "out")
    assert split.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("named", "splits"),
    [
        (("training", "validation"), ["train", "val"]),
        (("Train", "TEST", "valid"), ["train", "test", "val"]),
        (("test", "Validation"), ["test", "val"]),
    ],
)
def test_splits_are_known_by_any_of_their_names(tmp_path, named, splits):
    """They were classes, or left out without a word."""
    for split in named:
        for label, name in enumerate(["cat", "dog"]):
            write_image(tmp_path / "in" / split / name / "1.png", label, 0)
    packed = pack(tmp_path / "in", tmp_path / "out")
    assert [(one.split, one.classes) for one in packed] == [(s, ("cat", "dog")) for s in splits]
    write_image(tmp_path / "in" / "VAL" / "cat" / "1.png", 0, 0)
    write_image(tmp_path / "in" / "val" / "cat" / "1.png", 0, 0)
    with pytest.raises(ss.ShardsieveError, match="one folder of the val split, got VAL and "):
        pack(tmp_path / "in", tmp_path / "out")


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    """CIFAR-100 has trains."""
    for label, name in enumerate(["bus", "train"]):
        write_image(tmp_path / "in" / name / "1.png", label, 0)
    (split,) = pack(tmp_path / "in", tmp_path / "out")
    assert (split.split, split.classes) == ("train", ("bus", "train"))
    write_image(tmp_path / "flat" / "train" / "1.png", 0, 0)
    with pytest.raises(ss.ShardsieveError, match="flat/train has no class folders"):
        pack(tmp_path / "flat", tmp_path / "out")


def test_splits_with_other_class_folders_are_refused(tmp_path):
    """ImageNet's validation images lie flat; a class more was left out without a word."""
    for split in ("train", "val"):
        for label, name in enumerate(["n01440764", "n01443537"]):
            write_image(tmp_path / "in" / split / name / "1.JPEG", label, 0)
    train, val = pack(tmp_path / "in", tmp_path / "out")
    assert (train.samples, val.samples) == (2, 2)
    assert len(list(by_webdataset(tmp_path / "out" / "val-000000.tar"))) == 2
    write_image(tmp_path / "in" / "val" / "n02979186" / "1.JPEG", 2, 0)
    with pytest.raises(ss.ShardsieveError, match="got one more for n02979186"):
        pack(tmp_path / "in", tmp_path / "out", overwrite=True)
    shutil.rmtree(tmp_path / "in" / "val")
    write_image(tmp_path / "in" / "val" / "ILSVRC2012_val_00000001.JPEG", 0, 0)
    with pytest.raises(ss.ShardsieveError, match=r"every class of .*in, got none for n01440764"):
        pack(tmp_path / "in", tmp_path / "out", overwrite=True)
