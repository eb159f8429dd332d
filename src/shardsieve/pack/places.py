"""Places365 as it is handed out: images in `data_256` and `val_256`, labels in lists beside."""

from pathlib import Path
from typing import NamedTuple

from shardsieve._errors import ShardsieveError

CATEGORIES = "categories_places365.txt"
_LISTS_COME_IN = "unpack filelist_places365-standard.tar there"
_SIZES = ("256", "large")
_TRAIN = [f"data_{size}{kind}" for size in _SIZES for kind in ("", "_standard", "_challenge")]
_IMAGES = {"train": _TRAIN, "val": [f"val_{size}" for size in _SIZES]}
_LISTS = {
    "train": ["places365_train_standard.txt", "places365_train_challenge.txt"],
    "val": ["places365_val.txt"],
}


class Listed(NamedTuple):
    """The images of one split: their files and labels, in the order of its list."""

    name: str
    files: list[Path]
    labels: list[int]


def is_places(folder: Path) -> bool:
    """Say whether a folder holds image folders of Places365, or is one of its training images."""
    return _is_train(folder) or any(
        (folder / name).is_dir() for names in _IMAGES.values() for name in names
    )


def places_splits(folder: Path) -> tuple[tuple[str, ...], list[Listed]]:
    """Return the category names by label, and the splits; test images have no labels.

    Raises:
        ShardsieveError: If lists or images are missing, there are two sizes, or a line is wrong.
    """
    if _is_train(folder):
        raise ShardsieveError(
            f"{folder} is a part of Places365, whose labels lie beside it; give the folder that "
            f"holds it and {CATEGORIES}"
        )
    names = [line.split()[0] for line in _lines(folder / CATEGORIES)]
    classes = tuple(name.split("/", 2)[-1] for name in names)
    splits = []
    for split, candidates in _IMAGES.items():
        images = _only(folder, candidates)
        if images is not None:
            table = _only(folder, _LISTS[split]) or folder / _LISTS[split][0]
            splits.append(_listed(split, images, table, len(classes)))
    return classes, splits


def _is_train(folder: Path) -> bool:
    """Say whether categories lie by their first letter here, as `a/airfield`."""
    return folder.name in _TRAIN and all(len(p.name) == 1 for p in folder.iterdir())


def _only(folder: Path, names: list[str]) -> Path | None:
    found = [folder / name for name in names if (folder / name).exists()]
    if len(found) > 1:
        raise ShardsieveError(
            f"{folder} must hold one of {found[0].name} and {found[1].name}, got both; "
            "move one elsewhere"
        )
    return found[0] if found else None


def _listed(name: str, images: Path, table: Path, classes: int) -> Listed:
    files, labels = list[Path](), list[int]()
    for line in _lines(table):
        place, _, label = line.rpartition(" ")
        path = images / place.lstrip("/")
        if not (place and label.isdigit() and int(label) < classes and path.is_file()):
            raise ShardsieveError(
                f"{table} must list images of {images} and labels below {classes}, got "
                f"{line[:80]!r}; download it again"
            )
        files.append(path)
        labels.append(int(label))
    if not files:
        raise ShardsieveError(f"{table} lists no images; {_LISTS_COME_IN}")
    return Listed(name, files, labels)


def _lines(table: Path) -> list[str]:
    if not table.is_file():
        raise ShardsieveError(
            f"{table.parent} holds images of Places365 without {table.name}; {_LISTS_COME_IN}"
        )
    return [line for line in table.read_text().splitlines() if line.strip()]
