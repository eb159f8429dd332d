"""Who iterates the sampler: torch's loader alone, or Accelerate's split of it.

A torch sampler is not told the batch size, nor that `accelerator.prepare` will deal its batches out
over ranks, nor how many batches the loop has been given. All three decide where an epoch stands, so
the sampler looks at the frames that ask it for ids. Nothing is patched; `batch_size=`, `world=` and
`steps_done=` say the same things explicitly.
"""

import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from accelerate.data_loader import (
    BatchSamplerShard,
    DataLoaderDispatcher,
    DataLoaderShard,
    SkipBatchSampler,
)
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter
from torch.utils.data.distributed import DistributedSampler

from shardsieve._errors import ShardsieveError

_DEPTH = 24
_LIBRARIES = ("torch.", "torchdata.", "accelerate.")
_PROTOCOL = ("__iter__", "__next__", "__len__")


class HandedOut:
    """Counts the batches of one pass that the loop has been given.

    Workers ask for ids ahead of the loop, and Accelerate's loader holds one batch back.

    Attributes:
        begins: Whether the loader begins a pass, and has set no count back yet.
        skipped: Batches before the first one, which Accelerate's `skip_first_batches` left out.
    """

    def __init__(self, iterator: _BaseDataLoaderIter, *, begins: bool = False) -> None:
        self.begins = begins
        # Its attributes, not itself: that would keep its workers alive.
        self._attributes = vars(iterator)
        weakref.finalize(iterator, self._keep_count_alone)
        self.workers = int(getattr(iterator, "_num_workers", 0))
        self.shard: weakref.ref[Any] | None = None
        self.skipped = 0

    def count(self, *, held_back: bool = False) -> int:
        """Return the batches handed out or left out so far, also one that is held back or not."""
        taken = int(self._attributes.get("_num_yielded", 0))
        shard = self.shard() if self.shard is not None else None
        less = shard is not None and not shard.end_of_dataloader and not held_back
        return max(taken - less, 0) + self.skipped

    def place(self) -> int:
        """Return `count()`, where these are the first batches of the pass.

        Raises:
            ShardsieveError: If a loader with `in_order=False` may have given later ones before.
        """
        told = self._told()
        unordered = not told.get("_in_order", True) and told["_num_yielded"]
        # Whether workers run says nothing: those of a loop that was left do not. At the end of a
        # pass the loader waits for no batch; what is outstanding then nobody had samples for.
        if unordered and told["_tasks_outstanding"] and told["_rcvd_idx"] < told["_send_idx"]:
            raise ShardsieveError(
                "a loader with in_order=False gives batches in any order, so that no place in the "
                "epoch says which were given; leave it out, or take states between epochs"
            )
        return self.count()

    def refuse_to_follow(self, earlier: "HandedOut | None") -> None:
        """Refuse an iterator that begins another pass of the sampler before it has ended one.

        Its batches are then of two epochs at a time, and its count is of both.
        """
        if earlier is None or self.begins or earlier._attributes is not self._attributes:
            return
        if self._attributes.get("_num_yielded") or self._attributes.get("_send_idx"):
            raise ShardsieveError(
                "the loader begins an epoch before the loop has ended the one before, as timm's "
                "MultiEpochsDataLoader does; take DataLoader(persistent_workers=True), whose "
                "workers stay as well"
            )

    def __getstate__(self) -> dict[str, Any]:
        """A copy stays at this count: its sampler is not the one that the loop asks."""
        told = self._told() | {"_num_yielded": self.count()}
        held = {"workers": self.workers, "begins": self.begins, "shard": None, "skipped": 0}
        return {"_attributes": told, **held}

    def _keep_count_alone(self) -> None:
        """Outlive a loop that was left, but not with its queues, samples and open shards.

        Among them is the sampler's own iterator, which holds this: a cycle.
        """
        self._attributes = self._told()

    def _told(self) -> dict[str, Any]:
        names = ("_num_yielded", "_in_order", "_tasks_outstanding", "_rcvd_idx", "_send_idx")
        return {name: self._attributes[name] for name in names if name in self._attributes}


@dataclass(frozen=True, slots=True)
class Asking:
    """What the asking loader will do with the ids.

    Attributes:
        batch_size: Of one rank, 1 for a loader that does not batch; None when none is to be seen.
        dealt_over: Ranks over which Accelerate deals whole batches, 1 when it does not.
        rank: This process' number among those ranks.
        handed_out: Counts batches, where a torch loader asks.
        drops_last: Whether it leaves out a last batch that is not whole.
        passes_over: First batches that torchdata's loader leaves out, of a state that was loaded;
            None where another loader asks.
        number: The pass, as Accelerate's loader counts; its `set_epoch` is not handed on where
            `skip_first_batches` stands before batches that are dealt out.
    """

    batch_size: int | None = None
    dealt_over: int = 1
    rank: int = 0
    handed_out: HandedOut | None = None
    drops_last: bool = False
    passes_over: int | None = None
    number: int | None = None

    def refuse_another_count(self, start: int, *, policy: bool) -> None:
        """Refuse a loader that leaves out first batches which the sampler has left out already.

        Over several processes Accelerate's split stands between torchdata and the sampler: its
        state is a number of batches, and holds no policy.

        Args:
            start: Where the sampler's own state lets the pass begin.
            policy: Whether the sampler has one.
        """
        skipped = 0 if self.handed_out is None else self.handed_out.skipped
        if start and skipped:
            raise ShardsieveError(
                f"skip_first_batches leaves out {skipped} batches, and the sampler's own state has "
                "left out what was trained on already; leave it out"
            )
        if self.dealt_over == 1 or self.passes_over is None:
            return
        cure = "leave it out and give the sampler to accelerator.register_for_checkpointing"
        if policy:
            raise ShardsieveError(
                f"use_stateful_dataloader saves no policy over several processes; {cure}"
            )
        if start and self.passes_over:
            raise ShardsieveError(
                f"use_stateful_dataloader passes over {self.passes_over} batches of a process "
                f"that the sampler's own state has passed over already; {cure}"
            )


