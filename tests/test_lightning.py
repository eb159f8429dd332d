"""Real Lightning over a pruned loader: moving keep sets, validation, stops, and Fabric."""

import json
from contextlib import nullcontext

import forks
import lightning
import pytest
import torch
import webdataset as wds
from lightning.fabric import Fabric
from tars import write_shards
from test_docs import BLOCKS
from test_webdataset import batched_behind, batched_inside
from torch.utils.data import DataLoader

import shardsieve as ss
from shardsieve.train.images import ImageDecoder, collate

pytestmark = pytest.mark.xdist_group("lightning")
EPOCHS = 3
POLICIES = {
    "grows": lambda: ss.AnnealedScore("mine", 0.3, 1.0, EPOCHS),
    "by losses": lambda: ss.InfoBatch(num_epochs=EPOCHS),
}


@pytest.fixture(scope="module")
def documented():
    """The module of the docs, and its store with a score."""
    (code,) = [block.values[0] for block in BLOCKS if "LightningModule" in block.values[0]]
    names = {}
    exec(compile(code, "<docs>", "exec"), names)
    store, number = names["store"], torch.Generator().manual_seed(0)
    store.put_score("mine", torch.rand(len(store), generator=number))
    return names["Module"], store


class Watched(lightning.Callback):
    """Notes every step's epoch and ids, and the validated epochs; saves and stops if told to."""

    def __init__(self, stop=None, path=None):
        """Stop after so many steps, or at the `end` of an epoch."""
        self.seen, self.validated, self.stop, self.path = [], [], stop, path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seen.append((trainer.current_epoch, getattr(batch, "ids", batch[0]).tolist()))
        self._stop(trainer, len(self.seen))

    def on_validation_start(self, trainer, module):
        self.validated.append(trainer.current_epoch)

    def on_train_epoch_end(self, trainer, module):
        self._stop(trainer, "end")

    def _stop(self, trainer, now):
        if now == self.stop:
            trainer.save_checkpoint(self.path)
            raise InterruptedError


def trainer(watched, **how):
    quiet = ("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary")
    how |= dict.fromkeys(quiet, False) | {"use_distributed_sampler": False, "accelerator": "cpu"}
    return lightning.Trainer(**how, max_epochs=EPOCHS, callbacks=[watched], num_sanity_val_steps=0)


def trained(documented, policy, *, workers=0, stop=None, path=None):
    module, store = documented

    class Module(module):
        def train_dataloader(self):
            loader = super().train_dataloader()
            how = {"sampler": loader.sampler, "batch_size": loader.batch_size}
            return DataLoader(loader.dataset, **how, collate_fn=collate, num_workers=workers)

        def val_dataloader(self):
            return DataLoader(torch.zeros(2), batch_size=2)

        def validation_step(self, batch, batch_idx):
            pass

    torch.manual_seed(0)
    sampler = ss.PrunedShardSampler(store, policy=POLICIES[policy](), batch_size=64)
    watched = Watched(stop, path)
    fit = trainer(watched, reload_dataloaders_every_n_epochs=1).fit
    with pytest.raises(InterruptedError) if stop else nullcontext():
        fit(Module(sampler), ckpt_path=None if stop else path, weights_only=False)
    return watched


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_every_epoch_is_whole_and_validated_however_often_it_is_stopped(
    documented, tmp_path, policy
):
    whole = trained(documented, policy)
    expected = range(EPOCHS)
    assert whole.validated == [*expected]
    kept = [[i for epoch, ids in whole.seen if epoch == one for i in ids] for one in expected]
    assert [len(ids) for ids in kept] == [len(set(ids)) for ids in kept]
    assert len(kept[0]) != len(kept[1])
    assert len(kept[-1]) == len(documented[1])
    first = sum(epoch == 0 for epoch, _ in whole.seen)
    for number, (workers, stop) in enumerate([(0, first + 3), (2, first + 5), (2, "end")]):
        path = tmp_path / f"{number}.ckpt"
        before = trained(documented, policy, workers=workers, stop=stop, path=path)
        after = trained(documented, policy, workers=workers, path=path)
        assert before.seen + after.seen == whole.seen
        assert before.validated + after.validated == whole.validated


