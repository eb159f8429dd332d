"""A store's table of contents, for readers that cannot list names, and the marks in it."""

import warnings

import zarr
from zarr.storage import LocalStore

from shardsieve._errors import ShardsieveError
from shardsieve.io.objects import was_changed
from shardsieve.store.alone import in_turn
from shardsieve.store.objects import Objects

WRITTEN_LAST = {"pseudo_label": "date", "score": "date", "keep": "date", "dynamics": "signals"}
"""By group, the attribute of what lies in it that says that it is whole."""
_ATTEMPTS = 20


def write_contents(group: zarr.Group) -> None:
    """Write a group's table of contents, for readers that cannot list names.

    It lies in the file that also says how many shards there are: shards that another process
    appends meanwhile must not be forgotten. In a folder that process waits, among objects the
    table is made again.
    """
    if isinstance(group.store, LocalStore):
        with in_turn(group.store.root):
            _consolidate(group)
    elif isinstance(group.store, Objects):
        _consolidate_objects(group, group.store)


def _consolidate_objects(group: zarr.Group, store: Objects) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            with store.root_unchanged():
                _consolidate(group)
            return
        except ShardsieveError as error:
            if not was_changed(error) or attempt + 1 == _ATTEMPTS:
                raise


def _consolidate(group: zarr.Group) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr: not part of the v3 specification yet
        zarr.consolidate_metadata(group.store)


def has_contents(group: zarr.Group) -> bool:
    """Return whether a group has its table of contents, which goes when its attributes change."""
    found = zarr.open_group(group.store, mode="r", zarr_format=3)
    return found.metadata.consolidated_metadata is not None


def unlist(group: zarr.Group, name: str) -> None:
    """Take the mark from what is about to be deleted, if it is there and bears one.

    An array goes chunk by chunk, and a missing chunk reads as the fill value: what a kill leaves
    must not pass for whole.

    Args:
        group: The root.
        name: Of an array or group.
    """
    mark, found = WRITTEN_LAST.get(name.partition("/")[0]), group.get(name)
    if mark is not None and found is not None and mark in found.attrs:
        del found.attrs[mark]
        write_contents(group)
