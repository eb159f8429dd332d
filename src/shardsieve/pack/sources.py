"""Where images come from: folders, MNIST's IDX files, scikit-learn's digits."""

import gzip
import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shardsieve._errors import MissingDependencyError, ShardsieveError
from shardsieve.order import permutation
from shardsieve.pack.places import is_places, places_splits
from shardsieve.selection import class_quotas, num_kept
from shardsieve.shards.pixels import is_image

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_IDX = {"train": "train", "test": "t10k"}
_SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation"),
}


@dataclass(frozen=True)
class Split:
    """Labelled images of one split, read one at a time.

    Attributes:
        name: `train`, `test` or `val`.
        labels: int64 (n,).
        classes: Class names by label.
        read: Gives (suffix without dot, bytes) of an image by its row.
    """

    name: str
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    read: Callable[[int], tuple[str, bytes]]


def find_splits(source: str | Path, *, test_fraction: float = 0.0, seed: int = 0) -> list[Split]:
    """Return the splits of a source.

    Args:
        source: `digits`, `fashion-mnist`, a folder with the four IDX files (gzipped or not), or an
            image folder `CLASS/...` or `{train,test,val}/CLASS/...` (`Train`, `validation` and the
            like are splits, too); a split may lie flat in `images/` beside a
            `NAME_annotations.txt`, as in Tiny-ImageNet; or Places365 as it is handed out, with its
            lists. What is hidden (`.ipynb_checkpoints`, macOS's `._1.jpg`) is neither class nor
            image.
        test_fraction: Share of every class held out for `test` where the source has no split of
            its own, in `[0, 1)`. Digits default to 0.2.
        seed: Of that draw.

    Raises:
        ShardsieveError: If there is nothing to pack.
    """
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction must lie in [0, 1), got {test_fraction}")
    if str(source) == "digits":
        return held_out(_digits(), test_fraction or 0.2, seed)
    if str(source) == "fashion-mnist":
        if not FASHION_MNIST.is_dir():
            raise ShardsieveError(
                f"no Fashion-MNIST at {FASHION_MNIST}; run `apt-get install dataset-fashion-mnist`"
            )
        return _idx_splits(FASHION_MNIST)
    folder = Path(source)
    if not folder.is_dir():
        raise ShardsieveError(
            f"source must be a folder, 'digits' or 'fashion-mnist', got {source}; check the path"
        )
    if _idx_file(folder, "train-images-idx3-ubyte") is not None:
        return _idx_splits(folder)
    if is_places(folder):
        classes, listed = places_splits(folder)
        return [_of_files(one.name, classes, one.files, one.labels) for one in listed]
    own = _own_splits(folder)
    if own:
        classes = _class_names(next(iter(own.values())))
        return [_image_folder(path, name, classes) for name, path in own.items()]
    return held_out(_image_folder(folder, "train", _class_names(folder)), test_fraction, seed)


def held_out(split: Split, test_fraction: float, seed: int) -> list[Split]:
    """Cut a split into train and test, with the same share of every class."""
    if test_fraction == 0:
        return [split]
    _, sizes = np.unique(split.labels, return_counts=True)
    quotas = class_quotas(sizes, num_kept(len(split.labels), test_fraction))
    order = permutation(len(split.labels), seed, 0x7E57)
    test = np.zeros(len(order), dtype=bool)
    for quota, label in zip(quotas, np.unique(split.labels), strict=True):
        test[order[split.labels[order] == label][:quota]] = True
    return [
        _rows(split, "train", np.flatnonzero(~test)),
        _rows(split, "test", np.flatnonzero(test)),
    ]


def _rows(split: Split, name: str, rows: NDArray[np.int64]) -> Split:
    return Split(name, split.labels[rows], split.classes, lambda row: split.read(int(rows[row])))


def _class_folders(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")}


def _own_splits(folder: Path) -> dict[str, Path]:
    """Return the folders of the splits by name; none where such a name is that of a class."""
    held = _class_folders(folder)
    own: dict[str, Path] = {}
    for split, words in _SPLITS.items():
        found = sorted(name for name in held if name.lower() in words)
        if len(found) > 1:
            raise ShardsieveError(
                f"{folder} must hold one folder of the {split} split, got {found[0]} and "
                f"{found[1]}; move one elsewhere"
            )
        own.update((split, folder / name) for name in found)
    # Of classes, `train` is one of CIFAR-100's.
    is_class = len(own) < len(held) and not any(map(_class_folders, own.values()))
    return {} if is_class else own


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(_class_folders(folder)))
    if not names:
        raise ShardsieveError(f"{folder} has no class folders; images must lie in CLASS/NAME.jpg")
    return names


