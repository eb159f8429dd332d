"""Where shards say the class of a sample, and classes that have names and no numbers."""

import io
import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from tars import content, write_tar

import shardsieve as ss
from shardsieve.commands.classes import class_names
from shardsieve.shards.labels import class_in, label_source
from shardsieve.store.append import append_shards
from shardsieve.store.create import check
from shardsieve.store.store import numbers_in
from shardsieve.store.walking import finished, walked
from shardsieve.train.config import TrainConfig
from shardsieve.train.evaluation import evaluate
from shardsieve.train.labels import check_test, count_classes
from shardsieve.train.subset import train_subset

NAMES = ["hen", "ant", "cat", "ant", "hen", "hen"]
SORTED = ["ant", "cat", "hen"]


def image(shade):
    out = io.BytesIO()
    Image.new("L", (8, 8), shade).save(out, "PNG")
    return out.getvalue()


def shard(path, said, suffix="txt"):
    """A tar whose samples say these texts in a member."""
    texts = [text if isinstance(text, bytes) else str(text).encode() for text in said]
    samples = [((f"{i}.jpg", content(f"{i}")), (f"{i}.{suffix}", t)) for i, t in enumerate(texts)]
    return write_tar(path, [member for sample in samples for member in sample])


def folders(path, names):
    """An image folder as `tar --sort=name` packs it."""
    members = [(f"train/{name}/{i}.JPEG", content(f"{i}")) for i, name in enumerate(names)]
    return write_tar(path, sorted(members))


def labels(store):
    return store.labels().tolist()


def test_names_of_a_member_are_classes_in_the_order_in_which_they_sort(tmp_path):
    paths = [shard(tmp_path / "a.tar", NAMES), shard(tmp_path / "b.tar", ["cat\n", " bee "])]
    store = ss.index(paths, tmp_path / "s.zarr", label_member="txt")
    assert store.classes == ("ant", "bee", "cat", "hen")
    assert labels(store) == [3, 0, 2, 0, 3, 3, 2, 1]
    assert class_names(store) == ["ant", "bee", "cat", "hen"]
    assert ss.open_store(store.path).classes == store.classes
    assert check(store) == 0


def test_a_folder_is_a_class_as_in_an_image_folder(tmp_path):
    store = ss.index(folders(tmp_path / "a.tar", NAMES), tmp_path / "s.zarr", label_member="/")
    assert store.classes == tuple(SORTED)
    assert labels(store) == [0, 0, 1, 2, 2, 2]
    assert [key.split("/")[1] for key in store.keys(0)] == sorted(NAMES)
    flat = write_tar(tmp_path / "f.tar", [("./1.jpg", b"x"), ("2.jpg", b"x"), ("7/3.jpg", b"x")])
    assert labels(ss.index(flat, tmp_path / "f.zarr", label_member="/")) == [-1, -1, 7]


def test_the_name_of_a_tar_is_a_class_as_in_imagenet(tmp_path):
    tars = [
        write_tar(tmp_path / f"{wnid}.tar", [(f"{wnid}_{i}.JPEG", b"x") for i in range(2)])
        for wnid in ("n01443537", "n01440764")
    ]
    store = ss.index(tars, tmp_path / "s.zarr", label_member=".tar")
    assert (store.classes, labels(store)) == (("n01440764", "n01443537"), [1, 1, 0, 0])
    assert check(store) == 0
    more = write_tar(tmp_path / "n01440000.v2.tar", [("a/1.jpg", b"x")])
    grown = append_shards(more, store.path)
    assert (grown.classes[2:], labels(grown)[4:]) == (("n01440000.v2",), [2])
    numbers = [write_tar(tmp_path / f"{i}.tar", [("1.jpg", b"x")]) for i in (3, 10)]
    assert labels(ss.index(numbers, tmp_path / "n.zarr", label_member=".tar")) == [3, 10]


