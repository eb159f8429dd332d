"""From what a user names, shards or a store, to the store."""

from pathlib import Path

from shardsieve._errors import ShardsieveError
from shardsieve.loaders.ffcv_images import need_ffcv
from shardsieve.store.create import index
from shardsieve.store.store import open_store
from shardsieve.train.launch import make_accelerator


def store_of(data: str | None, store: Path | None, *, precision: str = "no") -> Path:
    """Return the store to use; shards that are named are indexed unless that is done.

    Under a launcher one process indexes and the others wait.

    Args:
        data: Tars or a `.beton`.
        store: The store; a `.beton` here counts as data. Left out, a `.beton`'s store is
            `NAME.zarr` beside it.
        precision: Of the run that follows: the accelerator is made here.

    Raises:
        ShardsieveError: If neither is given, or the shards cannot be indexed.
        MissingDependencyError: If the store is a `.beton`'s and FFCV is not installed.
    """
    if data is None and store is not None and store.suffix == ".beton":
        data, store = str(store), None
    if store is None:
        if data is None or not data.endswith(".beton"):
            raise ShardsieveError("--store must be given, or --data FILE.beton; got neither")
        store = Path(data).with_suffix(".zarr")
    if data is not None:
        if data.endswith(".beton"):
            need_ffcv()
        accelerator = make_accelerator(precision=precision)
        if accelerator.is_main_process:
            index(data, store)
        accelerator.wait_for_everyone()
    elif open_store(store, mode="r").kind == "ffcv":
        need_ffcv()
    return store
