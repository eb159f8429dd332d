"""One embedding pass: float16 rows into the store, shard by shard, resumable."""

import hashlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import nn

from shardsieve._errors import StoreMismatchError, UnreadableSampleError
from shardsieve.cost import NO_COST, Cost
from shardsieve.loaders.dataset import ShardDataset
from shardsieve.store.layout import told_about_disk
from shardsieve.store.store import Store
from shardsieve.train.images import ImageDecoder, collate, fixed_size, normalised
from shardsieve.train.loading import readable
from shardsieve.train.nets import embed_batch

Half = NDArray[np.float16]


def weights_fingerprint(model: nn.Module) -> str:
    """Return the digest of a model's weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def embed(
    store: Store,
    network: nn.Module,
    *,
    name: str,
    size: int | None = None,
    channels: int | None = None,
    normalise: str = "half",
    batch_size: int = 256,
    max_unreadable: int = 0,
    accelerator: Accelerator,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the embedding of every sample to `embedding/<name>`; rank r takes every world-th shard.

    Images are scaled and cut in the centre, without augmentation. A shard that is written is done:
    started again, only the others are embedded. What it took is added up in the array's `cost`; of
    a start that was killed it is lost.

    Args:
        store: Open for writing.
        network: As in `embed_batch`.
        name: Of the embedding.
        size: Pixels per side; None takes the first sample's.
        channels: 3 or 1; None likewise.
        normalise: As in `normalised`.
        max_unreadable: Images to skip when they cannot be read; their rows stay NaN.
        batch_size: Images per forward pass.
        accelerator: From `make_accelerator`.
        progress: Called with (shards done, shards in all) of this rank.

    Returns:
        Samples that this rank embedded now.

    Raises:
        StoreMismatchError: If the name holds embeddings of other weights or another size.
        UnreadableSampleError: If an image cannot be read, naming shard and key.
    """
    guessed = fixed_size(store)
    size, channels = size or guessed[0], channels or guessed[1]
    data = readable(store, ImageDecoder(size, channels), max_unreadable)
    pass_ = _Pass(data, network, batch_size, accelerator.device, normalise)
    made = f"{weights_fingerprint(network)} at {size} pixels"
    if accelerator.is_main_process and name not in store.embeddings:
        dim = pass_.dim(size, channels)
        store.embedding_array(name, dim).attrs["weights"] = made
    accelerator.wait_for_everyone()
    array = store.embedding_array(name)
    if array.attrs.get("weights") != made:
        raise StoreMismatchError(
            f"embedding {name!r} of {store.path} was made with other weights or another image "
            "size; choose another name"
        )
    begin = time.perf_counter()
    mine = range(accelerator.process_index, store.num_shards, accelerator.num_processes)
    embedded = 0
    for done, shard in enumerate(mine, start=1):
        rows = int(store.samples[shard])
        # A chunk is written at once or not at all: any number in it says that it is done.
        if np.isnan(np.asarray(array[shard, :rows])).all():
            block = pass_.rows(shard * store.rows_per_shard + np.arange(rows))
            with told_about_disk(store.path):
                array[shard, :rows] = block
            embedded += rows
        if progress:
            progress(done, len(mine))
    all_embedded = sum(gather_object([embedded]))
    if accelerator.is_main_process and all_embedded:
        seconds = time.perf_counter() - begin
        spent = Cost(all_embedded, 0, seconds, seconds * accelerator.num_processes)
        before: Any = array.attrs.get("cost")
        spent += Cost.from_dict(before) if before else NO_COST
        array.attrs["cost"] = spent.to_dict()
    accelerator.wait_for_everyone()
    return embedded


class _Pass:
    """The forward pass over samples by id."""

    def __init__(
        self,
        data: ShardDataset,
        network: nn.Module,
        batch_size: int,
        device: torch.device,
        normalise: str,
    ) -> None:
        self.data, self.batch_size, self.device = data, batch_size, device
        self.normalise = normalise
        self.network = network.to(device).eval()

    @torch.inference_mode()
    def dim(self, size: int, channels: int) -> int:
        """Return d, from a forward pass over nothing in particular."""
        blank = torch.zeros((1, channels, size, size), device=self.device)
        return int(embed_batch(self.network, blank).shape[1])

    @torch.inference_mode()
    def rows(self, ids: NDArray[np.int64]) -> Half:
        """Return the embeddings of these ascending ids, float16 (n, d), NaN where unreadable."""
        table: Half | None = None
        for start in range(0, len(ids), self.batch_size):
            samples = self.data.__getitems__(ids[start : start + self.batch_size].tolist())
            if not samples:
                continue
            batch = collate(samples)
            images = normalised(batch.images.to(self.device), self.normalise)
            block = embed_batch(self.network, images).half().cpu().numpy()
            if table is None:
                table = np.full((len(ids), block.shape[1]), np.nan, dtype=np.float16)
            table[np.searchsorted(ids, batch.ids.numpy())] = block
        if table is None:
            raise UnreadableSampleError(
                f"no image of the shard with sample id {ids[0]} can be read; check the shards"
            )
        return table
