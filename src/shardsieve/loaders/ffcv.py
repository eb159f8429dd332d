"""`prune_loader`: an existing FFCV loader that reads kept samples only. FFCV is not changed."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray

from shardsieve._errors import MissingDependencyError, ShardsieveError, StoreMismatchError
from shardsieve.io.source import cheap_fingerprint
from shardsieve.keepset import KeepSet, keep_set_of
from shardsieve.loaders.ffcv_order import LoaderOrder
from shardsieve.loaders.pages import ordered_rows
from shardsieve.loaders.planned import checked_epoch, refuse_another_plan
from shardsieve.plan import TAILS, Steps, World, checked_world
from shardsieve.scores.inputs import one_of
from shardsieve.store.store import Store

ORDERS = ("loader", "pages")
_ITERATING = ("__iter__", "next_traversal_order")
# What scripts ask of an FFCV loader or set on it, and what of a pruned one to use in its place.
_ELSEWHERE = {
    "batch_size": "loader.batch_size decides it",
    "indices": "set_keep_set says what is kept",
    "reader": "len(indices) samples are kept, loader.reader is that of all",
    "dataset": "len(indices) samples are kept",
    "next_epoch": "set_epoch says it, epoch tells it",
    "next_traversal_order": "rows(epoch) tells it, and batch.ids those of a batch",
    "first_traversal_order": "rows(0) tells it",
    "traversal_order": "the one of loader is asked, change that before pruning",
    "filter": "filter the loader before pruning",
}
_NO_FFCV = (
    "FFCV is not installed; run `apt-get install g++ pkg-config libopencv-dev libturbojpeg0-dev` "
    "and `pip install 'shardsieve[ffcv]'`, or tools/setup.sh"
)


class Batch(tuple[Any, ...]):
    """The fields of one FFCV batch, in FFCV's order, with what shardsieve knows about the samples.

    `images, labels = batch` works as with FFCV. The tensors are FFCV's: they are reused some
    batches later, copy what you keep.

    Attributes:
        ids: int64 (b,), sample ids: FFCV rows.
        weights: float32 (b,), loss weights; ones unless `set_keep_set` was given others, and 0 for
            a sample that only fills up a batch.
    """

    ids: torch.Tensor
    weights: torch.Tensor

    def to(self, *args: Any, **kwargs: Any) -> "Batch":
        """Return it with all tensors moved; without, Lightning would lose ids and weights."""
        moved = Batch(x.to(*args, **kwargs) if isinstance(x, torch.Tensor) else x for x in self)
        moved.ids = self.ids.to(*args, **kwargs)
        moved.weights = self.weights.to(*args, **kwargs)
        return moved


def prune_loader(
    loader: Any,
    store: Store,
    *,
    keep_fraction: float = 1.0,
    score: str | None = None,
    rule: str = "top",
    keep_set: KeepSet | str | None = None,
    weights: ArrayLike | None = None,
    seed: int | None = None,
    order: str = "loader",
    window: int | None = None,
    tail: str | None = None,
    world: World | None = None,
    **selection: Any,
) -> "PrunedLoader":
    """Return a loader that gives the batches of an existing `ffcv.loader.Loader` for kept samples.

    Everything of the given loader stays: pipelines, custom fields, caching, threads, compiled code.
    Its memory manager's dictionaries of samples are let go, and arrays answer in their place; a
    `LeanLoader` never builds them.
    The `indices` of its traversal order are intersected with the keep set. A distributed loader's
    ranks read every kept row once, in equally many steps.

    Args:
        loader: An `ffcv.loader.Loader`.
        store: The store of its file.
        keep_fraction: In `(0, 1]`.
        score: Name of a stored score.
        rule: As in `select`.
        keep_set: Use this one, or the stored one of this name, instead of selecting.
        weights: float (n,), a loss weight per sample of the store in id order; the keep set's own,
            or ones, if left out.
        seed: Of the order, and of `rule="random"`. Left out: the loader's own seed for its own
            order, else 0, as over ranks of which FFCV does not know.
        order: `loader` (the order the loader itself would use for these rows: the same batches as
            FFCV's `indices=`; QUASI_RANDOM has an order of its own, which is a function of the
            epoch) or `pages` (few pages at a time, also for a distributed loader).
        window: Pages shuffled together by `order="pages"`; 0 is file order. Left out: room for
            2048 kept rows, at least 16 pages.
        tail: As in `Steps`. Left out: `drop` where the loader has `drop_last`, else `uneven`.
        world: Left out: the rank of `torch.distributed` for a distributed loader, else one rank.
        **selection: Further arguments of `select`: `threshold`, `hard_cutoff`, `drop_missing`...

    Raises:
        MissingDependencyError: If FFCV is not installed.
        ShardsieveError: If the loader is of a class that iterates in its own way.
        StoreMismatchError: If store, keep set and file do not belong together.
        TypeError: If `loader` is no FFCV loader, or a rule is given beside a keep set.
        ValueError: If an argument is out of range.
    """
    if not isinstance(loader, need_ffcv()):
        raise TypeError(f"loader must be an ffcv.loader.Loader, got {type(loader).__name__}")
    _refuse_own_iteration(loader)
    one_of("order", order, ORDERS)
    if tail is not None:
        one_of("tail", tail, TAILS)
    if window is not None and window < 0:
        raise ValueError(f"window must be at least 0, got {window}")
    _check_same_file(loader, store)
    from shardsieve.loaders.ffcv_lean import release_tables

    release_tables(loader)
    how = {"keep_fraction": keep_fraction, "score": score, "rule": rule, "seed": seed or 0}
    kept = keep_set_of(store, keep_set, **how, **selection)
    world = checked_world(world) or _world(loader)
    return PrunedLoader(
        loader,
        store,
        kept,
        weights=weights,
        seed=_seed(loader, order, world) if seed is None else seed,
        order=order,
        window=window,
        tail=tail or ("drop" if loader.drop_last else "uneven"),
        world=world,
    )


class _Pass(NamedTuple):
    """What a pass was begun with; another keep set is for the one after it.

    Attributes:
        steps: From where it started.
        whole: From the epoch's beginning.
        plan: What states of it name.
        weights: A loss weight per sample of the store, if there are any.
    """

    steps: Steps
    whole: Steps
    plan: str
    weights: NDArray[np.float32] | None


class PrunedLoader:
    """Iterates `Batch`es of kept samples; made by `prune_loader`.

    Passes count epochs as FFCV does: each starts the next one unless `set_epoch` chose another. But
    a pass begins with its first batch: some trainers make iterators that they do not use.

    Attributes:
        loader: The FFCV loader behind it.
        keep_set: What the next pass keeps, before it is intersected with the loader's indices.
        epoch: Of the running pass, or of the next one before the first.
    """

    def __init__(
        self,
        loader: Any,
        store: Store,
        keep_set: KeepSet,
        *,
        weights: ArrayLike | None,
        seed: int,
        order: str,
        window: int | None,
        tail: str,
        world: World,
    ) -> None:
        self.loader, self.store, self.tail, self.world = loader, store, tail, world
        self.seed, self.order, self.window = seed, order, window
        self.epoch = 0
        self._start = self._yielded = 0
        self._begun = self._ended = False
        self._pass: _Pass | None = None
        # FFCV compiles per integer type of the ids.
        self._dtype = np.asarray(loader.first_traversal_order).dtype
        self._own = LoaderOrder(loader, seed) if order == "loader" else None
        self.set_keep_set(keep_set, weights=weights)

    def set_keep_set(self, keep_set: KeepSet | str, *, weights: ArrayLike | None = None) -> None:
        """Keep these samples from the next pass on; nothing is rebuilt or compiled.

        Args:
            keep_set: Of the same store, or the name of one that is stored there.
            weights: float (n,), a loss weight per sample of the store in id order; the keep set's
                own, or ones, if left out.

        Raises:
            StoreMismatchError: If the keep set is another store's.
        """
        keep_set = keep_set_of(self.store, keep_set)
        values = None if weights is None else np.asarray(weights, dtype=np.float32)
        if values is None and keep_set.weights is not None:
            values = np.ones(len(self.store), dtype=np.float32)
            values[self.store.rows(keep_set.ids())] = keep_set.weights
        if values is not None and values.shape != (len(self.store),):
            raise ValueError(f"weights must have shape ({len(self.store)},), got {values.shape}")
        self.keep_set, self._weights = keep_set, values
        self._is_kept = np.zeros(len(self.store), dtype=bool)
        self._is_kept[keep_set.ids()] = True
        # FFCV's orders have rows of their own, which a user may have changed; it reads those.
        own = np.asarray(getattr(self.loader.traversal_order, "indices", self.loader.indices))
        self._kept: NDArray[np.generic] = own[self._is_kept[own]]

    @property
    def batch_size(self) -> int:
        """Samples of a whole batch on one rank: FFCV's."""
        return int(self.loader.batch_size)

    @property
    def indices(self) -> NDArray[np.generic]:
        """Rows of the next pass, over all ranks and in the order of the loader's own `indices`."""
        return self._kept

    def __getattr__(self, name: str) -> Any:
        """Tell where that is which FFCV's loader has under this name."""
        cure = _ELSEWHERE.get(name)
        raise AttributeError(
            f"a pruned loader has no {name}" + (f": {cure}" if cure else ""), name=name, obj=self
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse what would decide something on FFCV's loader, and nothing here."""
        if name in _ELSEWHERE:
            raise AttributeError(f"a pruned loader's {name} cannot be set: {_ELSEWHERE[name]}")
        super().__setattr__(name, value)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass; it starts at its beginning unless just restored.

        Raises:
            ValueError: If it is below 0, or no whole number.
        """
        if (epoch := checked_epoch(epoch)) != self.epoch or self._begun:
            self.epoch, self._start, self._yielded = epoch, 0, 0
        self._begun = self._ended = False
        self._pass = None

    def __len__(self) -> int:
        """Return the steps of the running epoch, or of the next one when none is running.

        They are those from its beginning, also where a pass goes on after a stop.
        """
        if self._pass is not None and not self._ended:
            return len(self._pass.whole)
        return len(self._steps(self.epoch + self._ended, 0))

    def __iter__(self) -> Iterator[Batch]:
        if self._begun:
            self.epoch, self._start = self.epoch + 1, 0
        self._begun, self._ended, self._yielded = True, False, 0
        # Asked for once: a user's own order may draw other rows, and as many others, every time.
        rows = self.rows(self.epoch)
        whole, rows = self._steps_over(len(rows)), rows[self._start :]
        steps = self._steps_over(len(rows))
        self._pass = _Pass(steps, whole, self._plan_name(), self._weights)
        yield from self._read(self._batches(steps, rows), self._weights)

    def rows(self, epoch: int) -> NDArray[np.generic]:
        """Return the rows of one epoch over all ranks, in order: what FFCV calls sample order."""
        if self._own is not None:
            return self._own.rows(self._kept, self._is_kept, epoch).astype(self._dtype)
        rows, how = self._kept.astype(np.int64), {"seed": self.seed, "epoch": epoch}
        ordered = ordered_rows(self.store, rows, **how, window=self.window)
        return ordered.astype(self._dtype)

    def state_dict(self, *, steps_done: int | None = None) -> dict[str, Any]:
        """Return where the epoch stands, as JSON-ready numbers, the same on every rank.

        After a whole pass and `set_keep_set` it stands at the beginning of the next epoch.

        Args:
            steps_done: Steps that training finished in this pass; left out, the batches handed
                out so far count as trained on.
        """
        done = self._yielded if steps_done is None else steps_done
        steps, plan = self._steps_under_way(), self._plan_name()
        begun_with = plan if self._pass is None else self._pass.plan
        if self._ended and done == len(steps) and plan != begun_with:
            return {"plan": plan, "epoch": self.epoch + 1, "samples_done": 0}
        places = steps.bounds(done - 1)[1] if done else 0
        return {"plan": begun_with, "epoch": self.epoch, "samples_done": self._start + places}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` stands, on any world size or batch size.

        Raises:
            StoreMismatchError: If the state belongs to another store, keep set, seed or order.
        """
        refuse_another_plan(state, self._plan_name(), "loader")
        self.epoch, self._start = int(state["epoch"]), int(state["samples_done"])
        self._yielded, self._begun, self._ended = 0, False, False
        self._pass = None

    # Inside ---------------------------------------------------------------------------------

    def _steps_under_way(self) -> Steps:
        return self._steps(self.epoch, self._start) if self._pass is None else self._pass.steps

    def _steps(self, epoch: int, start: int) -> Steps:
        # A user's own order may draw another number of rows than there are.
        drawn = self._own is not None and not self._own.is_ffcvs
        total = len(self.rows(epoch)) if drawn else len(self._kept)
        return self._steps_over(max(total - start, 0))

    def _steps_over(self, places: int) -> Steps:
        return Steps(places, int(self.loader.batch_size), self.world.size, self.tail)

    def _batches(
        self, steps: Steps, rows: NDArray[np.generic]
    ) -> list[tuple[NDArray[np.generic], int]]:
        """Return this rank's rows of every step, and how many of them are no repeats."""
        batches = []
        for step in range(len(steps)):
            begin, end = steps.share(step, self.world.rank)
            # A rank without a sample repeats one.
            own = rows[begin : begin + steps.size(step, self.world.rank)]
            if self.tail == "pad" and len(own) < steps.batch_size:
                filler = np.resize(rows[: steps.global_batch], steps.batch_size - len(own))
                own = np.concatenate([own, filler])
            batches.append((own, end - begin))
        return batches

    def _read(
        self,
        batches: list[tuple[NDArray[np.generic], int]],
        weights: NDArray[np.float32] | None,
    ) -> Iterator[Batch]:
        from shardsieve.loaders.ffcv_iterator import open_batches

        if not batches:
            self._ended = True
            return
        fields = open_batches(self.loader, [rows for rows, _ in batches])
        try:
            for (rows, own), values in zip(batches, fields, strict=True):
                self._yielded += 1
                yield _batch(rows, own, values, weights)
            self._ended = True
        finally:
            fields.close()

    def _plan_name(self) -> str:
        digest = hashlib.blake2b(self._kept.astype("<i8").tobytes(), digest_size=8).hexdigest()
        how = f"{self.order}{'' if self.window is None else self.window}"
        if self.order == "loader":
            how = type(self.loader.traversal_order).__name__
            # That order depends on the batch size.
            how += str(self.loader.batch_size) if how == "QuasiRandom" else ""
        return f"{self.store.fingerprint}/{digest}/seed{self.seed}/{how}"


def _batch(
    rows: NDArray[np.generic],
    own: int,
    values: Sequence[Any],
    weights: NDArray[np.float32] | None,
) -> Batch:
    batch, ids = Batch(values), rows.astype(np.int64)
    found = np.ones(len(ids), np.float32) if weights is None else weights[ids]
    found[own:] = 0
    batch.ids, batch.weights = torch.from_numpy(ids), torch.from_numpy(found)
    return batch


def need_ffcv() -> Any:
    """Return FFCV's `Loader`, or raise a MissingDependencyError that says how to install it."""
    try:
        from ffcv.loader import Loader
    except ImportError as error:
        raise MissingDependencyError(_NO_FFCV) from error
    return Loader


def _refuse_own_iteration(loader: Any) -> None:
    kind, ffcvs = type(loader), need_ffcv()
    for name in _ITERATING:
        if getattr(kind, name) is not getattr(ffcvs, name):
            raise ShardsieveError(
                f"{kind.__name__} has a method {name} of its own, which a pruned loader does not "
                "call; give prune an ffcv.loader.Loader of the same arguments, and do what that "
                "method does to its traversal_order, or to the pruned loader's batches"
            )


def _check_same_file(loader: Any, store: Store) -> None:
    if store.kind != "ffcv":
        raise StoreMismatchError(
            f"{store.path} is the store of tars, the loader reads {loader.reader.file_name}; "
            "index the .beton and carry scores over with `realign`"
        )
    store.check_shards()
    got, rows = cheap_fingerprint(str(loader.reader.file_name)), int(loader.reader.num_samples)
    if rows != len(store) or got != cheap_fingerprint(store.places[0]):
        raise StoreMismatchError(
            f"{store.path} was made from {store.places[0]} ({len(store)} rows), the loader reads "
            f"{loader.reader.file_name} ({rows} rows); index that file, or if it is a copy "
            "open the store with copies=FOLDER"
        )


def _seed(loader: Any, order: str, world: World) -> int:
    from ffcv.traversal_order import Random

    # FFCV draws a seed per process when none is given: ranks would differ. But for RANDOM over
    # ranks that it knows of.
    known = loader.distributed and isinstance(loader.traversal_order, Random)
    shared = known or (not loader.distributed and world.size == 1)
    return int(loader.seed) if shared and order == "loader" else 0


def _world(loader: Any) -> World:
    if loader.distributed and dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()
