"""Small runs of everything that uses a GPU. As a program, PART FOLDER, on a pretended one."""

import io
import json
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pretended_device
import torch
from betons import write_beton
from PIL import Image
from tars import write_tar
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import shardsieve as ss
from shardsieve import extrapolate
from shardsieve.extrapolate.on_gpu import SeedsOnGpu
from shardsieve.train.adversary import Adversary
from shardsieve.train.config import TrainConfig
from shardsieve.train.embedding import embed
from shardsieve.train.encoder import load_encoder
from shardsieve.train.images import ImageDecoder, collate, normalised
from shardsieve.train.launch import make_accelerator
from shardsieve.train.nets import ImageNet
from shardsieve.train.recorder import Recorder
from shardsieve.train.runfolder import MODEL
from shardsieve.train.seeding import score_seeds
from shardsieve.train.stopping import Stopping
from shardsieve.train.subset import train_subset
from shardsieve.train.turtle import TurtleConfig, score_unsupervised

# Images of 64 pixels are too large to be sent without waiting, unless they are pinned.
CONFIG = TrainConfig(
    model="on_pretended_device:small",
    epochs=3,
    batch_size=16,
    size=64,
    channels=3,
    resolutions=((0, 8),),
    augment="flip",
    ema=0.9,
    accumulate=2,
    label_smoothing=0.1,
)
SEEDS = replace(CONFIG, epochs=4)
STEPS = 3  # of an epoch
DEVICE = torch.device("cpu")


class Killed(Exception):
    pass


class Watch:
    """Notes where the host waited between the first and the second step of an epoch."""

    def __init__(self, kill=None):
        self.kill, self.waits, self.before = kill, [], 0

    def __call__(self, done, total, note=""):
        if done % STEPS == 2:
            self.waits += pretended_device.WAITS[self.before :]
        self.before = len(pretended_device.WAITS)
        if done == self.kill:
            raise Killed


def small(num_classes):
    """A network that costs next to nothing."""
    body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
    return ImageNet(body, 8, num_classes)


def opened(folder):
    """A store of 120 images of 10 classes, and a keep set of three steps."""
    draw = np.random.default_rng(0)
    for shard in range(3):
        members = []
        for row in range(40):
            kept, image = io.BytesIO(), Image.fromarray(draw.integers(256, size=(8, 8), dtype="u1"))
            image.save(kept, "png")
            members += [(f"{row}.png", kept.getvalue()), (f"{row}.cls", str(row % 10).encode())]
        write_tar(folder / f"{shard}.tar", members)
    store = ss.index(sorted(folder.glob("*.tar")), folder / "store.zarr")
    return store, ss.select(store, keep_fraction=STEPS * 32 / len(store), rule="random")


def weights(run):
    held = torch.load(run / MODEL, map_location="cpu", weights_only=True)["weights"]
    return np.concatenate([values.double().flatten().numpy() for values in held.values()])


def train(folder):
    """A run that is killed in its second epoch, with evaluation; one under a policy."""
    store, keep = opened(folder)
    watches = [Watch(kill=6), Watch(), Watch()]
    policy = ss.InfoBatch(0.5, num_epochs=CONFIG.epochs)
    for name, kept, watch in zip(
        ("run", "run", "policy"), (keep, keep, policy), watches, strict=True
    ):
        how = {"test": store, "evaluate_every": 2, "checkpoint_steps": 5, "progress": watch}
        how |= {"folder": folder / name, "accelerator": make_accelerator()}
        with suppress(Killed):
            train_subset(store, kept, CONFIG, **how)
    made = {name: weights(folder / name) for name in ("run", "policy")}
    return made, watches[0].waits + watches[1].waits


def score(folder):
    """A recorded seed run with held-out seeds, an attacked one, embeddings, pseudo-labels."""
    store, keep = opened(folder)
    out = np.setdiff1d(store.ids(), keep.ids())
    watch, how = Watch(), {"window": 3, "accelerator": make_accelerator()}
    named = ["dyn_unc", "el2n", "grand_last_layer"]
    held = {"held_out": out, "snapshots": 2, "scores": named, "progress": watch}
    score_seeds(store, keep.ids(), SEEDS, folder=folder / "seed", **how, **held)
    attacked = {"adversary": Adversary(steps=2), "folder": folder / "attacked", "name": "attacked"}
    score_seeds(store, keep.ids(), SEEDS, **attacked, **how)
    encoder, how = load_encoder(str(folder / "seed")), {"size": 8, "channels": 3}
    said = encoder.classifiers(10)
    embed(store, encoder.network, name="e", classifiers=said, accelerator=make_accelerator(), **how)
    turtle = TurtleConfig(classes=3, epochs=4, batch_size=50)
    score_unsupervised(store, keep.ids(), turtle, embedding="e", window=3)
    made = {"embedding": store.embedding("e"), "signals": store.signals("e")}
    for run in ("seed", "seed_held_out"):
        recorder = Recorder.load(store, run)
        made |= {f"{run}_{name}": recorder.signal(name) for name in recorder.signals}
    made["pseudo_labels"] = store.pseudo_labels("unsupervised")
    made["attacked"] = store.score("attacked_el2n")
    return made, watch.waits