def caller_of() -> Any:
    """Return the `self` of the method that called the caller of this function, if any."""
    return _self_of(sys._getframe(2))


def numbered_by_loader() -> bool:
    """Return whether a loader of Accelerate or Fabric called the caller for a pass that it begins.

    It numbers the passes since it was made; a user's own call of its `set_epoch` is another thing.
    """
    called = sys._getframe(2)
    above = called.f_back
    if above is None or above.f_code.co_name != "__iter__":
        return False
    loader = _self_of(above)
    if isinstance(loader, DataLoaderShard):
        return _self_of(called) is loader
    return type(loader).__name__ == "_FabricDataLoader"  # of Lightning, which need not be there


def planned_samples(loader: Any) -> int | None:
    """Return how many samples the sampler inside a loader will give, if it says so."""
    inside: Any = loader
    while inside is not None:
        planned = getattr(inside, "planned_samples", None)
        if planned is not None:
            return int(planned)
        outer, inside = inside, getattr(inside, "batch_sampler", None)
        inside = getattr(outer, "sampler", None) if inside is None else inside
    return None


def called_by(library: str) -> bool:
    """Return whether a library called the caller, as Accelerate's `save_state` does."""
    return str(sys._getframe(2).f_globals.get("__name__")).startswith(f"{library}.")


def who_asks(sampler: Any) -> Asking:
    """Return what the frames above a sampler's method say.

    Raises:
        ShardsieveError: If somebody would split the samples again, or read them all on rank 0.
    """
    batch_size, dealt_over, rank, handed_out, drops_last = None, 1, 0, None, False
    passes_over, skipped, number = None, 0, None
    inside = [sampler]  # and what hands it on to a loader
    for owner, method in _owners():
        _refuse_second_split(owner)
        if isinstance(owner, BatchSamplerShard):
            batch_size = owner.batch_sampler.batch_size
            batch_size //= owner.num_processes if owner.split_batches else 1
            dealt_over, rank = owner.num_processes, owner.process_index
        elif isinstance(owner, SkipBatchSampler):
            skipped = owner.skip_batches
        elif isinstance(owner, _BaseDataLoaderIter):
            if handed_out is None:
                handed_out = HandedOut(owner, begins=method == "_reset")
            passes_over = getattr(owner, "_sampler_iter_yielded", None)
        elif type(owner) is DataLoaderShard and handed_out is not None:
            handed_out.shard = weakref.ref(owner)
            number = getattr(owner, "iteration", None)
        elif batch_size is None and any(getattr(owner, "sampler", None) is s for s in inside):
            batch_size = _batch_size_of(owner)
            drops_last = bool(getattr(owner, "drop_last", False))
        inside.append(owner)
    if handed_out is not None:
        handed_out.skipped = skipped
    return Asking(batch_size, dealt_over, rank, handed_out, drops_last, passes_over, number)


def _batch_size_of(owner: Any) -> int | None:
    if not hasattr(owner, "batch_size"):
        return None  # torchdata asks before it has one
    unbatched = owner.batch_size is None and isinstance(owner, DataLoader)
    return 1 if unbatched else owner.batch_size


def _owners() -> Iterator[tuple[Any, str]]:
    """Yield `self` and name of the methods that lead from a loader to the sampler's."""
    frame: Any = sys._getframe(3)
    for _ in range(_DEPTH):
        if frame is None:
            return
        owner = _self_of(frame)
        if owner is not None:
            yield owner, frame.f_code.co_name
        frame = frame.f_back


def _self_of(frame: Any) -> Any:
    """Return the `self` of a library's method, or of a method by which things are iterated.

    Others are not looked at. Python keeps a copy of the variables of a frame that was: in a
    training loop it would keep the last batch, or a loader and its workers, until the loop returns.
    """
    library = str(frame.f_globals.get("__name__")).startswith(_LIBRARIES)
    if library or frame.f_code.co_name in _PROTOCOL:
        return frame.f_locals.get("self")
    return None


def _refuse_second_split(owner: Any) -> None:
    if isinstance(owner, DistributedSampler):
        raise ShardsieveError(
            f"{type(owner).__name__} would split the kept samples over the ranks again: "
            "PrunedShardSampler does it already; give it to the DataLoader as it is "
            "(in Lightning: Trainer(use_distributed_sampler=False))"
        )
    if type(owner) is DataLoaderDispatcher:
        raise ShardsieveError(
            "dispatch_batches=True reads every sample on rank 0; leave it out, so that each rank "
            "reads its own"
        )
