"""`Recorder`: training dynamics of seed samples, from anybody's training loop."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import zarr
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from shardsieve._errors import StoreFormatError
from shardsieve.store.store import Store

MEASURED = ("p_true", "loss", "margin", "el2n", "entropy", "correct")
SIGNALS = (*MEASURED, "divergence")
_TINY = 1e-8

Signals = NDArray[np.float32]


class Recorder:
    """Keeps per epoch and seed sample what the training forward pass says about it.

    Two lines in a loop: `recorder.record(ids, logits, labels)` for each batch and
    `recorder.end_epoch()` after each epoch. Under `torch.distributed` every rank records its own
    samples and `end_epoch`, a collective call, gives each rank the whole table.

    Signals: `p_true`, `loss` (cross entropy), `margin` (label's logit less the largest other),
    `el2n` (norm of probabilities less one-hot), `entropy`, `correct` (0 or 1) and `divergence`
    (Σ|P'(log P' - log P)| against the epoch before). NaN where a sample was not seen.

    Attributes:
        ids: int64 (m,), seed sample ids, ascending.
        num_classes: C; two (m, C) float32 tables are held.
        epochs: Ended epochs.
    """

    def __init__(
        self, seed_ids: ArrayLike, num_classes: int, *, signals: tuple[str, ...] = SIGNALS
    ) -> None:
        unknown = [name for name in signals if name not in SIGNALS]
        if unknown:
            raise ValueError(f"signals must be among {', '.join(SIGNALS)}, got {unknown[0]!r}")
        self.ids = np.unique(np.asarray(seed_ids, dtype=np.int64))
        self.num_classes, self.signals = num_classes, tuple(signals)
        self.epochs = 0
        self._history: dict[str, list[Signals]] = {name: [] for name in self.signals}
        self._before = self._blank(num_classes) if "divergence" in signals else None
        self._start_epoch()

    @torch.no_grad()
    def record(self, ids: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Take in one batch; samples that are not of the seed are left out.

        Args:
            ids: int64 (n,).
            logits: (n, C), on any device and of any float type.
            labels: int64 (n,).
        """
        wanted = ids.detach().cpu().numpy().astype(np.int64)
        rows = np.minimum(np.searchsorted(self.ids, wanted), len(self.ids) - 1)
        known = np.flatnonzero(self.ids[rows] == wanted)
        if not len(known):
            return
        picked = torch.from_numpy(known).to(logits.device)
        outputs = logits.detach()[picked].float()
        probs, measured = measure_logits(outputs, labels.to(logits.device)[picked])
        self._now[rows[known]] = measured.cpu().numpy()
        if self._before is not None:
            self._probs[rows[known]] = probs.cpu().numpy()

    def end_epoch(self) -> None:
        """Close the epoch; under `torch.distributed` all ranks must call it."""
        self._share()
        for column, name in enumerate(MEASURED):
            if name in self.signals:
                self._history[name].append(self._now[:, column].copy())
        if self._before is not None:
            after = self._probs
            ratio = np.log(after + _TINY) - np.log(self._before + _TINY)
            self._history["divergence"].append(np.abs(after * ratio).sum(axis=1))
            self._before = after
        self.epochs += 1
        self._start_epoch()

    def signal(self, name: str) -> Signals:
        """Return one signal, float32 (T, m), columns as `ids`; `divergence[0]` is NaN."""
        if name not in self.signals:
            raise ValueError(f"name must be one of {', '.join(self.signals)}, got {name!r}")
        if not self.epochs:
            return np.zeros((0, len(self.ids)), dtype=np.float32)
        return np.stack(self._history[name])

    def save(self, store: Store, run: str) -> None:
        """Write the table to `dynamics/<run>` of the store; one process must do it."""
        group = store.group.require_group("dynamics").create_group(run, overwrite=True)
        group.create_array("ids", data=self.ids)
        for name in self.signals:
            group.create_array(name, data=self.signal(name))
        names = list(self.signals)
        group.attrs.update(
            {"signals": names, "num_classes": self.num_classes, "epochs": self.epochs}
        )

    @classmethod
    def load(cls, store: Store, run: str) -> "Recorder":
        """Return a saved table; it is for reading, as the last probabilities are not saved.

        Raises:
            StoreFormatError: If the store has no such run.
        """
        group = store.group.get(f"dynamics/{run}")
        if not isinstance(group, zarr.Group):
            raise StoreFormatError(f"{store.path} has no dynamics of run {run!r}; score it first")
        attrs: dict[str, Any] = dict(group.attrs)
        names = tuple(str(name) for name in attrs["signals"])
        arrays = {name: np.asarray(group[name][:]) for name in ("ids", *names)}  # type: ignore[index]
        recorder = cls(arrays["ids"], int(attrs["num_classes"]), signals=names)
        recorder._history = {name: list(arrays[name]) for name in names}
        recorder.epochs = int(attrs["epochs"])
        return recorder

    def state_dict(self) -> dict[str, Any]:
        """Return all ended epochs as tensors, for a checkpoint; the same on every rank."""
        state: dict[str, Any] = {"ids": torch.from_numpy(self.ids), "epochs": self.epochs}
        state["signals"] = {name: torch.from_numpy(self.signal(name)) for name in self.signals}
        if self._before is not None:
            state["before"] = torch.from_numpy(self._before)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the epochs of `state`, which must be of the same seed samples."""
        if not np.array_equal(state["ids"].numpy(), self.ids):
            raise ValueError("state must belong to the same seed ids, got others")
        self.epochs = int(state["epochs"])
        self._history = {name: list(state["signals"][name].numpy()) for name in self.signals}
        if self._before is not None:
            self._before = state["before"].numpy().copy()
        self._start_epoch()

    # Inside ---------------------------------------------------------------------------------

    def _blank(self, columns: int) -> Signals:
        return np.full((len(self.ids), columns), np.nan, dtype=np.float32)

    def _start_epoch(self) -> None:
        self._now = self._blank(len(MEASURED))
        self._probs = self._blank(self.num_classes if self._before is not None else 0)

    def _share(self) -> None:
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return
        rows = np.flatnonzero(~np.isnan(self._now[:, 0]))
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, (rows, self._now[rows], self._probs[rows]))
        for rows, now, probs in parts:
            self._now[rows], self._probs[rows] = now, probs


def measure_logits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return probabilities (n, C) and the `MEASURED` signals (n, 6).

    Args:
        logits: float32 (n, C).
        labels: (n,), integers in `[0, C)`.
    """
    log_probs = logits.log_softmax(dim=1)
    probs, label = log_probs.exp(), labels.long()[:, None]
    true_logit, loss = logits.gather(1, label)[:, 0], -log_probs.gather(1, label)[:, 0]
    margin = true_logit - logits.scatter(1, label, float("-inf")).amax(dim=1)
    error = probs.scatter_add(1, label, torch.full_like(label, -1, dtype=probs.dtype))
    columns = {
        "p_true": probs.gather(1, label)[:, 0],
        "loss": loss,
        "margin": margin,
        "el2n": error.norm(dim=1),
        "entropy": -(probs * log_probs).sum(dim=1),
        "correct": (logits.argmax(dim=1) == label[:, 0]).float(),
    }
    return probs, torch.stack([columns[name] for name in MEASURED], dim=1)
