"""`Recorder`: training dynamics of seed samples, from anybody's training loop."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import zarr
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from shardsieve._errors import ShardsieveError, StoreFormatError
from shardsieve.io.clients import is_remote
from shardsieve.policy.inbox import world_size
from shardsieve.scores.inputs import one_of, plain, refuse_no_state, whole_number
from shardsieve.store.contents import unlist, write_contents
from shardsieve.store.damage import CHECKED, read_part
from shardsieve.store.layout import checked_name, is_name, told_about_disk
from shardsieve.store.store import Store
from shardsieve.train.measures import KNOWN, SIGNALS, measure

# Numbers that wait to be measured, and that are joined over ranks at a time: 16 MiB of float32.
_BUDGET = 2**22
# Logits that are measured at a time: what is computed of them takes a dozen times as much.
_AT_ONCE = 2**18
_STATE = ("ids", "epochs", "signals", "logs", "now", "seen")

Signals = NDArray[np.float32]
Rows = NDArray[np.int64]


class Recorder:
    """Keeps per epoch and seed sample what the training forward pass says about it.

    Two lines in a loop: `recorder.record(ids, logits, labels)` for each batch and
    `recorder.end_epoch()` after each epoch. Under `torch.distributed` every rank records its own
    samples and `end_epoch`, a collective call, gives each rank the whole table. A sample counts
    once per epoch, whatever rank saw it: further copies (padding) are left out. Ids are matched as
    int64, on every rank, and only places in the table travel between ranks.

    Signals: `p_true`, `loss` (cross entropy), `margin` (label's logit less the largest other),
    `gap` (largest less second largest probability), `el2n` (norm of probabilities less one-hot),
    `entropy`, `correct` (0 or 1), `divergence` (Σ|P'(log P' - log P)| against the epoch before)
    and, when asked for by name and `record` is given features, `grand` (norm of the last layer's
    gradient). NaN where a sample was not seen.

    Memory of a process, for m seeds, C classes, S signals and T epochs: 4·m·(C + S·(T + 1)) bytes
    (without `divergence` no C). Besides, outputs that wait to be measured, at most 16 MiB and a
    batch, and as much again while they are measured, with a dozen MiB for what is computed of some
    at a time; and 16 MiB per rank while ranks join. ImageNet with 128,117 seeds, 90 epochs and 8
    signals: 0.51 + 0.37 GB. A checkpoint holds the same; a state shares ended epochs with it.

    Attributes:
        ids: int64 (m,), seed sample ids, ascending.
        num_classes: C, at least 2.
        signals: Names of what is kept.
        epochs: Ended epochs.
        made: How the run was made, stored by `save` and read by `load`.
    """

    def __init__(
        self, seed_ids: ArrayLike, num_classes: int, *, signals: tuple[str, ...] = SIGNALS
    ) -> None:
        unknown = [name for name in signals if name not in KNOWN]
        if unknown:
            raise ValueError(f"signals must be among {', '.join(KNOWN)}, got {unknown[0]!r}")
        given = np.asarray(plain(seed_ids))
        if given.size == 0 or given.dtype.kind not in "iu":
            raise ValueError(
                f"seed_ids must be integers, at least one, got {given.size} of {given.dtype}; "
                "a float loses large ids"
            )
        whole_number("num_classes", num_classes, 2)
        self.ids = np.unique(given.astype(np.int64))
        self.num_classes, self.signals = num_classes, tuple(signals)
        self.epochs = 0
        self.made: dict[str, Any] = {}
        self._history: dict[str, list[Signals]] = {name: [] for name in self.signals}
        self._start_epoch()

    @torch.no_grad()
    def record(self, ids: Any, logits: Any, labels: Any, features: Tensor | None = None) -> None:
        """Take in one batch; samples that are not of the seed are left out.

        Nothing is copied to the CPU and nothing measured before some megabytes have come together,
        so that a GPU is not waited for after every step.

        Args:
            ids: int64 (n,), as logits and labels a tensor or what torch makes one of.
            logits: (n, C), on any device and of any float type.
            labels: int64 (n,), in `[0, C)`.
            features: (n, d), the last layer's input; for the signal `grand` only.

        Raises:
            ValueError: If ids are not integers, shapes disagree, or features are missing. A label
                out of range is found when the batch is measured, at `end_epoch` at the latest.
        """
        ids, logits, labels = map(torch.as_tensor, (ids, logits, labels))
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(f"ids must be integers, got {ids.dtype}; a float loses large ids")
        if ids.ndim != 1:
            raise ValueError(f"ids must have shape (n,), got {tuple(ids.shape)}; flatten them")
        shape = (len(ids), self.num_classes)
        if logits.shape != shape or labels.shape != shape[:1]:
            raise ValueError(
                f"logits must have shape {shape} and labels {shape[:1]}, "
                f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
            )
        if "grand" in self.signals and features is None:
            raise ValueError("features must be given for the signal 'grand', got None")
        # Copies: a loop may write the next batch into the same memory.
        batch = [ids.detach().clone(), logits.detach().clone(), labels.detach().clone()]
        if "grand" in self.signals and features is not None:
            batch.append(features.detach().flatten(1).square().sum(dim=1, keepdim=True).sqrt())
        self._waiting.append(batch)
        self._numbers += logits.numel()
        if self._numbers >= _BUDGET:
            self._measure()

    def end_epoch(self, *, share: bool = True) -> None:
        """Close the epoch; under `torch.distributed` all ranks must call it.

        Args:
            share: Take in what the other ranks saw. False is for a process that records alone.
        """
        if share:
            self._share()
        else:
            self._measure()
        for column, name in enumerate(self.signals):
            self._history[name].append(self._now[:, column].copy())
        self._logs[~self._seen] = np.nan
        self.epochs += 1
        self._start_epoch()

    def signal(self, name: str) -> Signals:
        """Return one signal, float32 (T, m), columns as `ids`; `divergence[0]` is NaN."""
        one_of("name", name, self.signals)
        if not self.epochs:
            return np.zeros((0, len(self.ids)), dtype=np.float32)
        return np.stack(self._history[name])

    def save(self, store: Store, run: str) -> None:
        """Write the table to `dynamics/<run>` of the store; one process must do it."""
        with told_about_disk(store.path):
            unlist(store.group, f"dynamics/{checked_name(run)}")
            group = store.group.require_group("dynamics")
            group = group.create_group(checked_name(run), overwrite=True)
            group.create_array("ids", data=self.ids, compressors=CHECKED)
            for name in self.signals:
                how: dict[str, Any] = {"compressors": CHECKED, "fill_value": np.nan}
                group.create_array(name, data=self.signal(name), **how)
            names = list(self.signals)
            about: dict[str, Any] = {"signals": names, "num_classes": self.num_classes}
            group.update_attributes({**about, "epochs": self.epochs, "made": self.made})
            if is_remote(store.path):
                write_contents(store.group)

    @staticmethod
    def runs(store: Store) -> list[str]:
        """Return the names of the runs whose dynamics a store holds."""
        return store.dynamics

    @staticmethod
    def forget(store: Store, run: str) -> None:
        """Delete a run's dynamics from a store, if they are there."""
        with told_about_disk(store.path):
            unlist(store.group, f"dynamics/{checked_name(run)}")
            del store.group[f"dynamics/{checked_name(run)}"]
            if is_remote(store.path):
                write_contents(store.group)

    @classmethod
    def load(cls, store: Store, run: str) -> "Recorder":
        """Return a saved table; it is for reading, as the last epoch's outputs are not saved.

        Raises:
            StoreFormatError: If the store has no such run.
        """
        group = store.group.get(f"dynamics/{run}") if is_name(run) else None
        if not isinstance(group, zarr.Group) or "signals" not in group.attrs:
            known = ", ".join(cls.runs(store)) or "none"
            raise StoreFormatError(
                f"{store.path} has no dynamics of run {run!r} (it has {known}); score it first"
            )
        attrs: dict[str, Any] = dict(group.attrs)
        names = tuple(str(name) for name in attrs["signals"])
        arrays = {name: read_part(array) for name, array in group.arrays()}
        if not _are_whole(attrs, names, arrays):
            raise StoreFormatError(
                f"{store.path} has lost part of the dynamics of run {run!r}; `shardsieve forget "
                f"--store {store.path} --run {run}`, and score it again"
            )
        recorder = cls(arrays["ids"], int(attrs["num_classes"]), signals=names)
        recorder._history = {name: list(arrays[name]) for name in names}
        recorder.epochs = int(attrs["epochs"])
        recorder.made = dict(attrs.get("made", {}))
        return recorder

    def state_dict(self) -> dict[str, Any]:
        """Return ended epochs and the one under way as tensors; the same on every rank.

        Under `torch.distributed` all ranks must call it. A run may go on with another world size.
        """
        self._share()
        state: dict[str, Any] = {"ids": torch.from_numpy(self.ids), "epochs": self.epochs}
        tables = {name: self._stacked(name) for name in self.signals}
        state["signals"] = {name: torch.from_numpy(table) for name, table in tables.items()}
        arrays = {"logs": self._logs, "now": self._now, "seen": self._seen}
        return state | {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            ValueError: If it is no state, lacks a signal, or is of other seeds or another number of
                classes; nothing is changed then.
        """
        refuse_no_state("Recorder", state, _STATE)
        if not np.array_equal(state["ids"].numpy(), self.ids):
            raise ValueError("state must belong to the same seed ids, got others")
        held = list(state["signals"])
        if not set(self.signals) <= set(held):
            raise ValueError(
                f"state must hold the signals {', '.join(self.signals)}, got {', '.join(held)}; "
                "ask for scores of these (`--scores`), as when it was saved, or record in a new run"
            )
        outputs, kept = (len(self.ids), self._outputs_kept), state["logs"]
        if "divergence" in held and not self._outputs_kept:  # of a run that recorded more
            kept = kept[:, :0]
        if kept.shape != outputs:
            raise ValueError(
                f"logs of the state must have shape {outputs}, got {tuple(kept.shape)}; "
                "use as many classes as when it was saved"
            )
        self.epochs = int(state["epochs"])
        self._history = {name: list(state["signals"][name].numpy()) for name in self.signals}
        self._start_epoch()
        columns = [held.index(name) for name in self.signals]
        self._logs, self._now = kept.numpy().copy(), state["now"].numpy()[:, columns].copy()
        self._seen = state["seen"].numpy().copy()

    # Inside ---------------------------------------------------------------------------------

    @cached_property
    def _logs(self) -> Signals:
        """log(P + 1e-8): of the epoch before until a sample is seen, then of this one."""
        # By far the largest table: a recorder that was loaded to be read never makes it.
        try:
            return self._blank(self._outputs_kept)
        except MemoryError as error:
            size = 4e-9 * len(self.ids) * self._outputs_kept
            raise ShardsieveError(
                f"the divergence of {len(self.ids)} seeds with {self.num_classes} classes takes "
                f"{size:.0f} GB of memory in every process; name the scores to make without tdds, "
                "which alone needs it (`shardsieve score --scores dyn_unc,el2n`), or draw fewer "
                "seeds"
            ) from error

    @property
    def _outputs_kept(self) -> int:
        return self.num_classes if "divergence" in self.signals else 0

    def _blank(self, columns: int) -> Signals:
        return np.full((len(self.ids), columns), np.nan, dtype=np.float32)

    def _stacked(self, name: str) -> Signals:
        """Return `signal`, whose rows the history holds from now on: with a state it lies once."""
        table = self.signal(name)
        self._history[name] = list(table)
        return table

    def _start_epoch(self) -> None:
        self._now = self._blank(len(self.signals))
        self._seen = np.zeros(len(self.ids), dtype=np.bool_)
        # Seen by this rank since ranks last joined.
        self._fresh = np.zeros(len(self.ids), dtype=np.bool_)
        self._waiting: list[list[Tensor]] = []
        self._numbers = 0

    @torch.no_grad()
    def _measure(self) -> None:
        if not self._waiting:
            return
        columns = [torch.cat(parts) for parts in zip(*self._waiting, strict=True)]
        self._waiting, self._numbers = [], 0
        ids = columns[0].cpu().numpy().astype(np.int64)
        rows, places = self._new_rows(ids)
        if not len(rows):
            return
        picked = torch.from_numpy(places)
        labels = columns[2].cpu().long()[picked]
        wrong = (labels < 0) | (labels >= self.num_classes)
        if wrong.any():
            first = int(wrong.nonzero()[0, 0])
            raise ValueError(
                f"labels must lie in [0, {self.num_classes}), got {int(labels[first])} for sample "
                f"id {ids[places[first]]}; number the classes from 0"
            )
        step = max(1, _AT_ONCE // self.num_classes)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            self._take_in(rows[part], picked[part], labels[part], columns)

    def _take_in(self, rows: Rows, picked: Tensor, labels: Tensor, columns: list[Tensor]) -> None:
        """Measure some of what waited: the places `picked` of the columns, which belong to rows."""
        places = picked.to(columns[1].device)
        logits = columns[1][places].float()
        more: dict[str, Tensor] = {}
        if "divergence" in self.signals:
            more["before"] = torch.from_numpy(self._logs[rows]).to(logits.device)
        if "grand" in self.signals:
            more["features"] = columns[3][places]
        logs, measured = measure(self.signals, logits, labels.to(logits.device), **more)
        self._now[rows] = measured.cpu().numpy()
        if "divergence" in self.signals:
            self._logs[rows] = logs.cpu().numpy()
        self._seen[rows] = self._fresh[rows] = True

    def _new_rows(self, ids: NDArray[np.int64]) -> tuple[Rows, Rows]:
        """Return rows of seeds not yet seen in this epoch, each once, and their places in ids."""
        rows = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        places = np.flatnonzero((self.ids[rows] == ids) & ~self._seen[rows])
        found, first = np.unique(rows[places], return_index=True)
        return found, places[first]

    def _share(self) -> None:
        """Measure what waits and give every rank the rows that the others saw."""
        self._measure()
        if world_size() == 1:
            return
        fresh, parts = np.flatnonzero(self._fresh), [None] * world_size()
        dist.all_gather_object(parts, len(fresh))
        step = max(1, _BUDGET // (self._logs.shape[1] + len(self.signals)))
        taken = np.zeros(len(self.ids), dtype=np.bool_)
        for start in range(0, max(int(count or 0) for count in parts), step):
            part = fresh[start : start + step]
            joined: list[Any] = [None] * len(parts)
            dist.all_gather_object(joined, (part, self._now[part], self._logs[part]))
            for rows, now, logs in joined:
                # One copy of a sample counts, the same one on every rank.
                new = ~taken[rows]
                self._now[rows[new]], self._logs[rows[new]] = now[new], logs[new]
                taken[rows] = True
        self._seen |= taken
        self._fresh[:] = False


class Watcher:
    """Records the batches of one model, with the last layer's input where the recorder wants it.

    A context: it watches the model's last linear layer of C outputs, and lets go of it.
    """

    def __init__(self, recorder: Recorder, network: nn.Module) -> None:
        self.recorder = recorder
        self._features: Tensor | None = None
        self._handle: Any = None
        if "grand" in recorder.signals:
            self._handle = _head(network, recorder.num_classes).register_forward_pre_hook(self._see)

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *error: object) -> None:
        if self._handle is not None:
            self._handle.remove()

    def record(self, ids: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Take in one batch, right after its forward pass."""
        self.recorder.record(ids, logits, labels, self._features)

    def _see(self, module: nn.Module, inputs: Any) -> None:
        self._features = inputs[0].detach()


def _are_whole(attrs: dict[str, Any], names: tuple[str, ...], arrays: dict[str, Any]) -> bool:
    """Return whether saved dynamics have all their parts, and these fit together."""
    if not (attrs.keys() >= {"num_classes", "epochs"} and arrays.keys() >= {"ids", *names}):
        return False
    shape = attrs["epochs"], len(arrays["ids"])
    fit = all(arrays[name].shape == shape for name in names)
    return bool(fit and (np.diff(arrays["ids"]) > 0).all())


def _head(network: nn.Module, num_classes: int) -> nn.Linear:
    heads = [m for m in network.modules() if isinstance(m, nn.Linear)]
    if not heads or heads[-1].out_features != num_classes:
        raise ShardsieveError(
            f"the model must end in a linear layer of {num_classes} outputs for the signal "
            "'grand', got none; leave grand_last_layer out"
        )
    return heads[-1]
