"""`prune`: one call around a loader that somebody already has."""

from typing import Any

from torch.utils.data import DataLoader
from webdataset import DataPipeline

from shardsieve.loaders.ffcv import prune_loader as prune_ffcv
from shardsieve.loaders.stages import flat
from shardsieve.loaders.webdataset import prune_pipeline
from shardsieve.loaders.webloader import prune_loader, warn_of_long_passes
from shardsieve.store.store import Store, refuse_path


def prune(loader: Any, store: Store, **options: Any) -> Any:
    """Return a loader like the given one that reads only the kept samples.

    Args:
        loader: A `wds.WebDataset` or `wds.DataPipeline`; a `wds.WebLoader` or torch `DataLoader`
            over one; or an `ffcv.loader.Loader`.
        store: The store of its shards.
        options: `keep_set`, or the arguments of `select`; `seed`, and those of
            `prune_pipeline` or of `shardsieve.loaders.ffcv.prune_loader`.

    Returns:
        A new loader of the same kind with `set_epoch`, `state_dict` and `load_state_dict`; the
        given one is left as it was.

    Raises:
        ShardsieveError: If something in the given loader cannot be kept, with the way out.
        TypeError: If it is none of the above, or a policy is given.
    """
    refuse_path(store)
    if "policy" in options:
        raise TypeError(
            "policy must be given to PrunedShardSampler, which takes in its losses; "
            "prune takes a score, or the keep_set of an epoch"
        )
    if isinstance(loader, DataPipeline):
        loader = flat(loader)
        if not (loader.pipeline and isinstance(loader.pipeline[0], DataLoader)):
            pruned = prune_pipeline(loader, store, **options)
            warn_of_long_passes(pruned)
            return pruned
    if isinstance(loader, (DataLoader, DataPipeline)):
        return prune_loader(loader, store, **options)
    if any(kind.__module__.startswith("ffcv.") for kind in type(loader).__mro__):
        return prune_ffcv(loader, store, **options)
    raise TypeError(
        "loader must be a webdataset pipeline, a loader over one, or an FFCV Loader, got "
        f"{type(loader).__name__}; prune what is inside it, or use PrunedShardSampler with "
        "ShardDataset"
    )