def _image_folder(folder: Path, name: str, classes: tuple[str, ...]) -> Split:
    find = _annotated if _annotations(folder).is_file() else _by_class
    return _of_files(name, classes, *find(folder, classes))


def _of_files(name: str, classes: tuple[str, ...], files: list[Path], labels: list[int]) -> Split:
    def read(row: int) -> tuple[str, bytes]:
        data = _bytes_of(files[row])
        if not data:
            raise ShardsieveError(f"image {files[row]} is empty (0 bytes); remove or replace it")
        return files[row].suffix[1:].lower(), data

    return Split(name, np.array(labels, dtype=np.int64), classes, read)


def _annotations(folder: Path) -> Path:
    return folder / f"{folder.name}_annotations.txt"


def _by_class(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], list[int]]:
    files: list[Path] = []
    labels: list[int] = []
    held = _class_folders(folder)
    odd = sorted(held.symmetric_difference(classes))
    if odd:
        what = "one more" if odd[0] in held else "none"
        raise ShardsieveError(
            f"{folder} must have a folder for every class of {folder.parent}, got {what} for "
            f"{odd[0]}; sort its images into the same class folders, or move it elsewhere"
        )
    for label, class_name in enumerate(classes):
        found = _images_of(folder / class_name)
        if not found:
            raise ShardsieveError(
                f"class folder {folder / class_name} has no images; move it elsewhere, or pack the "
                "folder that holds the classes"
            )
        files += found
        labels += [label] * len(found)
    return files, labels


def _images_of(folder: Path) -> list[Path]:
    above = len(str(folder))
    images = (p for p in folder.rglob("*") if is_image(p.suffix.lower()))
    return sorted(p for p in images if "/." not in str(p)[above:] and p.is_file())


def _annotated(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], list[int]]:
    """Return what Tiny-ImageNet's annotations list: lines of file name, class and a box."""
    table = _annotations(folder)
    files, labels = [], []
    for line in table.read_text().splitlines():
        name, class_name, *_ = [*line.split("\t"), "", ""]
        path = folder / "images" / name
        if class_name not in classes or not path.is_file():
            raise ShardsieveError(
                f"{table} must list images of {folder / 'images'} and their classes, got "
                f"{line[:80]!r}; download it again"
            )
        files.append(path)
        labels.append(classes.index(class_name))
    return files, labels


def _digits() -> Split:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError(
            "digits need scikit-learn: pip install 'shardsieve[vision]'"
        ) from error
    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)
    return _arrays("train", images, found.target.astype(np.int64))


def _arrays(name: str, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Split:
    classes = tuple(str(label) for label in range(int(labels.max()) + 1))
    return Split(name, labels, classes, lambda row: ("png", _png(images[row])))


def _png(image: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", compress_level=6)
    return out.getvalue()


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _idx_splits(folder: Path) -> list[Split]:
    splits = []
    for name, prefix in _IDX.items():
        images = _read_idx(folder, f"{prefix}-images-idx3-ubyte", 3)
        labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise ShardsieveError(
                f"{folder} has {len(images)} {name} images and {len(labels)} labels; "
                "download it again"
            )
        splits.append(_arrays(name, images, labels.astype(np.int64)))
    return splits


def _read_idx(folder: Path, name: str, ndim: int) -> NDArray[np.uint8]:
    path = _idx_file(folder, name)
    if path is None:
        raise ShardsieveError(f"{folder} lacks {name}; all four IDX files are needed")
    raw = _bytes_of(path)
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise ShardsieveError(f"{path} is no whole gzip file; download it again") from error
    shape = np.frombuffer(raw, ">i4", count=ndim, offset=4).astype(int)
    if raw[:4] != bytes([0, 0, 8, ndim]) or len(raw) != 4 + 4 * ndim + shape.prod():
        raise ShardsieveError(f"{path} is no IDX file of {ndim} dimensions; download it again")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ShardsieveError(
            f"cannot read {path}: {error.strerror}; see that you may read it, or leave it out"
        ) from error