def test_a_field_of_a_json_member_is_a_class(tmp_path):
    told = [{"label": 3, "in12k": -1}, {"label": "4", "in12k": 5}, {"x": 1}, {"label": True}]
    told += [{"label": [1]}, {"label": 1.5}, [3], {"label": None}]
    told += [{"label": "5", "more": "m" * 9999}]
    said = [json.dumps(one) for one in told] + [b'{"label": 3', b'{"label": "\xff"}', b"[" * 99999]
    path = shard(tmp_path / "a.tar", said, "json")
    fine = ss.index(path, tmp_path / "s.zarr", label_member="json:label")
    assert labels(fine) == [3, 4, *[-1] * 6, 5, -1, -1, -1]
    coarse = ss.index(path, tmp_path / "c.zarr", label_member="json:in12k")
    assert labels(coarse)[:3] == [-1, 5, -1]
    named = shard(tmp_path / "b.tar", [json.dumps({"kind": name}) for name in NAMES], "json")
    store = ss.index(named, tmp_path / "n.zarr", label_member="json:kind")
    assert (store.classes, labels(store)) == (tuple(SORTED), [2, 0, 1, 0, 2, 2])
    with pytest.raises(ss.StoreMismatchError, match="has its labels from json:kind, got label_mem"):
        ss.index(named, store.path, label_member="json:label")


def test_beside_numbers_no_name_is_a_class(tmp_path):
    paths = [shard(tmp_path / "a.tar", ["cat", "dog"]), shard(tmp_path / "b.tar", ["unknown", 4])]
    store = ss.index(paths, tmp_path / "s.zarr", label_member="txt")
    assert (store.classes, labels(store)) == ((), [-1, -1, -1, 4])


def test_measures_and_texts_are_no_names(tmp_path):
    said = ["0.5", "nan", "1e-5", "[1, 0]", "1 2", "", "-1", b"\xff", "long " * 60, "a\nb", "3d"]
    store = ss.index(shard(tmp_path / "a.tar", said), tmp_path / "s.zarr", label_member="txt")
    assert (store.classes, labels(store)) == (("3d",), [-1] * 10 + [0])
    assert class_in(str(1 << 31).encode()) == -1
    assert class_in(label_source("json:a")[2](b'{"a": "%s"}' % (b"x" * 300))) == -1


def test_captions_are_no_classes(tmp_path, caplog):
    few = [f"photo {i}" for i in range(1000)]
    many = [*few, "another"]
    for name, said in (("few", few), ("many", many), ("twice", [*many, *many])):
        store = ss.index(shard(tmp_path / f"{name}.tar", said), tmp_path / name, label_member="txt")
        assert len(store.classes) == (0 if name == "many" else len(set(said)))
        assert (store.labels() < 0).all() == (name == "many")
    grown = append_shards(tmp_path / "many.tar", tmp_path / "few")
    assert (len(grown.classes), labels(grown)[-2:]) == (1000, [999, -1])
    first, again = caplog.messages
    assert first.startswith("txt says 1001 different texts in 1001 samples, such as captions, ")
    assert again == first


def test_appended_shards_leave_the_numbers_of_named_classes(tmp_path):
    store = ss.index(shard(tmp_path / "a.tar", NAMES), tmp_path / "s.zarr", label_member="txt")
    more = [shard(tmp_path / "b.tar", ["dog", "cat", "bee"]), shard(tmp_path / "c.tar", [0, "cat"])]
    grown = append_shards(more[:1], store.path)
    assert grown.classes == (*SORTED, "bee", "dog")
    assert labels(grown) == [2, 0, 1, 0, 2, 2, 4, 1, 3]
    grown = append_shards(more, store.path)
    assert grown.classes == (*SORTED, "bee", "dog")
    assert labels(grown)[-2:] == [-1, 1]  # a number is no class there
    assert check(grown) == 0
    grown = append_shards(shard(tmp_path / "d.tar", [7, "elk"]), store.path)
    assert (grown.classes[5:], labels(grown)[-2:]) == (("elk",), [-1, 5])
    numbers = ss.index(shard(tmp_path / "n.tar", [1, 2]), tmp_path / "n.zarr", label_member="txt")
    assert labels(append_shards(tmp_path / "a.tar", numbers.path)) == [1, 2, *[-1] * 6]
    assert ss.open_store(numbers.path).classes == ()


def test_scores_go_to_a_store_whose_named_classes_have_other_numbers(tmp_path):
    """As classes that were appended have where all shards are indexed anew."""
    how, tars = {"label_member": "/"}, [folders(tmp_path / "a.tar", SORTED)]
    store = ss.index(tars, tmp_path / "s.zarr", **how)
    tars.append(folders(tmp_path / "b.tar", ["bee"] * 9))
    grown, anew = append_shards(tars, store.path), ss.index(tars, tmp_path / "n.zarr", **how)
    assert (labels(grown)[2:4], labels(anew)[2:4]) == ([2, 3], [3, 1])
    grown.put_score("mine", np.arange(12))
    assert ss.realign(grown, anew) == ["mine"]
    said = [
        ss.index(shard(tmp_path / f"{i}.tar", [name]), tmp_path / f"{i}.zarr", label_member="txt")
        for i, name in enumerate(["cat", "dog"])
    ]
    with pytest.raises(ss.StoreMismatchError, match="1 of 1 labels of"):
        ss.realign(*said)


