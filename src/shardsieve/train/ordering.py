"""The order of a training's samples."""

from typing import Any

import numpy as np

from shardsieve.loaders.pages import default_pages
from shardsieve.store.sorting import is_sorted_by_class, page_of_rows
from shardsieve.store.store import Store
from shardsieve.train.config import TrainConfig
from shardsieve.train.labels import labels_of


def training_order(store: Store, config: TrainConfig) -> dict[str, Any]:
    """Return the sampler's `shuffle` and `window`, of which every rank finds the same."""
    window = None if store.kind == "ffcv" else config.shuffle_window
    shuffle = config.shuffle
    if shuffle == "auto":
        labels = labels_of(store, config.pseudo_labels)
        mixed = window == 0 or not is_sorted_by_class(store, labels, window or _usual_pages(store))
        shuffle = "window" if mixed else "global"
    return {"shuffle": shuffle, "window": window if shuffle == "window" else None}


def _usual_pages(store: Store) -> int:
    return default_pages(len(store), len(np.unique(page_of_rows(store))))
