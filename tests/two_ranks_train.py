"""One of two real processes: train on a keep set and write down the ids that this rank saw."""

import json
import sys
from pathlib import Path

import torch
from torch import nn

import shardsieve as ss
from shardsieve.train.config import TrainConfig
from shardsieve.train.evaluation import evaluate
from shardsieve.train.launch import make_accelerator
from shardsieve.train.loop import Trainer
from shardsieve.train.nets import load_model


class Watch:
    def __init__(self):
        self.epochs = [[]]

    def record(self, ids, logits, labels):
        self.epochs[-1].append(ids.tolist())


def of_linear(store, accelerator, batch_size):
    """Return the weights of a network without statistics after an epoch of uneven last batches."""
    torch.manual_seed(0)
    keep = ss.KeepSet.from_ids(store, store.ids()[:47])
    config = TrainConfig(epochs=1, batch_size=batch_size, size=8, channels=1, accumulate=2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    trainer = Trainer(model, store, keep, config, accelerator)
    for _ in trainer.epochs():
        pass
    return trainer.network.state_dict()


def accuracies(store, accelerator):
    """Return the accuracy of an untrained network, and that of its classes as clusters."""
    torch.manual_seed(0)
    keep = ss.KeepSet.from_ids(store, store.ids()[:47])
    config = TrainConfig(batch_size=4, size=8, channels=1)
    how = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), store, keep, config, accelerator)
    return [evaluate(*how, matched=matched) for matched in (False, True)]


def main(store_path, out):
    accelerator, store = make_accelerator(), ss.open_store(store_path, mode="r")
    keep = ss.select(store, rule="random", keep_fraction=0.4)
    config = TrainConfig(epochs=2, batch_size=32, size=8, channels=1, workers=1)
    trainer = Trainer(load_model("light", 10, 1), store, keep, config, accelerator)
    watch = Watch()
    for _ in trainer.epochs(watch):
        watch.epochs.append([])
    result = {"epochs": watch.epochs[:2], "keep": keep.ids().tolist()}
    result["accuracies"] = accuracies(store, accelerator)
    Path(out, f"{accelerator.process_index}.json").write_text(json.dumps(result))
    torch.save(of_linear(store, accelerator, 4), Path(out, f"{accelerator.process_index}.pt"))
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