def fit(folder):
    """Graph networks of every kind, in both graphs, with labels."""
    draw, made = np.random.default_rng(0), {}
    points, rest = draw.normal(size=(60, 4)), draw.normal(size=(30, 4))
    labels, others = draw.integers(3, size=60), draw.integers(4, size=30)
    for kind in ("gcn", "sage", "gat"):
        for graph in ("all", "seeds"):
            how = {"layer": kind, "graph": graph, "epochs": 2, "fan_out": (3, 3)}
            network = extrapolate.GNN(k=5, batch_size=32, device=str(DEVICE), **how)
            beside = {"rest": rest, "rest_labels": others} if graph == "all" else {}
            network.fit(points, points[:, 0], labels=labels, **beside)
            made[f"{kind}_{graph}"] = network.predict(rest, others)
            if beside:
                made[f"{kind}_rest"] = network.predict_rest()
    return made, []


def search(folder):
    """Neighbours, of the methods that ask for them."""
    draw = np.random.default_rng(0)
    points, rest = draw.normal(size=(60, 4)), draw.normal(size=(30, 4))
    signals = {"loss": draw.normal(size=(60, 2))}
    asked = {"loss": draw.normal(size=(30, 2))}
    near = extrapolate.KNN(k=5, device=str(DEVICE)).fit(points, points[:, 0])
    fused = extrapolate.Fused(k=5, device=str(DEVICE)).fit(points, points[:, 0], signals)
    made = {"near": near.predict(rest), "fused": fused.predict(rest, asked)}
    assert (type(near._exact._held) is SeedsOnGpu) == (str(DEVICE) != "cpu")
    return made, []


def loop(folder):
    """Somebody's own loop: its batches carry weights and ids on the host."""
    sampler = ss.PrunedShardSampler(opened(folder)[0], policy=ss.InfoBatch(0.5, num_epochs=3))
    data = ss.ShardDataset(sampler.store, ImageDecoder(size=8))
    loader = DataLoader(data, batch_size=16, sampler=sampler, collate_fn=collate)
    torch.manual_seed(0)
    network, waits = small(10).to(DEVICE), []
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for batch in loader:
            before = len(pretended_device.WAITS)
            logits = network(normalised(batch.images.to(DEVICE)))
            losses = cross_entropy(logits, batch.labels.to(DEVICE), reduction="none")
            optimizer.zero_grad()
            ss.weighted(losses, batch).backward()
            optimizer.step()
            sampler.update(batch.ids, losses)
            losses.detach().zero_()  # it is the loop's own again
            waits += pretended_device.WAITS[before:] if epoch else []  # constants are sent once
        sampler.load_state_dict(sampler.state_dict())  # with the losses that wait on the device
    return {"weights": network.classifier.weight.detach().cpu().numpy()}, waits


def take(folder):
    """Ids and labels that are on the device, given to a store."""
    store, _ = opened(folder)
    ids = torch.from_numpy(store.ids()).to(DEVICE)
    store.put_pseudo_labels("mine", ids % 3)
    made = {"labels": store.pseudo_labels("mine"), "rows": store.rows(ids)}
    made["kept"] = ss.KeepSet.from_ids(store, ids[:9]).ids()
    return made | {"seeds": Recorder(ids[:9], 3).ids}, []


def stop(folder):
    """One of two processes; the other one is asked to stop in its twelfth step."""
    added, before = iter([0, 1, 1]), len(pretended_device.WAITS)

    def all_reduce(counted, *, async_op):
        counted += next(added)
        return SimpleNamespace(wait=lambda: None)

    with mock.patch("torch.distributed.all_reduce", all_reduce):
        pair = Stopping(SimpleNamespace(device=DEVICE, num_processes=2))
        said = [pair.after_step() for _ in range(24)]
    return {"step": np.flatnonzero(said) + 1}, pretended_device.WAITS[before:]


def ffcv(folder):
    """A run over a .beton, of grey images."""
    store = ss.index(write_beton(folder / "x.beton", n=STEPS * 32, side=64), folder / "store.zarr")
    config, watch = replace(CONFIG, channels=1, model="light"), Watch()
    keep, how = ss.select(store, keep_fraction=1.0), {"accelerator": make_accelerator()}
    train_subset(store, keep, config, folder=folder / "run", progress=watch, test=store, **how)
    return {"weights": weights(folder / "run")}, watch.waits


PARTS = {
    "train": train,
    "score": score,
    "fit": fit,
    "search": search,
    "loop": loop,
    "take": take,
    "stop": stop,
    "ffcv": ffcv,
}

if __name__ == "__main__":
    pretended_device.install()
    DEVICE = pretended_device.DEVICE
    made, waits = PARTS[sys.argv[1]](Path(sys.argv[2]))
    np.savez(Path(sys.argv[2]) / "made.npz", **made)
    (Path(sys.argv[2]) / "waits.json").write_text(json.dumps(waits))
