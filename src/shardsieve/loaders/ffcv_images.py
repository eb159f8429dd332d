"""Images of an FFCV store through FFCV's own decoders, in the order of a `PrunedShardSampler`."""

import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import BatchSampler

from shardsieve._errors import MissingDependencyError, ShardsieveError
from shardsieve.io.counts import Counts
from shardsieve.io.source import cheap_fingerprint
from shardsieve.loaders.ffcv import NO_FFCV, Batch
from shardsieve.loaders.ledger import Ledger
from shardsieve.loaders.sampler import PrunedShardSampler
from shardsieve.shards.beton import IMAGE, Beton, read_beton
from shardsieve.store.store import Store


class FfcvImages:
    """Iterates `Batch`es of (uint8 images (b, 3, size, size), int64 labels (b,)) with their ids.

    For the training loop it is what a `DataLoader` over a `ShardDataset` is for tars: the sampler
    decides order, ranks, keep set, weights and where to go on. Images are scaled so that they fill
    the square and cut in the centre, unless all of them have that size.

    Attributes:
        sampler: Where the ids come from.
        ledger: Bytes of the samples that were asked for; FFCV reads them through the page cache.
        unreadable: Always empty: FFCV does not tell an image that it cannot decode.
    """

    def __init__(
        self,
        store: Store,
        sampler: PrunedShardSampler,
        *,
        batch_size: int,
        size: int,
        threads: int = 1,
        labels: NDArray[np.int64] | None = None,
    ) -> None:
        """Compile FFCV's pipeline; it is shared with other passes over the same file.

        Args:
            store: Of one `.beton` with an image field.
            sampler: Of that store.
            batch_size: Of one rank.
            size: Pixels per side.
            threads: Of FFCV, per rank.
            labels: int64 (n,), in the order of rows; None takes the store's.

        Raises:
            MissingDependencyError: If FFCV is not installed.
            ShardsieveError: If the file has no image field.
        """
        self.store, self.sampler, self.batch_size = store, sampler, batch_size
        self.ledger, self.unreadable = Ledger(), list[int]()
        self._labels = torch.from_numpy(store.labels() if labels is None else labels)
        self._lengths = store.ranges[..., 1].reshape(-1)[: len(store)]
        most = min(max(threads, 1), os.cpu_count() or 1)
        url = store.urls[0]
        self.loader = _image_loader(url, cheap_fingerprint(url), batch_size, size, most)

    @property
    def dataset(self) -> "FfcvImages":
        """Itself: where a `DataLoader` keeps what was read and what could not be."""
        return self

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        from shardsieve.loaders.ffcv_iterator import open_batches

        batches, weights = [], []
        for ids in BatchSampler(self.sampler, self.batch_size, drop_last=False):
            # The sampler fills up with padding where another rank has a sample more.
            batches.append(np.array([one for one in ids if one >= 0], dtype=np.uint64))
            weights.append([getattr(one, "weight", 1.0) for one in ids if one >= 0])
        if not batches:
            return
        fields = open_batches(self.loader, batches)
        try:
            for rows, own, (images,) in zip(batches, weights, fields, strict=True):
                yield self._batch(rows.astype(np.int64), torch.tensor(own), images)
        finally:
            fields.close()

    def _batch(self, rows: NDArray[np.int64], weights: torch.Tensor, images: torch.Tensor) -> Batch:
        kept = int(self._lengths[rows].sum())
        self.ledger.add(Counts(kept=kept, read=kept, requests=len(rows)))
        ids = torch.from_numpy(rows)
        # FFCV fills the same memory again some batches later; a GPU is sent pinned memory.
        how: Any = {"dtype": images.dtype, "pin_memory": torch.cuda.is_available()}
        own = torch.empty(images.shape, **how).copy_(images)
        batch = Batch((own, self._labels[ids]))
        batch.ids, batch.weights = ids, weights
        return batch


def need_ffcv() -> None:
    """Raise a MissingDependencyError, which says how to install it, unless FFCV is there."""
    try:
        import ffcv.loader
    except ImportError as error:
        raise MissingDependencyError(NO_FFCV) from error
    assert ffcv.loader


def image_field(beton: Beton) -> str:
    """Return the field that is trained on: `image`, else the first one of images.

    Raises:
        ShardsieveError: If there is none, or custom fields hide the rows.
    """
    images = [n for n, t in zip(beton.names, beton.types, strict=True) if t == IMAGE]
    if not images or beton.custom:
        held = f"custom fields ({', '.join(beton.custom)})" if beton.custom else "no image field"
        raise ShardsieveError(
            f"{beton.path} must have an RGBImageField and FFCV's own fields only to be trained on, "
            f"got {held}; write it so, or prune your own Loader with shardsieve.prune"
        )
    return "image" if "image" in images else images[0]


@lru_cache(maxsize=4)
def _image_loader(path: str, fingerprint: str, batch_size: int, size: int, threads: int) -> Any:
    """Return the compiled loader of a file's images; compiling takes seconds, so it is kept."""
    need_ffcv()
    from ffcv.fields.decoders import CenterCropRGBImageDecoder, SimpleRGBImageDecoder
    from ffcv.transforms import ToTensor, ToTorchImage

    from shardsieve.loaders.ffcv_lean import LeanLoader

    beton = read_beton(path)
    name = image_field(beton)
    column: Any = beton.column(name)
    same = (column["width"] == size).all() and (column["height"] == size).all()
    decoder = SimpleRGBImageDecoder() if same else CenterCropRGBImageDecoder((size, size), 1)
    pipelines: dict[str, Any] = dict.fromkeys(beton.names)
    pipelines[name] = [decoder, ToTensor(), ToTorchImage()]
    return LeanLoader(
        path, batch_size=batch_size, num_workers=threads, pipelines=pipelines, drop_last=False
    )
