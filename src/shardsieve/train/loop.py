"""One training loop for keep sets, alone or under `accelerate launch`, that can stop and go on."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from shardsieve._errors import ShardsieveError
from shardsieve.cost import Cost
from shardsieve.io.counts import Counts, size_of
from shardsieve.keepset import KeepSet
from shardsieve.plan import PADDING, Steps
from shardsieve.policy.base import Policy
from shardsieve.store.store import Store, numbers_in
from shardsieve.train.adversary import Adversary
from shardsieve.train.config import TrainConfig
from shardsieve.train.ending import Stopped
from shardsieve.train.evaluation import evaluate
from shardsieve.train.images import Batch
from shardsieve.train.launch import let_go, on_main
from shardsieve.train.loading import make_loader, set_epoch
from shardsieve.train.machines import on_all
from shardsieve.train.ordering import training_order
from shardsieve.train.progress import Done, Losses, Progress
from shardsieve.train.recorder import Recorder, Watcher
from shardsieve.train.runfolder import RunFolder
from shardsieve.train.stepping import Stepper
from shardsieve.train.stopping import Stopping


class Trainer:
    """Trains one model on one keep set, or on what a policy keeps, with SGD.

    All randomness of a step is a function of seed, epoch and place, so that a run that was killed
    and started again makes the steps of an undisturbed one.
    """

    def __init__(
        self,
        model: nn.Module,
        store: Store,
        keep: KeepSet | Policy,
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
            keep: Samples to train on, or the policy that chooses them.
            config: Settings; its size and channels must be known.
            accelerator: From `make_accelerator`.
            folder: Checkpoints after every epoch; None makes none.
            checkpoint_steps: More checkpoints, after so many steps each; 0 makes none.
            adversary: Trains on attacked images; None trains plainly.

        Raises:
            ValueError: If the policy's schedule is shorter than the run.
            StoreMismatchError: If the checkpoint's policy or plan is another.
        """
        self.config, self.accelerator, self.store = config, accelerator, store
        self.folder, self.checkpoint_steps = folder, checkpoint_steps
        self.done = Done()
        self.extra: dict[str, Any] = {}
        # Called on every rank before a checkpoint; what it returns goes into it as `extra`.
        self.remember: Callable[[], dict[str, Any]] | None = None
        plain, self.sampler = make_loader(store, keep, config)
        if not len(self.keep):
            raise ValueError(
                f"the keep set must hold a sample, got none of {len(store)}; keep more"
            )
        # An epoch's last step may be of fewer batches.
        batches = self.sampler.steps(config.epochs) / config.epochs
        self.planned = config.epochs * math.ceil(batches / config.accumulate)
        self.dataset: Any = plain.dataset
        self.stepper = Stepper(model, config, accelerator, adversary)
        self.loader = accelerator.prepare(plain)
        self._resume()

    @property
    def keep(self) -> KeepSet:
        """What this epoch keeps."""
        return self.sampler.keep_set

    @property
    def model(self) -> nn.Module:
        """The prepared model, as it trains."""
        prepared: nn.Module = self.stepper.model
        return prepared

    @property
    def network(self) -> nn.Module:
        """The bare network to save: the running average, if there is one."""
        return self.stepper.network

    def unreadable(self) -> int:
        """Return how many samples were skipped since this start, over all ranks."""
        return len(set(gather_object(self.dataset.unreadable)))

    def reads(self) -> dict[str, Any]:
        """Return what reading took since this start, over all ranks; every rank must call it.

        FFCV reads through the page cache, and what that took nobody counts: None.
        """
        counts = self.dataset.ledger.over_ranks()
        if self.store.kind == "ffcv":
            unknown = dict.fromkeys(("read", "requests", "retries", "amplification"))
            return {"kept": counts.kept, **unknown}
        return {**asdict(counts), "amplification": round(counts.amplification, 4)}

    def epochs(
        self, recorder: Recorder | Watcher | None = None, progress: Progress | None = None
    ) -> Iterator[int]:
        """Train; yield the number of each epoch when it is done, before its checkpoint.

        Args:
            recorder: Takes in every batch; whoever iterates ends its epochs.
            progress: Called with steps done, steps in all, and what this rank has read.

        Raises:
            ShardsieveError: If the training has diverged; its last checkpoint is of before.
            Stopped: After SIGTERM, when the state is saved.
        """
        try:
            with Stopping(self.accelerator) as stopping:
                for epoch in range(self.done.epoch, self.config.epochs):
                    self._train(epoch, recorder, progress, stopping)
                    self._need_numbers(epoch)
                    self.done.epoch, self.done.place = epoch + 1, 0
                    yield epoch
                    self._save()
        finally:
            let_go(self.accelerator, self.loader, *self.stepper.prepared())

    def evaluate(self, store: Store, keep: KeepSet) -> float:
        """Return the accuracy in `[0, 1]` over a keep set; what it took goes into `done`.

        Samples without a label are not counted. Pseudo-classes stand for the classes that suit
        them best.
        """
        begin = time.perf_counter()
        network = self.stepper.evaluated()
        labelled = replace(self.config, pseudo_labels=None)
        how: dict[str, Any] = {"matched": labelled != self.config}
        if not how["matched"]:
            how["numbers"] = numbers_in(self.store, store)
        accuracy = evaluate(network, store, keep, labelled, self.accelerator, **how)
        seen = Cost(forward=len(keep), nbytes=keep.nbytes(store))
        self.done.evaluation += seen + self.spent(begin)
        return accuracy

    def spent(self, begin: float) -> Cost:
        """Return the time since `begin`, a reading of `time.perf_counter`."""
        return Cost.timed(time.perf_counter() - begin, int(self.accelerator.num_processes))

    # Inside ---------------------------------------------------------------------------------

    def _train(
        self,
        epoch: int,
        recorder: Recorder | Watcher | None,
        progress: Progress | None,
        stopping: Stopping,
    ) -> None:
        self.model.train()
        set_epoch(self.loader, self.sampler, epoch)
        begin, seen = time.perf_counter(), Losses()
        for batches, place_after, weight in self._steps():
            samples = sum(len(batch.ids) for _, batch in batches)
            for number, (place, batch) in enumerate(batches, start=1):
                logits, losses = self.stepper.batch(
                    batch,
                    epoch=epoch,
                    place=place,
                    share=len(batch.ids) / samples * weight,
                    last=number == len(batches),
                )
                # What stands in for a batch weighs nothing: it counts in its own place, if at all.
                counts = batch.weights > 0
                ids = batch.ids.where(counts, PADDING)
                seen.add(losses, counts)
                self.sampler.update(ids, losses)
                if recorder is not None:
                    recorder.record(ids, logits, batch.labels)
            self.stepper.update(self._progress())
            self.done.steps += 1
            self.done.place = place_after
            if progress:
                progress(self.done.steps, self.planned, self._said_of_reading())
            stop = stopping.after_step() and self.done.place < len(self.keep)
            if stop or self._checkpoint_is_due():
                self._add_up(seen, begin)
                begin = time.perf_counter()
                self._save()
            if stop:
                raise Stopped(f"stopped in epoch {epoch}")
        self._add_up(seen, begin)
        self._end_epoch(epoch)

    def _need_numbers(self, epoch: int) -> None:
        if not self.stepper.is_finite():
            raise ShardsieveError(
                f"the training diverged in epoch {epoch}: weights are infinite or no numbers; "
                "start again with a lower learning rate, in another run folder"
            )

    def _steps(self) -> Iterator[tuple[list[tuple[int, Batch]], int, float]]:
        """Yield (batches of an optimiser step, each with its place; place after them; weight).

        By its weight a rank's mean is multiplied: ranks may have unlike many samples.
        """
        first, held = self.done.place, list[tuple[int, Batch]]()
        world, rank = int(self.accelerator.num_processes), int(self.accelerator.process_index)
        steps = Steps(len(self.keep) - first, self.config.batch_size, world)
        for number, batch in enumerate(self.loader, start=1):
            held.append((first + steps.places_done(number - 1), batch))
            if len(held) == self.config.accumulate or number == len(steps):
                weight = steps.weight(rank, number - len(held), number)
                yield held, first + steps.places_done(number), weight
                held = []

    def _add_up(self, seen: Losses, begin: float) -> None:
        """Move losses and time since `begin` into `done`, over all ranks."""
        losses = seen.take()
        for loss, samples in gather_object([(float(losses.sum()), len(losses))]):
            self.done.loss += loss
            self.done.summed += samples
        self.done.training += self.spent(begin)

    def _end_epoch(self, epoch: int) -> None:
        kept, mean = len(self.keep), self.done.loss / max(self.done.summed, 1)
        adversary = self.stepper.adversary
        forward, backward = adversary.passes if adversary else (1, 1)
        passes = {"forward": kept * forward, "backward": kept * backward}
        seen = Cost(**passes, nbytes=self.keep.nbytes(self.store))
        self.done.training += seen
        row = {"epoch": epoch, "kept": kept, "loss": mean}
        row["rate"] = self.config.rate((epoch + 1) / self.config.epochs)
        self.done.history.append({**row, "seconds": round(self.done.training.seconds, 3)})
        self.done.loss, self.done.summed = 0.0, 0

    def _said_of_reading(self) -> str:
        total: Counts = self.dataset.ledger.total
        return f"{size_of(total.kept)} kept" if self.store.kind == "ffcv" else str(total)

    def _checkpoint_is_due(self) -> bool:
        return bool(self.checkpoint_steps) and self.done.steps % self.checkpoint_steps == 0

    def _progress(self) -> float:
        return (self.done.epoch + self.done.place / len(self.keep)) / self.config.epochs

    def _save(self) -> None:
        if self.folder is None:
            return
        if self.sampler.policy is not None:
            self.sampler.policy.sync()
        extra = self.extra
        if self.remember is not None:
            # It may be large: the one before is let go first, and none is kept.
            self.extra = extra = {}
            extra = self.remember()
        if not self.accelerator.is_main_process:
            return
        begun = self.sampler.epoch == self.done.epoch
        place = self.done.place if begun else len(self.keep)
        state = {
            "done": self.done.to_dict(),
            "sampler": {**self.sampler.state_dict(), "samples_done": place},
            "stepper": self.stepper.state_dict(),
            "extra": extra,
        }
        # History first: after the last checkpoint there is nothing left to train, nor to write.
        self.folder.write_history(self.done.history)
        self.folder.save_checkpoint(state, self.done.steps)

    def _resume(self) -> None:
        if self.folder is None:
            return
        # Machines may see a folder's new files at different times: one process says which.
        name = on_main(self.accelerator, self.folder.newest_checkpoint)
        if name is None:
            return
        state = on_all(self.accelerator, partial(self.folder.need, name))
        self.done, self.extra = Done.from_dict(state["done"]), state["extra"]
        self.stepper.load_state_dict(state["stepper"])
        if self.config.shuffle == "auto":  # a run that an earlier release began knows windows alone
            windows = training_order(self.store, replace(self.config, shuffle="window"))
            begun = replace(self.sampler.order, **windows)
            if state["sampler"]["plan"].endswith(f"/{begun.name}"):
                self.sampler.order = begun
        self.sampler.load_state_dict(state["sampler"])
