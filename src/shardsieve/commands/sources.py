"""From what a user names, shards or a store, to the store."""

from pathlib import Path

from shardsieve._errors import ShardsieveError
from shardsieve.loaders.ffcv import need_ffcv
from shardsieve.loaders.ffcv_images import image_field
from shardsieve.shards.beton import SUFFIXES, read_beton
from shardsieve.store.create import index
from shardsieve.store.layout import holds_store
from shardsieve.store.store import open_store
from shardsieve.train.launch import make_accelerator, on_main
from shardsieve.train.machines import check_shared, on_all


def store_of(data: str | None, store: Path | None, *, precision: str = "no") -> Path:
    """Return the store to use; shards that are named are indexed unless that is done.

    Under a launcher one process indexes and the others wait.

    Args:
        data: Tars or a `.beton`.
        store: The store; a `.beton` here counts as data. Left out, a `.beton`'s store is
            `NAME.zarr` beside it.
        precision: Of the run that follows: the accelerator is made here.

    Raises:
        ShardsieveError: If neither is given, the shards cannot be indexed, or a `.beton` has no
            images that FFCV could decode.
        MissingDependencyError: If the data is a `.beton` and FFCV is not installed.
    """
    if data is None and store is not None and store.suffix in SUFFIXES:
        data, store = str(store), None
    if store is None:
        if data is None or not data.endswith(SUFFIXES):
            raise ShardsieveError("--store must be given, or --data FILE.beton; got neither")
        store = Path(data).with_suffix(".zarr")
    accelerator, found = make_accelerator(precision=precision), store
    on_all(accelerator, lambda: _check_trainable(data, found))
    if data is not None:
        # One that is there is read alone, and may be a copy.
        if not on_main(accelerator, lambda: holds_store(found)):
            check_shared(accelerator, {"store": found})
        on_main(accelerator, lambda: index(data, found) and None)
    return found


def _check_trainable(data: str | None, store: Path) -> None:
    if data is None:
        opened = open_store(store, mode="r")
        data = opened.places[0] if opened.kind == "ffcv" else ""
    if data.endswith(SUFFIXES):
        need_ffcv()
        image_field(read_beton(data))
