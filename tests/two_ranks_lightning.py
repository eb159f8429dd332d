"""One of two real processes: Lightning under a policy, stopped in mid-epoch, and gone on with."""

import json
import sys
from contextlib import suppress
from pathlib import Path

import lightning
import torch
from torch.utils.data import DataLoader

import shardsieve as ss

EPOCHS, BATCH = 3, 8


class Module(lightning.LightningModule):
    """The pattern of the docs, and it notes every step's epoch and ids."""

    def __init__(self, store, stop):
        super().__init__()
        self.net, self.store, self.stop = torch.nn.Linear(1, 1), store, stop
        policy = ss.InfoBatch(num_epochs=EPOCHS)
        self.sampler = ss.PrunedShardSampler(store, policy=policy, batch_size=BATCH)
        self.seen, self.kept = [], {}

    def train_dataloader(self):
        self.sampler.set_epoch(self.current_epoch)
        self.kept[self.current_epoch] = self.sampler.keep_set.ids().tolist()
        return DataLoader(
            ss.ShardDataset(self.store), BATCH, sampler=self.sampler, collate_fn=ids_and_weights
        )

    def training_step(self, batch, batch_idx):
        ids, weights = batch
        losses = (self.net(torch.ones(len(ids), 1)) - ids[:, None] % 7).square().flatten()
        self.sampler.update(ids, losses)
        self.seen.append((self.current_epoch, ids.tolist()))
        return ss.weighted(losses, weights)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if len(self.seen) == self.stop:
            self.trainer.save_checkpoint(Path(self.trainer.default_root_dir, "a.ckpt"))
            raise InterruptedError

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)

    def on_save_checkpoint(self, checkpoint):
        self.sampler.policy.sync()
        checkpoint["sampler"] = self.sampler.state_dict()

    def on_load_checkpoint(self, checkpoint):
        self.sampler.load_state_dict(checkpoint["sampler"])


def ids_and_weights(samples):
    ids, weights = zip(*((s["__id__"], s["__weight__"]) for s in samples), strict=True)
    return torch.tensor(ids), torch.tensor(weights)


def trained(store, out, stop=None, resume=None):
    torch.manual_seed(0)
    module = Module(store, stop)
    quiet = ("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary")
    how = dict.fromkeys(quiet, False) | {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    how |= {"use_distributed_sampler": False, "reload_dataloaders_every_n_epochs": 1}
    trainer = lightning.Trainer(**how, max_epochs=EPOCHS, default_root_dir=out)
    with suppress(InterruptedError):
        trainer.fit(module, ckpt_path=resume, weights_only=False)
    return module


def main(store_path, out):
    store = ss.open_store(store_path, mode="r")
    whole = trained(store, out)
    first = trained(store, out, stop=len(whole.seen) // 2)
    rest = trained(store, out, resume=str(Path(out, "a.ckpt")))
    result = {"whole": whole.seen, "parts": first.seen + rest.seen, "kept": whole.kept}
    Path(out, f"{torch.distributed.get_rank()}.json").write_text(json.dumps(result))
    torch.distributed.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
