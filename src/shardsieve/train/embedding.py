"""One embedding pass: embeddings and signals into the store, shard by shard, resumable."""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from shardsieve._errors import ShardsieveError, StoreMismatchError, UnreadableSampleError
from shardsieve.cost import NO_COST, Cost
from shardsieve.loaders.dataset import ShardDataset
from shardsieve.store.contents import write_contents
from shardsieve.store.damage import read_part
from shardsieve.store.layout import checked_name, told_about_disk
from shardsieve.store.store import Store
from shardsieve.train.config import check_normalise
from shardsieve.train.images import Batch, ImageDecoder, collate, fixed_size, normalised
from shardsieve.train.labels import readable
from shardsieve.train.launch import on_main
from shardsieve.train.machines import on_all
from shardsieve.train.measures import STORED, measure
from shardsieve.train.nets import answer_to_black, embed_and_classify, embed_batch

_HALF = float(np.finfo(np.float16).max)
_CURE = "has the network's training diverged? Take a lower learning rate or another network"
# Signals that need no label.
_UNLABELLED = [name == "entropy" for name in STORED]


class Block(NamedTuple):
    """What a pass makes of one shard's rows.

    Attributes:
        points: float32 (n, d), embeddings; float16 when they are written.
        signals: float32 (n, K, F), `STORED` by network; K is 0 without classifiers.
    """

    points: NDArray[Any]
    signals: NDArray[np.float32]


