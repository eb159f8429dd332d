"""Images of an FFCV store through FFCV's own decoders, in the order of a `PrunedShardSampler`."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import BatchSampler

from shardsieve._errors import ShardsieveError
from shardsieve.io.counts import Counts
from shardsieve.io.source import cheap_fingerprint
from shardsieve.loaders.dataset import ShardDataset
from shardsieve.loaders.ffcv import Batch, need_ffcv
from shardsieve.loaders.ledger import Ledger
from shardsieve.loaders.sampler import PrunedShardSampler
from shardsieve.shards.beton import IMAGE, Beton, read_beton
from shardsieve.store.store import Store

_AHEAD = 3


class FfcvImages:
    """Iterates `Batch`es of (uint8 images (b, 3, size, size), int64 labels (b,)) with their ids.

    For the training loop it is what a `DataLoader` over a `ShardDataset` is for tars: the sampler
    decides order, ranks, keep set, weights and where to go on. Images are scaled so that they fill
    the square and cut in the centre, unless they have that size.

    Attributes:
        sampler: Where the ids come from.
        ledger: Bytes of the samples that were asked for; FFCV reads them through the page cache.
        slowly: Reads what FFCV could not decode, or had no room for.
    """

    def __init__(
        self,
        store: Store,
        sampler: PrunedShardSampler,
        *,
        slowly: ShardDataset,
        batch_size: int,
        size: int,
        threads: int = 1,
        labels: NDArray[np.int64] | None = None,
    ) -> None:
        """Compile FFCV's pipeline; it is shared with other passes over the same file.

        Args:
            store: Of one `.beton` with an image field.
            sampler: Of that store.
            slowly: Of that store, decoding to tuples of the image, uint8 (3, size, size), its
                label and its id; what it skips is left out of the batches.
            batch_size: Of one rank.
            size: Pixels per side.
            threads: Of FFCV, per rank, at least 1; no more than there are cores for this process.
            labels: int64 (n,), in the order of rows; None takes the store's.

        Raises:
            MissingDependencyError: If FFCV is not installed.
            ShardsieveError: If the file has no image field.
        """
        self.store, self.sampler, self.batch_size = store, sampler, batch_size
        self.slowly, self.ledger = slowly, Ledger()
        self._labels = torch.from_numpy(store.labels() if labels is None else labels)
        self._lengths = store.ranges[..., 1].reshape(-1)
        url = store.places[0]
        with _threads_of_torch_kept():
            self.loader = _image_loader(url, cheap_fingerprint(url), batch_size, size, threads)

    @property
    def dataset(self) -> "FfcvImages":
        """Itself: where a `DataLoader` keeps what was read and what could not be."""
        return self

    @property
    def unreadable(self) -> list[int]:
        """Ids of the samples skipped so far, ascending."""
        return self.slowly.unreadable

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        from shardsieve.loaders.ffcv_iterator import open_batches

        batches, weights = [], []
        for ids in BatchSampler(self.sampler, self.batch_size, drop_last=False):
            # The sampler fills up with padding where another rank has a sample more.
            batches.append(np.array([one for one in ids if one >= 0], dtype=np.uint64))
            weights.append([getattr(one, "weight", 1.0) for one in ids if one >= 0])
        with _threads_of_torch_kept():
            fields = open_batches(self.loader, batches)
        try:
            for rows, own, (images,) in zip(batches, weights, fields, strict=True):
                yield self._batch(rows.astype(np.int64), torch.tensor(own), images)
        finally:
            fields.close()

    def _batch(self, rows: NDArray[np.int64], weights: torch.Tensor, images: torch.Tensor) -> Batch:
        kept = int(self._lengths[rows].sum())
        self.ledger.add(Counts(kept=kept, read=kept, requests=len(rows)))
        # FFCV fills the same memory again some batches later; a GPU is sent pinned memory.
        how: Any = {"dtype": images.dtype, "pin_memory": torch.cuda.is_available()}
        own, ids = torch.empty(images.shape, **how).copy_(images), torch.from_numpy(rows)
        own, ids, weights = self._completed(own, ids, weights)
        batch = Batch((own, self._labels[ids]))
        batch.ids, batch.weights = ids, weights
        return batch

    def _completed(
        self, images: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Decode black images again; leave out those that cannot be read.

        What stands in for a batch of which nothing can be read has weight 0.
        """
        good = torch.ones(len(ids), dtype=torch.bool)
        for row in _black(images):
            image, _, found, *_ = self.slowly[int(ids[row])]
            good[row], images[row] = found == ids[row], image
        if good.all():
            return images, ids, weights
        if not good.any():
            return images[-1:], torch.tensor([found]), torch.zeros(1)
        return images[good], ids[good], weights[good]


@contextmanager
def _threads_of_torch_kept() -> Iterator[None]:
    """Undo that FFCV gives torch, which trains here, as few threads as it decodes with."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _black(images: torch.Tensor) -> list[int]:
    """Return which images are black, of those that are black in the middle."""
    middle = images[:, :, images.shape[2] // 2]
    rows = (middle.flatten(1).amax(dim=1) == 0).nonzero()[:, 0]
    found: list[int] = rows[images[rows].flatten(1).amax(dim=1) == 0].tolist()
    return found


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


def decoding_threads(asked: int) -> int:
    """Return how many threads FFCV decodes with: numba has no more than it may run on cores."""
    import numba

    return min(max(asked, 1), int(numba.config.NUMBA_NUM_THREADS))


@lru_cache(maxsize=4)
def _image_loader(path: str, fingerprint: str, batch_size: int, size: int, threads: int) -> Any:
    """Return the compiled loader of a file's images; compiling takes seconds, so it is kept."""
    need_ffcv()
    from ffcv.transforms import ToTensor, ToTorchImage

    from shardsieve.loaders.ffcv_decoder import SquareDecoder
    from shardsieve.loaders.ffcv_lean import LeanLoader

    beton = read_beton(path)
    name = image_field(beton)
    pipelines: dict[str, Any] = dict.fromkeys(beton.names)
    # FFCV fills a batch and gives one away besides those that it is ahead.
    decoder = SquareDecoder(size, batch_size * (_AHEAD + 2))
    pipelines[name] = [decoder, ToTensor(), ToTorchImage()]
    how: dict[str, Any] = {"batches_ahead": _AHEAD, "drop_last": False}
    how["num_workers"] = decoding_threads(threads)
    return LeanLoader(path, batch_size=batch_size, pipelines=pipelines, **how)
