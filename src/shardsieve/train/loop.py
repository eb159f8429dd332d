"""One training loop for keep sets, alone or under `accelerate launch`, that can stop and go on."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader

from shardsieve.keepset import KeepSet
from shardsieve.loaders.dataset import ShardDataset
from shardsieve.loaders.sampler import PrunedShardSampler
from shardsieve.order import hash_key
from shardsieve.store.store import Store
from shardsieve.train.adversary import Adversary
from shardsieve.train.config import TrainConfig
from shardsieve.train.ffcv_batches import FfcvBatches, ffcv_loader
from shardsieve.train.images import Batch, ImageDecoder, augment, collate
from shardsieve.train.recorder import Recorder, Watcher
from shardsieve.train.runfolder import CHECKPOINT, RunFolder

Progress = Callable[[int, int], None]


@dataclass
class Done:
    """What a run has done so far, over all ranks.

    Attributes:
        epoch: Finished epochs.
        place: Samples done in the epoch that follows.
        steps: Optimiser steps.
        samples: Samples trained on.
        nbytes: Bytes of them in the shards.
        seconds: Wall seconds of training, earlier starts included.
        history: One row per finished epoch.
    """

    epoch: int = 0
    place: int = 0
    steps: int = 0
    samples: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Trains one model on one keep set with SGD.

    All randomness of a step is a function of seed, epoch and place, so that a run that was killed
    and started again makes the steps of an undisturbed one.
    """

    def __init__(
        self,
        model: nn.Module,
        store: Store,
        keep: KeepSet,
        config: TrainConfig,
        accelerator: Accelerator,
        *,
        folder: RunFolder | None = None,
        checkpoint_steps: int = 0,
        adversary: Adversary | None = None,
    ) -> None:
        """Prepare everything, and go on from the folder's checkpoint if it has one.

        Args:
            model: Fresh, on the CPU.
            store: Where the samples are.
            keep: Samples to train on.
            config: Settings; its size and channels must be known.
            accelerator: From `make_accelerator`.
            folder: Checkpoints after every epoch; None makes none.
            checkpoint_steps: More checkpoints, after so many steps each; 0 makes none.
            adversary: Trains on attacked images; None trains plainly.
        """
        self.adversary = adversary
        self.config, self.accelerator, self.keep = config, accelerator, keep
        self.folder, self.checkpoint_steps = folder, checkpoint_steps
        self.done = Done()
        self.bytes_per_epoch = keep.nbytes(store)
        self.extra: dict[str, Any] = {}
        # Called on every rank before a checkpoint; what it returns goes into it as `extra`.
        self.remember: Callable[[], dict[str, Any]] | None = None
        optimizer = torch.optim.SGD(
            model.parameters(),
            config.rate(0),
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
        )
        plain, self.sampler = make_loader(store, keep, config)
        self.dataset: Any = plain.dataset
        prepared = accelerator.prepare(model, optimizer, plain)
        self.model, self.optimizer, self.loader = prepared
        self.loss = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self._resume()

    @property
    def network(self) -> nn.Module:
        """The bare model."""
        bare: nn.Module = self.accelerator.unwrap_model(self.model)
        return bare

    def unreadable(self) -> int:
        """Return how many samples were skipped since this start, over all ranks."""
        return len(set(gather_object(self.dataset.unreadable)))

    def reads(self) -> dict[str, Any]:
        """Return what reading took since this start, over all ranks; every rank must call it."""
        counts = self.dataset.ledger.over_ranks()
        return {**asdict(counts), "amplification": round(counts.amplification, 4)}

    def epochs(
        self, recorder: Recorder | Watcher | None = None, progress: Progress | None = None
    ) -> Iterator[int]:
        """Train; yield the number of each epoch when it is done, before its checkpoint.

        Args:
            recorder: Takes in every batch; whoever iterates ends its epochs.
            progress: Called with (steps done, steps in all).
        """
        for epoch in range(self.done.epoch, self.config.epochs):
            self._train(epoch, recorder, progress)
            self.done.epoch, self.done.place = epoch + 1, 0
            yield epoch
            self._save()

    # Inside ---------------------------------------------------------------------------------

    def _train(
        self, epoch: int, recorder: Recorder | Watcher | None, progress: Progress | None
    ) -> None:
        self.model.train()
        set_epoch(self.loader, self.sampler, epoch)
        begin, first = time.perf_counter(), self.done.place
        total, count = torch.zeros((), device=self.accelerator.device), 0
        for step, batch in enumerate(self.loader, start=1):
            logits, loss = self._step(epoch, first + (step - 1) * self._global_batch(), batch)
            total, count = total + loss.detach(), step
            self.done.steps += 1
            self.done.place = min(first + step * self._global_batch(), len(self.keep))
            if recorder is not None:
                recorder.record(batch.ids, logits, batch.labels)
            if progress:
                progress(epoch * len(self.loader) + step, self.config.epochs * len(self.loader))
            if self.checkpoint_steps and step % self.checkpoint_steps == 0:
                self.done.seconds += time.perf_counter() - begin
                begin = time.perf_counter()
                self._save()
        self.done.samples += len(self.keep)
        self.done.nbytes += self.bytes_per_epoch
        self.done.seconds += time.perf_counter() - begin
        mean = float(self.accelerator.reduce(total / max(count, 1), "mean"))
        row = {"epoch": epoch, "loss": round(mean, 5), "rate": self.config.rate(self._progress())}
        self.done.history.append({**row, "seconds": round(self.done.seconds, 3)})

    def _step(self, epoch: int, place: int, batch: Batch) -> tuple[Tensor, Tensor]:
        rank = self.accelerator.process_index
        draw = hash_key(self.config.seed, epoch, place, rank) % 2**63
        torch.manual_seed(draw)
        images = batch.images
        if self.config.augment != "none":
            generator = torch.Generator().manual_seed(draw)
            images = augment(images, generator, flip=self.config.augment == "flip")
        progress = (epoch + place / len(self.keep)) / self.config.epochs
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(progress)
        logits, loss = self._forward(images, batch.labels)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.optimizer.step()
        return logits, loss

    def _forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.adversary is not None:
            return self.adversary(self.model, self.network, images, labels, self.loss)
        logits: Tensor = self.model(images)
        return logits, self.loss(logits, labels)

    def _progress(self) -> float:
        return (self.done.epoch + self.done.place / len(self.keep)) / self.config.epochs

    def _global_batch(self) -> int:
        return self.config.batch_size * int(self.accelerator.num_processes)

    def _save(self) -> None:
        if self.folder is None:
            return
        if self.remember is not None:
            self.extra = self.remember()
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "done": asdict(self.done),
            "sampler": {**self.sampler.state_dict(), "samples_done": self.done.place},
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "extra": self.extra,
        }
        self.folder.save(CHECKPOINT, state)
        self.folder.write_history(self.done.history)

    def _resume(self) -> None:
        state = self.folder.checkpoint() if self.folder else None
        if state is None:
            return
        self.done, self.extra = Done(**state["done"]), state["extra"]
        self.network.load_state_dict(state["model"])
        self.optimizer.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.sampler.load_state_dict({**state["sampler"], "epoch": self.done.epoch})