def weights_fingerprint(*models: nn.Module) -> str:
    """Return the digest of the weights of one model or more."""
    digest = hashlib.blake2b(digest_size=16)
    for model in models:
        for name, value in sorted(model.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def embed(
    store: Store,
    network: nn.Module,
    *,
    name: str,
    classifiers: Sequence[nn.Module] = (),
    size: int | None = None,
    channels: int | None = None,
    normalise: str = "half",
    pseudo_labels: str | None = None,
    seeds: str | None = None,
    cost: Mapping[str, Any] | None = None,
    batch_size: int = 256,
    max_unreadable: int = 0,
    workers: int = 0,
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
        name: Of the embedding, and of the signals.
        classifiers: Networks whose outputs are the store's classes, or the first of them. What they
            say about every sample, read and decoded once for all, goes to `signal/<name>`. If
            `network` is among them, its trunk runs once.
        size: Pixels per side; None takes the first sample's.
        channels: 3 or 1; None likewise.
        normalise: As in `normalised`.
        pseudo_labels: Name of those that the classifiers learned; None of the store's labels.
        seeds: Digest of the samples that they were trained on, stored with what they say.
        cost: What their training took, stored with the embedding; None if nobody knows.
        max_unreadable: Images to skip when they cannot be read; their rows stay NaN.
        batch_size: Images per forward pass.
        workers: Processes per rank that read and decode; 0 does so between the forward passes.
        accelerator: From `make_accelerator`; its precision is that of the forward passes.
        progress: Called with (shards done, shards in all) of this rank.

    Returns:
        Samples that all ranks embedded now.

    Raises:
        ValueError: If images of one channel are to be normalised as ImageNet's.
        StoreMismatchError: If the name holds embeddings of other weights, size or normalisation.
        UnreadableSampleError: If an image cannot be read, naming shard and key.
        ShardsieveError: If embeddings are not finite, or most of a shard too large for float16.
    """
    checked_name(name)  # on every rank, before one makes the arrays
    size, channels = fixed_size(store, size, channels)
    check_normalise(normalise, channels)
    how: dict[str, Any] = {"max_unreadable": max_unreadable, "pseudo_labels": pseudo_labels}
    data = readable(store, ImageDecoder(size, channels), **how)
    pass_ = _Pass(network, classifiers, accelerator, normalise)
    known = {"seeds_digest": seeds, "network_cost": cost}
    on_main(accelerator, lambda: _make_arrays(store, name, pass_, size, channels, known))
    arrays = on_all(accelerator, lambda: _checked_arrays(store, name, pass_, size))
    begin = time.perf_counter()
    mine = range(accelerator.process_index, store.num_shards, accelerator.num_processes)
    rows = {shard: int(store.samples[shard]) for shard in mine}
    todo = [shard for shard in mine if rows[shard] and _is_to_do(arrays, shard, rows[shard])]
    ids = {shard: _ids(store, shard) for shard in todo}
    batches = iter(_batches(data, ids.values(), batch_size, workers, accelerator.device))
    for done, shard in enumerate(todo, start=1 + len(mine) - len(todo)):
        block = pass_.rows(ids[shard], islice(batches, -(-rows[shard] // batch_size)))
        with told_about_disk(store.path):
            for array, values in zip(arrays, block, strict=False):
                array[shard, : rows[shard]] = values
        if progress:
            progress(done, len(mine))
    embedded = sum(rows[shard] for shard in todo)
    spent = Cost(forward=embedded * pass_.networks, nbytes=data.ledger.total.kept)
    _add_cost(store, arrays[0], spent, begin, accelerator)
    return sum(gather_object([embedded]))


def _is_to_do(arrays: list[Any], shard: int, rows: int) -> bool:
    """Return whether a shard is still to be written to one of the arrays.

    A chunk is written at once or not at all: any number in it says that it is done.
    """
    return any(np.isnan(read_part(array, (shard, slice(rows)))).all() for array in arrays)


def _ids(store: Store, shard: int) -> range:
    first = shard * store.rows_per_shard
    return range(first, first + int(store.samples[shard]))


def _batches(
    data: ShardDataset, shards: Iterable[range], batch_size: int, workers: int, device: torch.device
) -> DataLoader[Any]:
    """Return the loader of the shards' batches, in order; none holds samples of two shards."""
    cut = [ids[at : at + batch_size] for ids in shards for at in range(0, len(ids), batch_size)]
    return DataLoader(
        data,
        batch_sampler=cut,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )


def _add_cost(store: Store, array: Any, mine: Cost, begin: float, accelerator: Accelerator) -> None:
    """Add what this start of a pass took to the array's `cost`; every rank must call it."""
    everywhere = sum(map(Cost.from_dict, gather_object([mine.to_dict()])), NO_COST)
    if accelerator.is_main_process and everywhere.forward:
        spent = Cost.timed(time.perf_counter() - begin, accelerator.num_processes)
        before = array.attrs.get("cost")
        spent += Cost.from_dict(before) if before else NO_COST
        with told_about_disk(store.path):
            array.attrs["cost"] = (spent + everywhere).to_dict()
            write_contents(store.group)  # of a start that was killed it may lack the arrays


class _Pass:
    """The forward pass over batches of samples."""

    def __init__(
        self,
        network: nn.Module,
        classifiers: Sequence[nn.Module],
        accelerator: Accelerator,
        normalise: str,
    ) -> None:
        self.device, self.autocast = accelerator.device, accelerator.autocast
        self.normalise = normalise
        self.network = network.to(self.device).eval()
        self.classifiers = [classifier.to(self.device).eval() for classifier in classifiers]

    @property
    def networks(self) -> int:
        """Networks that every sample is sent through."""
        return len(self.classifiers) + all(one is not self.network for one in self.classifiers)

    @torch.inference_mode()
    def dim(self, size: int, channels: int) -> int:
        """Return d, from a forward pass over nothing in particular."""
        call = partial(embed_batch, self.network)
        return int(answer_to_black(call, (channels, size, size), self.device).shape[1])

    @torch.inference_mode()
    def rows(self, ids: range, batches: Iterable[Batch]) -> Block:
        """Return what there is to write of a shard's ids, NaN where unreadable."""
        table: Block | None = None
        for batch in batches:
            at = batch.ids.numpy() - ids.start
            # What stands in for a batch that cannot be read may come from another shard.
            real = (at >= 0) & (at < len(ids))
            if not real.any():
                continue
            block = self._block(batch)
            if not np.isfinite(block.points[real]).all():
                raise ShardsieveError(
                    f"embeddings must be finite, {_of(ids.start)} are not; {_CURE}"
                )
            if table is None:
                shapes = [(len(ids), *part.shape[1:]) for part in block]
                table = Block(*(np.full(shape, np.nan, "f4") for shape in shapes))
            table.points[at[real]] = block.points[real]
            table.signals[at[real]] = block.signals[real]
        if table is None:
            raise UnreadableSampleError(
                f"no image of the shard with sample id {ids.start} can be read; check the shards"
            )
        return table._replace(points=_halved(table.points, ids.start))

    def _block(self, batch: Batch) -> Block:
        images = normalised(batch.images.to(self.device, non_blocking=True), self.normalise)
        with self.autocast():
            points, said = self._outputs(images)
        labels = batch.labels.to(self.device)
        marks = [_labelled_signals(logits, labels) for logits in said]
        signals = np.stack(marks, axis=1) if marks else np.zeros((len(labels), 0, 0), np.float32)
        return Block(points.cpu().numpy(), signals)

    def _outputs(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the embeddings, and the logits of every classifier, float32."""
        points, said = None, []
        for classifier in self.classifiers:
            if classifier is self.network:
                points, logits = embed_and_classify(self.network, images)
            else:
                logits = classifier(images).float()
            said.append(logits)
        return embed_batch(self.network, images) if points is None else points, said


def _halved(points: NDArray[np.float32], first: int) -> NDArray[np.float16]:
    """Return a shard's embeddings as they are stored; what few exceed float16 is cut off.

    Raises:
        ShardsieveError: If more than half of the rows do: little of them would be left.
    """
    largest = np.abs(points).max(axis=1)
    if (largest > _HALF).mean() > 0.5:
        raise ShardsieveError(
            f"embeddings must be at most {_HALF:.0f} to be stored as float16, most of {_of(first)} "
            f"are not, up to {np.nanmax(largest):.3g}; {_CURE}"
        )
    return points.clip(-_HALF, _HALF).astype(np.float16)


def _of(first: int) -> str:
    return f"those of the shard with sample id {first}"


def _labelled_signals(logits: Tensor, labels: Tensor) -> NDArray[np.float32]:
    """Return the `STORED` signals (n, F); without a label that is known only what needs none."""
    known = (labels >= 0) & (labels < logits.shape[1])
    measured = measure(STORED, logits, labels.where(known, 0))[1]
    signals: NDArray[np.float32] = measured.cpu().numpy()
    unknown = (~known).cpu().numpy()
    signals[unknown] = np.where(_UNLABELLED, signals[unknown], np.nan)
    return signals


def _make_arrays(
    store: Store, name: str, pass_: _Pass, size: int, channels: int, known: Mapping[str, Any]
) -> None:
    of_run = {key: value for key, value in known.items() if value is not None}
    arrays = [store.embedding_array(name, pass_.dim(size, channels))]
    of_run["normalise"] = pass_.normalise
    made = [{"weights": _made(size, pass_.network), **of_run}]
    if pass_.classifiers:
        arrays.append(store.signal_array(name, len(pass_.classifiers), STORED))
        made.append({"weights": _made(size, *pass_.classifiers), **of_run})
    for array, marks in zip(arrays, made, strict=True):
        # Without a mark the array is new, or its making was cut short: nothing is in it.
        if "weights" not in array.attrs:
            with told_about_disk(store.path):
                array.update_attributes(marks)


def _checked_arrays(store: Store, name: str, pass_: _Pass, size: int) -> list[Any]:
    wanted = [(store.embedding_array(name), _made(size, pass_.network))]
    if pass_.classifiers:
        wanted.append((store.signal_array(name), _made(size, *pass_.classifiers)))
    for array, made in wanted:
        # Earlier releases do not say it: a run had its own, other networks this.
        earlier = pass_.normalise if pass_.classifiers else "half"
        same = array.attrs.get("normalise", earlier) == pass_.normalise
        if array.attrs.get("weights") != made or not same:
            raise StoreMismatchError(
                f"embedding {name!r} of {store.path} was made with other weights or from images of "
                "another size or normalisation; choose another name, or delete it: `shardsieve "
                f"forget --store {store.path} --embedding {name}`"
            )
    return [array for array, _ in wanted]


def _made(size: int, *models: nn.Module) -> str:
    return f"{weights_fingerprint(*models)} at {size} pixels"
