"""Images of a .beton that FFCV cannot decode, or has no room for: read again without it."""

import io

import numpy as np
import pytest
import torch
from betons import write_beton
from PIL import Image

import shardsieve as ss
from shardsieve.loaders import ffcv_decoder
from shardsieve.pack.beton import pack_beton
from shardsieve.pack.beton_tars import beton_to_tars
from shardsieve.shards.beton import DESCRIPTOR, HEADER, read_beton, row_type
from shardsieve.train.config import TrainConfig
from shardsieve.train.images import image_of
from shardsieve.train.loading import make_loader

# One process compiles FFCV's pipelines for all of them.
pytestmark = pytest.mark.xdist_group("ffcv")

SIZE = 16


def jpeg(number, width, height, **how):
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x + 30 * number, 2 * y, x + y], axis=-1) % 256
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=95, **how)
    return file.getvalue()


def indexed(folder, images, damaged=()):
    """Pack images and index them; of some rows only the first half is left."""
    for number, data in enumerate(images):
        path = folder / "in" / "ab"[number % 2] / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    pack_beton(folder / "in", folder)
    ranges = read_beton(folder / "train.beton").ranges
    with (folder / "train.beton").open("r+b") as file:
        for offset, length in ranges[list(damaged)].tolist():
            file.seek(offset + length // 2)
            file.write(bytes(length - length // 2))
    return ss.index(folder / "train.beton", folder / "s.zarr")


def batches(store, **settings):
    keep = ss.select(store, keep_fraction=1.0)
    config = TrainConfig(**{"batch_size": 8, "size": SIZE, "channels": 3, "workers": 1, **settings})
    loader, _ = make_loader(store, keep, config, in_order=True)
    return list(loader), loader.dataset


@pytest.mark.parametrize("side", [SIZE, 24], ids=["as it is", "scaled"])
def test_damaged_images_are_refused_or_left_out(tmp_path, side):
    """FFCV left the pixels of an earlier image in their place."""
    images = [jpeg(number, side, side) for number in range(19)]
    store = indexed(tmp_path / "damaged", images, damaged=[3, 11])
    with pytest.raises(ss.UnreadableSampleError, match="cannot decode sample 00000003"):
        batches(store)
    got, dataset = batches(store, max_unreadable=2)
    assert dataset.unreadable == [3, 11]
    want, _ = batches(indexed(tmp_path / "whole", images))
    for one, two in zip(got, want, strict=True):
        left = [row for row, i in enumerate(two.ids.tolist()) if i not in dataset.unreadable]
        assert one.ids.tolist() == two.ids[left].tolist()
        assert one.labels.tolist() == two.labels[left].tolist()
        assert one.weights.tolist() == [1] * len(left)
        assert torch.equal(one.images, two.images[left])
    assert sum(len(one.ids) for one in got) == 17


def test_another_sample_stands_in_for_a_batch_of_damaged_ones(tmp_path):
    store = indexed(tmp_path, [jpeg(n, SIZE, SIZE) for n in range(9)], damaged=[8])
    (first, last), dataset = batches(store, max_unreadable=1)
    assert dataset.unreadable == [8]
    assert (last.ids.tolist(), last.weights.tolist()) == ([0], [0])
    # FFCV's JPEG decoder rounds otherwise than Pillow's.
    assert (last.images[0].float() - first.images[0].float()).abs().mean() < 2


def test_raw_images_that_are_no_squares_are_themselves(tmp_path):
    rng, wanted = np.random.default_rng(0), []
    (tmp_path / "in" / "a").mkdir(parents=True)
    for number, shape in enumerate([(SIZE, 30, 3), (30, SIZE, 3), (SIZE, 20, 3)]):
        pixels = rng.integers(256, size=shape, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / "a" / f"{number}.png")
        wanted.append(pixels)
    path = pack_beton(tmp_path / "in", tmp_path)[0].pattern
    store = ss.index(path, tmp_path / "s.zarr")
    back = ss.index(beton_to_tars(path, tmp_path / "back").pattern, tmp_path / "b.zarr")
    (batch,), _ = batches(store)
    for row, of_ours in enumerate(zip(*map(ss.ShardDataset, (store, back)), strict=True)):
        shown = [np.asarray(image_of(sample)) for sample in of_ours]
        assert np.array_equal(*shown)
        high, wide = shown[0].shape[:2]
        top, left = (high - SIZE) // 2, (wide - SIZE) // 2
        middle = shown[0][top : top + SIZE, left : left + SIZE]
        assert np.array_equal(batch.images[row].permute(1, 2, 0).numpy(), middle)
        assert any(np.array_equal(shown[0], pixels) for pixels in wanted)


def test_black_images_and_those_with_a_warning_are_kept(tmp_path):
    black = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE)).save(black, "JPEG")
    odd = jpeg(1, SIZE, SIZE)
    warned = odd[:-2] + b"\x12\x34\x56" + odd[-2:]  # bytes before the last marker
    store = indexed(tmp_path, [black.getvalue(), odd, warned])
    (batch,), dataset = batches(store)
    assert dataset.unreadable == []
    means = sorted(batch.images.float().mean(dim=(1, 2, 3)).tolist())
    assert means[0] == 0
    assert means[1] == pytest.approx(means[2], abs=1)
    assert means[1] > 20


def test_an_image_larger_than_there_is_room_for_is_decoded_all_the_same(tmp_path, monkeypatch):
    """FFCV asked for 100 GB because of one image of 9000 x 6000 pixels."""
    sizes = [(40, 30), (30, 40), (300, 200), (40, 40), (200, 300)]
    images = [jpeg(number, *size) for number, size in enumerate(sizes)]
    store = indexed(tmp_path, images)
    (want,), _ = batches(store)
    store = indexed(tmp_path / "again", images)
    monkeypatch.setattr(ffcv_decoder, "MOST_ROOM", 8 * 5 * 3 * 40 * 40)
    (got,), dataset = batches(store)
    wanted = dataset.loader.graph.collect_requirements()[0]["operation"].values()
    room = max(np.prod(one.shape) for parts in wanted if isinstance(parts, tuple) for one in parts)
    assert room == 3 * 40 * 40
    assert dataset.unreadable == []
    large = [
        int(np.prod(image_of(s).size)) > 1600 for s in ss.ShardDataset(store).__getitems__(range(5))
    ]
    assert sum(large) == 2
    for row, is_large in enumerate(large):
        difference = (got.images[row].float() - want.images[row].float()).abs().mean()
        assert difference < 8
        assert is_large == (difference > 0)


def test_the_image_that_is_trained_on_is_the_one_that_is_embedded(tmp_path):
    """Of several: with FFCV the first, without it none could be found."""
    from ffcv.fields import IntField, RGBImageField

    class Pairs:
        def __len__(self):
            return 5

        def __getitem__(self, row):
            images = [np.full((SIZE, SIZE, 3), row + at, np.uint8) for at in (0, 100)]
            return (*images, row % 2)

    for first, second, at in [("photo", "thumb", 0), ("thumb", "image", 100)]:
        fields = {first: RGBImageField(), second: RGBImageField(), "label": IntField()}
        path = write_beton(tmp_path / f"{first}.beton", data=Pairs(), fields=fields)
        store = ss.index(path, tmp_path / f"{first}.zarr")
        (batch,), _ = batches(store, size=SIZE)
        assert batch.images[:, 0, 0, 0].tolist() == [row + at for row in range(5)]
        samples = ss.ShardDataset(store).__getitems__(range(5))
        assert [image_of(one).getpixel((0, 0))[0] for one in samples] == [
            row + at for row in range(5)
        ]


def test_images_that_ffcv_cannot_find_are_found(tmp_path):
    """After a field of no bytes FFCV reads nothing and keeps an earlier image."""
    from ffcv.fields import BytesField, IntField, RGBImageField

    class Captions:
        def __len__(self):
            return 40

        def __getitem__(self, row):
            return np.full((SIZE, SIZE, 3), row, np.uint8), np.zeros(row % 2, np.uint8), row % 2

    fields = {"image": RGBImageField(), "text": BytesField(), "label": IntField()}
    path = write_beton(tmp_path / "c.beton", data=Captions(), fields=fields)
    store = ss.index(path, tmp_path / "c.zarr")
    for size in (SIZE, SIZE // 2):
        found, _ = batches(store, size=size)
        images = torch.cat([batch.images for batch in found])
        assert images.amax(dim=(1, 2, 3)).tolist() == list(range(40))
        assert images.amin(dim=(1, 2, 3)).tolist() == list(range(40))


@pytest.mark.parametrize("height", [0, 7, 9])
def test_raw_images_of_other_sizes_than_their_bytes_are_damage(tmp_path, height):
    path = write_beton(tmp_path / "train.beton", 4, side=8)
    raw, types = bytearray(path.read_bytes()), read_beton(path).types
    at = HEADER.itemsize + len(types) * DESCRIPTOR.itemsize
    rows = np.frombuffer(raw, row_type(types), count=4, offset=at)
    rows["f0"]["height"][1] = height
    path.write_bytes(raw)
    message = rf"beton is damaged: .* 192 bytes for an image of {height} x 8 pixels; write it again"
    with pytest.raises(ss.CorruptShardError, match=message):
        beton_to_tars(path, tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))