def make_loader(
    store: Store, keep: KeepSet, config: TrainConfig, *, in_order: bool = False
) -> tuple[DataLoader[Any] | FfcvBatches, PrunedShardSampler]:
    """Return a loader of decoded batches and its sampler."""
    if store.kind == "ffcv":
        return ffcv_loader(store, config, in_order=in_order, keep_set=keep)
    window = 0 if in_order else config.shuffle_window
    sampler = PrunedShardSampler(store, keep_set=keep, seed=config.seed, window=window)
    loader: DataLoader[Any] = DataLoader(
        readable(store, ImageDecoder(config.size, config.channels or 3), config.max_unreadable),
        sampler=sampler,
        batch_size=config.batch_size,
        num_workers=config.workers,
        collate_fn=collate,
        persistent_workers=config.workers > 0,
    )
    return loader, sampler


def readable(store: Store, decoder: ImageDecoder, max_unreadable: int) -> ShardDataset:
    """Return decoded samples that skip up to so many unreadable ones."""
    on_error = "skip" if max_unreadable else "raise"
    return ShardDataset(store, decoder, on_error=on_error, max_unreadable=max_unreadable)


def set_epoch(loader: Any, sampler: PrunedShardSampler, epoch: int) -> None:
    """Set the epoch of the sampler, and of Accelerate's loader, which would set it back."""
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)
    sampler.set_epoch(epoch)


def evaluate(
    model: nn.Module, store: Store, keep: KeepSet, config: TrainConfig, accelerator: Accelerator
) -> float:
    """Return the accuracy in `[0, 1]` over a keep set, every sample counted once."""
    loader = accelerator.prepare(make_loader(store, keep, config, in_order=True)[0])
    model.eval()
    right = torch.zeros((), dtype=torch.int64, device=accelerator.device)
    with torch.inference_mode(), accelerator.autocast():
        for images, labels, _ in loader:
            right += (model(images).argmax(dim=1) == labels).sum()
    return int(accelerator.reduce(right, "sum")) / len(keep)