def test_a_loader_that_lightning_began_too_early_is_refused(documented, tmp_path):
    module, store = documented

    class Module(module):
        """Keeps nothing of the sampler, as fixed keep sets do not ask for it."""

        on_save_checkpoint = on_load_checkpoint = lightning.LightningModule.on_load_checkpoint

    def run(stop, resume=None):
        sampler = ss.PrunedShardSampler(store, policy=ss.RandomDynamic(0.5), batch_size=64)
        data = ss.ShardDataset(store, ImageDecoder(size=8, channels=1))
        loader = DataLoader(data, sampler=sampler, batch_size=64, collate_fn=collate, num_workers=1)
        watched = Watched(stop, tmp_path / "a.ckpt")
        trainer(watched).fit(Module(sampler), loader, ckpt_path=resume, weights_only=False)

    with pytest.raises(InterruptedError):
        run("end")
    with pytest.raises(ss.ShardsieveError, match=r"made before set_epoch\(1\)"):
        run(None, tmp_path / "a.ckpt")


@pytest.mark.parametrize("make", [batched_inside, batched_behind])
def test_a_pruned_loader_is_stopped_and_goes_on_by_itself(documented, tmp_path, make):
    store = documented[1]

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(1, 1)
            pipeline = wds.WebDataset(store.urls, shardshuffle=8).to_tuple("__id__")
            how = {"keep_fraction": 0.1, "rule": "random"}
            self.loader = ss.prune(make(pipeline, workers=1), store, **how)

        def train_dataloader(self):
            self.loader.set_epoch(self.current_epoch)
            return self.loader

        def training_step(self, batch, batch_idx):
            return self.net(torch.zeros(1)).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    def run(stop=None, path=None):
        watched = Watched(stop, tmp_path / "a.ckpt")
        fit = trainer(watched, reload_dataloaders_every_n_epochs=1).fit
        with pytest.raises(InterruptedError) if stop else nullcontext():
            fit(Module(), ckpt_path=path, weights_only=False)
        return watched.seen

    whole = run()
    assert run(stop=50) + run(path=tmp_path / "a.ckpt") == whole
    assert len(whole) == EPOCHS * 36


@pytest.mark.slow
def test_two_ranks_prune_by_the_losses_of_both_and_go_on(tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [25, 40, 14, 6]), tmp_path / "s.zarr")
    forks.run("tests/two_ranks_lightning.py", store.path, tmp_path, ranks=2)
    a, b = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert a["kept"] == b["kept"]
    assert len(a["kept"]["1"]) < len(store) == len(a["kept"]["2"])
    for epoch in range(EPOCHS):
        one, other = ([ids for e, ids in rank["whole"] if e == epoch] for rank in (a, b))
        assert len(one) == len(other)
        assert sorted(id_ for ids in one + other for id_ in ids) == a["kept"][str(epoch)]
    assert (a["parts"], b["parts"]) == (a["whole"], b["whole"])


@pytest.mark.parametrize("workers", [0, 1])
def test_fabric_counts_on_from_the_epoch_that_was_loaded(documented, workers):
    store, fabric = documented[1], Fabric(accelerator="cpu", devices=1)

    def loaded(state=None):
        sampler = ss.PrunedShardSampler(store, policy=ss.RandomDynamic(0.5), batch_size=64)
        if state is not None:
            sampler.load_state_dict(state)
        data = ss.ShardDataset(store, ImageDecoder(size=8, channels=1))
        how = {"sampler": sampler, "collate_fn": collate, "num_workers": workers}
        loader = DataLoader(data, batch_size=64, **how)
        return sampler, fabric.setup_dataloaders(loader, use_distributed_sampler=False)

    sampler, loader = loaded()
    whole, state = [], None
    for epoch in range(4):
        for number, batch in enumerate(loader):
            whole.append(batch.ids.tolist())
            if (epoch, number) == (2, 4):
                state, done = sampler.state_dict(), len(whole)
    sampler, loader = loaded(state)
    rest = [batch.ids.tolist() for _ in range(2) for batch in loader]
    assert (sampler.epoch, rest) == (3, whole[done:])
