"""From a sample's bytes to pixels: decoding, crops, normalising, augmenting."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tars import write_tar

import shardsieve as ss
from shardsieve.train.config import TrainConfig
from shardsieve.train.crops import Crop, RandomCrops, cropped
from shardsieve.train.images import (
    ImageDecoder,
    augment,
    brightness,
    collate,
    fixed_size,
    image_of,
    normalised,
)
from shardsieve.train.loading import make_loader, set_epoch
from shardsieve.train.transforms import RandomTransform

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, kind)
    return file.getvalue()


SAMPLE = {"__id__": 5, "cls": b"3", "png": encoded(PIXELS)}


def pixels_of(decoder, sample=SAMPLE):
    found = decoder(sample)[0]
    assert found.dtype == torch.uint8
    return found.permute(1, 2, 0).numpy()


def test_a_sample_is_decoded_to_pixels_label_id_and_weight():
    np.testing.assert_array_equal(pixels_of(ImageDecoder()), PIXELS)
    assert ImageDecoder()(SAMPLE)[1:] == (3, 5, 1.0)
    told = {**SAMPLE, "__label__": 7, "__weight__": 2.5, "y": b"1"}
    assert ImageDecoder()(told)[1:] == (7, 5, 2.5)
    named = ImageDecoder(label_member="y")
    assert named({**SAMPLE, "y": b"1"})[1] == 1
    with pytest.raises(ValueError, match=r"a y member .*, got none; .*labels=store.labels"):
        named(SAMPLE)
    with pytest.raises(ValueError, match=r"number of its class, got b'cat'; "):
        named({**SAMPLE, "y": b"cat"})


def test_images_have_the_channels_and_the_size_that_are_asked_for():
    grey = Image.fromarray(PIXELS).convert("L")
    np.testing.assert_array_equal(pixels_of(ImageDecoder(channels=1))[..., 0], np.asarray(grey))
    of_grey = pixels_of(ImageDecoder(), {**SAMPLE, "png": encoded(grey)})
    np.testing.assert_array_equal(of_grey, np.stack([np.asarray(grey)] * 3, axis=-1))
    np.testing.assert_array_equal(pixels_of(ImageDecoder(size=4)), PIXELS[:, 1:5])
    assert pixels_of(ImageDecoder(size=6)).shape == (6, 6, 3)  # as wide, but not as high
    board = encoded((np.indices((8, 8)).sum(axis=0) % 2 * 255).astype(np.uint8))
    for crops in (None, RandomCrops(4)):
        mixed = pixels_of(ImageDecoder(size=2, crops=crops), {**SAMPLE, "png": board})
        assert np.abs(mixed.astype(int) - 128).max() < 60


def test_a_palette_is_cropped_as_the_colours_that_it_stands_for():
    palette = Image.fromarray(np.repeat(PIXELS, 8, axis=0)).quantize(9)
    how = ImageDecoder(size=3, crops=RandomCrops(1))
    found, want = (
        pixels_of(how, {**SAMPLE, "png": encoded(one)}) for one in (palette, palette.convert("RGB"))
    )
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(pixels_of(ImageDecoder(crops=RandomCrops(1))), PIXELS)


def flipped_by_chance():
    return lambda image: image.flip(1) if torch.rand(()) < 0.5 else image


def test_only_random_crops_are_transformed_and_anew_in_every_epoch():
    transform = RandomTransform(f"{__name__}:flipped_by_chance", 0)
    np.testing.assert_array_equal(pixels_of(ImageDecoder(transform=transform)), PIXELS)
    crops, seen = RandomCrops(0), set()
    for epoch in range(8):
        crops.set_epoch(epoch)
        seen.add(pixels_of(ImageDecoder(crops=crops, transform=transform)).tobytes())
    assert len(seen) == 2


def test_the_image_of_a_sample_is_the_one_that_is_called_so():
    first, second = (encoded(np.full((1, 1), value, np.uint8)) for value in (1, 2))
    for sample, value in [
        ({"left.png": first, "right.png": second}, 1),
        ({"left.png": first, "image.png": second}, 2),
        ({"image.png": first, "png": second}, 2),
        ({"a.b.png": first, "cls": b"0"}, 1),
    ]:
        assert image_of(sample).getpixel((0, 0)) == value
    with pytest.raises(ValueError, match=r"one of jpg, .*tga, got txt, png\.txt$"):
        image_of({"__key__": "k", "txt": b"", "png.txt": b""})
    with pytest.raises(OSError, match=r"^it is no image that Pillow knows$"):
        image_of({"png": b"none"})
    deep = Image.fromarray(np.array([[0, 255, 256, 65_535]], dtype=np.uint16))
    assert np.asarray(image_of({"png": encoded(deep)})).tolist() == [[0, 0, 1, 255]]


def test_sizes_that_are_not_given_are_those_of_the_first_image(tmp_path):
    for number, (image, guessed) in enumerate(
        [
            (Image.new("RGB", (300, 10)), (224, 3)),
            (Image.new("L", (7, 9)), (9, 1)),
            (Image.new("1", (9, 7)), (9, 1)),
            (Image.new("P", (225, 1)), (224, 3)),
        ]
    ):
        tar = write_tar(tmp_path / f"{number}.tar", [("a.png", encoded(image)), ("a.cls", b"0")])
        store = ss.index(tar, tmp_path / f"{number}.zarr")
        assert fixed_size(store) == guessed
        assert fixed_size(store, size=5) == (5, guessed[1])
        assert fixed_size(store, channels=1) == (guessed[0], 1)
    assert fixed_size(store, 5, 1) == (5, 1)


def test_a_batch_is_of_plain_types_and_never_empty():
    batch = collate([ImageDecoder()({**SAMPLE, "__id__": 2**40 + n}) for n in range(2)])
    assert [part.dtype for part in batch] == [torch.uint8, *[torch.int64] * 2, torch.float32]
    assert batch.ids.tolist() == [2**40, 2**40 + 1]
    with pytest.raises(ss.UnreadableSampleError, match="no sample of a whole batch"):
        collate([])


def test_black_and_white_are_normalised_as_everybody_does():
    pixels = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 1, 1)
    means, deviations = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    for how, black, white in [
        ("half", [-2] * 3, [2] * 3),
        ("imagenet", -means / deviations, (1 - means) / deviations),
    ]:
        found = normalised(pixels, how)[..., 0, 0]
        np.testing.assert_allclose(found, [black, white], rtol=1e-5)
        ends = torch.stack(brightness(pixels.device, how))[..., 0, 0].expand(2, 3)
        np.testing.assert_allclose(ends, found, rtol=1e-5)


def test_images_are_moved_by_an_eighth_at_most_and_half_of_them_mirrored():
    n, side = 4000, 16
    # What a pixel holds says where it comes from.
    rows, columns = torch.arange(side)[:, None], torch.arange(side)[None]
    image = torch.stack([rows.expand(side, side), columns.expand(side, side)]) + 10
    images = image.to(torch.uint8).expand(n, 2, side, side)
    for flip in (False, True):
        made = augment(images, torch.Generator().manual_seed(1), flip=flip)
        assert torch.equal(made, augment(images, torch.Generator().manual_seed(1), flip=flip))
        made = made.int()
        mirrored = made[:, 1, 8, 8] < made[:, 1, 8, 7]
        assert abs(mirrored.float().mean() - flip / 2) < 0.03
        made = torch.where(mirrored[:, None, None, None], made.flip(3), made)
        moved = made[:, :, 8, 8] - 18
        _, counts = (moved + 2).unique(dim=0, return_counts=True)
        assert len(counts) == 25
        assert moved.abs().max() == 2
        assert counts.min() > n / 25 * 0.7


def test_a_crop_that_never_fits_is_the_largest_one_in_the_centre():
    crops = RandomCrops(0)
    for sample_id in range(20):
        assert crops.crop(sample_id, 1000, 10)[:4] == (493, 0, 506, 10)
        assert crops.crop(sample_id, 12, 1000)[:4] == (0, 492, 12, 508)
        assert crops.crop(sample_id, 1, 1)[:4] == (0, 0, 1, 1)


def test_crops_reach_every_place_of_an_image():
    """And wide ones lie as far up and down as high ones, left and right."""
    crops = RandomCrops(7)
    made = [crops.crop(i, 9, 9) for i in range(2000)]
    sides = {(c.right - c.left, c.bottom - c.top) for c in made}
    assert max(sides) == (9, 9)
    for wide, high in [(6, 6), (7, 6), (6, 7)]:
        places = {c[:2] for c in made if (c.right - c.left, c.bottom - c.top) == (wide, high)}
        assert places == {(x, y) for x in range(10 - wide) for y in range(10 - high)}
    areas = np.array([wide * high for wide, high in sides])
    assert areas.min() >= 5
    assert RandomCrops(8).crop(0, 9, 9) != made[0]


def test_an_image_that_is_no_jpeg_is_cropped_as_it_is():
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    for mirrored in (False, True):
        found = np.asarray(cropped(image, Crop(2, 1, 5, 4, mirrored), 3)).tolist()
        want = [row[::-1] if mirrored else row for row in np.asarray(image)[1:4, 2:5].tolist()]
        assert found == want


def test_crops_are_the_same_on_every_machine_and_in_every_release():
    crops = RandomCrops(5)
    crops.set_epoch(3)
    assert crops.crop(0, 500, 375) == (87, 79, 459, 364, False)
    assert crops.crop(2**40, 500, 375) == (105, 16, 239, 143, True)
    assert crops.crop(7, 90, 30) == (43, 10, 67, 30, True)
    assert crops.crop(8, 30, 90) == (0, 1, 29, 33, True)
    wide = [crops.crop(i, 90, 30)[:4] for i in range(300)]
    assert 3 <= wide.count((25, 0, 65, 30)) <= 20  # none of ten draws fits


@pytest.fixture
def store(tmp_path):
    """Three shards of five coloured images each."""
    draw = np.random.default_rng(1)
    for shard in range(3):
        images = [encoded(draw.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in range(5)]
        members = [
            (f"{n}.{kind}", data)
            for n, image in enumerate(images)
            for kind, data in (("png", image), ("cls", b"%d" % n))
        ]
        write_tar(tmp_path / f"s-{shard}.tar", members)
    return ss.index(str(tmp_path / "s-{0..2}.tar"), tmp_path / "s.zarr")


def loaded(store, epoch=0, *, in_order=False, **settings):
    """Ids in the order of a loader, and the image of every id."""
    config = TrainConfig(batch_size=4, size=5, **settings)
    keep = ss.select(store, keep_fraction=1.0)
    loader, sampler = make_loader(store, keep, config, in_order=in_order)
    set_epoch(loader, sampler, epoch)
    batches = list(loader)
    ids = torch.cat([batch.ids for batch in batches]).tolist()
    return ids, dict(zip(ids, torch.cat([batch.images for batch in batches]), strict=True))


TOLD = f"{__name__}:flipped_by_chance"


def test_seed_and_epoch_decide_the_order_of_a_loader_and_the_crops_of_its_workers(store):
    for how in ("none", "resized"):
        ids, images = loaded(store, seed=1, augment=how)
        assert sorted(ids) == store.ids().tolist()
        again, same = loaded(store, seed=1, augment=how)
        assert again == ids
        assert all(torch.equal(same[i], images[i]) for i in ids)
        for other in ({"seed": 2}, {"seed": 1, "epoch": 1}):
            others, drawn = loaded(store, **other, augment=how)
            assert others != ids
            differ = [not torch.equal(drawn[i], images[i]) for i in ids]
            assert sum(differ) > 10 if how == "resized" else not any(differ)


def test_seed_and_epoch_decide_what_follows_a_crop(store):
    patterns = set()
    for drawn_by in ({"seed": 1}, {"seed": 2}, {"seed": 1, "epoch": 1}):
        plain, drawn = (loaded(store, augment=how, **drawn_by)[1] for how in ("resized", TOLD))
        flipped = [torch.equal(drawn[i], plain[i].flip(1)) for i in store.ids().tolist()]
        assert sum(flipped) + sum(torch.equal(drawn[i], plain[i]) for i in plain) == len(store)
        patterns.add(tuple(flipped))
    assert len(patterns) == 3
    with pytest.raises(ss.ShardsieveError, match=r"^cannot load augment 'no_such:factory'"):
        loaded(store, channels=3, augment="no_such:factory")


def test_what_is_evaluated_comes_in_order_and_as_it_is(store):
    ids, evaluated = loaded(store, in_order=True, channels=None, augment="no_such:factory")
    assert ids == store.ids().tolist()
    plain = loaded(store, channels=3)[1]
    assert all(torch.equal(plain[i], evaluated[i]) for i in ids)
    by_shard = loaded(store, shuffle_window=0)[0]
    assert [i // store.rows_per_shard for i in by_shard] == [0] * 5 + [1] * 5 + [2] * 5
    assert loaded(store, channels=1)[1][0].shape == (1, 5, 5)