def test_shards_that_are_finished_keep_their_names(tmp_path, monkeypatch):
    path = str(shard(tmp_path / "a.tar", NAMES))
    (tmp_path / "p").mkdir()
    walked([path], tmp_path / "p", "txt", None)
    monkeypatch.setattr("shardsieve.store.walking.index_shard", None)
    (again,) = walked([path], tmp_path / "p", "txt", None)
    assert (again.names, again.has_numbers) == (("hen", "ant", "cat"), False)
    (entry,) = finished(tmp_path / "p", 1)
    assert entry.names == ["hen", "ant", "cat"]
    assert entry.label.tolist() == [-2, -3, -4, -3, -2, -2]


def test_a_store_says_where_a_class_could_stand(tmp_path):
    store = ss.index(shard(tmp_path / "a.tar", NAMES), tmp_path / "s.zarr")
    with pytest.raises(ss.ShardsieveError, match=r"6 of 6 .* `json:label` for a field .*`.tar`"):
        count_classes(store)


# Test splits that lack a class ---------------------------------------------------------------


class Says(torch.nn.Module):
    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, images):
        return torch.eye(len(SORTED))[[self.number] * len(images)]


def shard_of(path, names, suffix, said):
    """A tar of grey images whose samples say something of their class."""
    samples = [
        ((f"{i}.png", image(40 * SORTED.index(name))), (f"{i}.{suffix}", str(said(name)).encode()))
        for i, name in enumerate(names)
    ]
    return write_tar(path, [member for sample in samples for member in sample])


def pictures(path, names):
    tar = shard_of(path, names, "txt", str)
    return ss.index(tar, path.with_suffix(".zarr"), label_member="txt")


def test_a_test_split_that_lacks_a_class_has_the_numbers_of_the_training_split(tmp_path):
    store = pictures(tmp_path / "a.tar", NAMES)
    test = pictures(tmp_path / "b.tar", ["cat", "hen", "hen", "hen"])
    assert (test.classes, labels(test)) == (("cat", "hen"), [0, 1, 1, 1])
    config = TrainConfig(epochs=8, batch_size=2, augment="none", size=8, channels=1)
    everything, how = ss.select(test, keep_fraction=1.0), {"numbers": numbers_in(store, test)}
    accelerator = Accelerator(cpu=True)
    right = [
        evaluate(Says(number), test, everything, config, accelerator, **how) for number in range(3)
    ]
    assert right == [0, 0.25, 0.75]
    numbers = shard_of(tmp_path / "c.tar", ["cat", "hen", "hen", "hen"], "cls", SORTED.index)
    results = [
        train_subset(
            *(store, ss.select(store, keep_fraction=1.0), config),
            folder=tmp_path / f"run-{split.path.stem}",
            accelerator=accelerator,
            test=split,
        )["accuracy"]
        for split in (test, ss.index(numbers, tmp_path / "c.zarr"))
    ]
    assert results[0] == results[1] > 0


def test_a_test_split_of_other_classes_is_refused(tmp_path):
    store = pictures(tmp_path / "a.tar", ["ant", "cat"])
    test = pictures(tmp_path / "b.tar", ["cat", "hen"])
    keep, config = ss.select(store, keep_fraction=1.0), TrainConfig(epochs=1, batch_size=4)
    how = {"folder": tmp_path / "run", "accelerator": Accelerator(cpu=True)}
    with pytest.raises(ss.ShardsieveError, match=r"test must have the classes of .*, got 'hen' in"):
        train_subset(store, keep, config, test=test, **how)
    numbers = ss.index(shard(tmp_path / "n.tar", [0, 2], "cls"), tmp_path / "n.zarr")
    assert numbers_in(numbers, test) is None
    check_test(test, numbers, 2)
    with pytest.raises(ss.ShardsieveError, match=r"got names of 2 classes in .* for 3 numbers"):
        check_test(test, numbers, 3)
    assert np.array_equal(numbers_in(test, test), [0, 1, -1])
