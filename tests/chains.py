"""Recipes of tiny chains, whose makers are functions of what they are given and can be killed."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml

import shardsieve as ss
from shardsieve.commands import chain, running, steps
from shardsieve.train.encoder import save_network
from shardsieve.train.recorder import Recorder
from shardsieve.train.runfolder import RESULT, RunFolder

SHARDS = [7, 12, 5]


class Killed(BaseException):
    pass


def number(*parts):
    """A number that stands for these values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def values(n, *parts):
    return np.random.default_rng(number(*parts)).random(n).astype(np.float32)


class Makers:
    """Stand-ins for the commands of a chain, each as long-lived and as picky as the real one.

    Attributes:
        ran: Names of the steps that were made.
        left: Moments until the process is killed; None never kills it.
    """

    def __init__(self, monkeypatch):
        self.ran, self.left = [], None
        makers = ("score_store", "embed_store", "ask_networks", "extrapolate_score", "train_store")
        for name in makers:
            monkeypatch.setattr(running, name, getattr(self, name))
        monkeypatch.setattr(running, "report_score", self.report_score)
        put, forget = steps.Steps._put, chain.forget_run
        monkeypatch.setattr(steps.Steps, "_put", lambda *a: (self.moment(), put(*a), self.moment()))
        monkeypatch.setattr(chain, "forget_run", lambda *a: (self.moment(), forget(*a)))

    def moment(self):
        if self.left == 0:
            self.left = None
            raise Killed
        if self.left is not None:
            self.left -= 1

    def score_store(self, path, config, *, folder, name, scores, ceiling, window, **how):
        self.ran.append("score")
        how.pop("checkpoint_steps")
        clean = how.pop("clean_pass")
        run, store, result = RunFolder(folder), ss.open_store(path), {"run": str(folder)}
        folder.mkdir(parents=True, exist_ok=True)
        wanted = [spec for spec in ("dyn_unc", "el2n") if scores is None or spec in scores]
        names = [f"{name}_{spec}" for spec in wanted]
        result["scores"] = names
        trained = number(config.to_dict(), how)
        if run.result() is not None and name in Recorder.runs(store):
            return result
        self.moment()
        torch.manual_seed(trained)
        network, config = tiny(3), replace(config, model="chains:tiny")
        for epoch in range(1, how.get("snapshots", 1)):
            save_network(run, network, config, 3, epoch=epoch)
        recorder = Recorder(store.ids()[:3], 3, signals=("loss",))
        recorder.save(store, name)
        self.moment()
        held = [f"{name}_held_out"] if "held_out" in how else []
        for one, spec in [(one, spec) for one in (name, *held) for spec in wanted]:
            made = {"definition": f"{spec}({window})", "dynamics": one}
            made |= {"ceiling": {"again": True}} if ceiling else {}
            seeds = values(len(store), spec, window, clean, trained, one)
            store.put_score(f"{one}_{spec}", seeds, provenance=made)
            self.moment()
        save_network(run, network, config, 3)
        run.write_json(RESULT, {})
        self.moment()
        return result

    def embed_store(self, path, *, model, name, **how):
        self.ran.append("embed")
        for nothing in ("max_unreadable", "workers"):
            how.pop(nothing)
        store = ss.open_store(path)
        weights = how.pop("weights")
        network = weights.read_text() if weights else running.marks.mark_of_network(model)
        array = store.embedding_array(name, 2)
        made = f"{number(network, how)}"
        if array.attrs.get("weights", made) != made:
            raise ss.StoreMismatchError(name)
        array.attrs["weights"] = made
        for shard in range(store.num_shards):
            self.moment()
            array[shard] = values(2 * store.rows_per_shard, made, shard).reshape(-1, 2)
        return {"embedding": name}

    def ask_networks(self, path, embedding, specs):
        self.ran.append("ask")
        store, names = ss.open_store(path), [f"asked_{spec}" for spec in specs]
        said = store.embedding(embedding).tolist()
        for name in names:
            made = {"definition": f"{name}({embedding})", "embedding": embedding}
            store.begin_score(name, made, afresh=True)
            self.moment()
            store.write_score(name, values(len(store), said, name))
            store.finish_score(name)
            self.moment()
        return {"embedding": embedding, "scores": names}

    def extrapolate_score(self, path, score, name, embedding, *, folds, **how):
        self.ran.append("extrapolate")
        store = ss.open_store(path)
        made = {"definition": f"{how['method']}({score})", "quality": {"folds": folds}}
        made["of"] = store.provenance(score)
        store.begin_score(name, made, afresh=True)
        self.moment()
        read = store.score(score).tolist(), store.embedding(embedding).tolist()
        store.write_score(name, values(len(store), *read, how))
        self.moment()
        store.finish_score(name, cost=self.ran)
        self.moment()
        return {"score": name}

    def train_store(self, path, config, *, out, rule, policy, policy_score, **how):
        self.ran.append("train")
        for nothing in ("checkpoint_steps", "track"):
            how.pop(nothing)
        run, store = RunFolder(out), ss.open_store(path)
        out.mkdir(parents=True, exist_ok=True)
        if run.result() is None:
            how["test"] = ss.open_store(how["test"]).fingerprint if how["test"] else None
            how["full_run"] = how["full_run"] and (how["full_run"] / RESULT).read_text()
            kept = policy or ss.select(store, **rule).ids().tolist()
            self.moment()
            (out / "model.pt").write_text(str(number(config.to_dict(), kept, how)))
        if policy_score:
            learned = values(len(store), policy)
            made = {"definition": str(policy)}
            store.put_score(policy_score, learned, provenance=made)
        self.moment()
        run.write_json(RESULT, {})
        self.moment()
        return {}

    def report_score(self, path, out, *, score, keep_fraction, reference):
        self.ran.append("report")
        store = ss.open_store(path)
        quality = store.provenance(score).get("quality")
        out.write_text(str(number(store.score(score).tolist(), quality, keep_fraction)))
        return {"report": str(out)}


def tiny(num_classes):
    """A network that is made in no time; recipes name it as `chains:tiny`."""
    return torch.nn.Linear(2, num_classes)


def write(folder, recipe):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def changed(recipe, **settings):
    """A recipe with other settings, named `section__setting`, or with whole other sections."""
    made = {name: dict(part) if isinstance(part, dict) else part for name, part in recipe.items()}
    for name, value in settings.items():
        section, _, setting = name.partition("__")
        if setting:
            made[section] = {**made.get(section, {}), setting: value}
        else:
            made[section] = value
    return {name: part for name, part in made.items() if part is not None}


def recipe_in(folder, data):
    """A recipe of every step, over these shards; `mine` are a score and labels of the user."""
    folder.mkdir(exist_ok=True)
    for name in ("train.zarr", "test.zarr"):
        ss.index(data, folder / name)
    store = ss.open_store(folder / "train.zarr")
    store.put_score("mine", np.arange(len(store)))
    store.put_pseudo_labels("mine", np.arange(len(store)) % 3)
    (folder / "weights").write_text("1")
    (folder / "full").mkdir()
    (folder / "full" / RESULT).write_text(full_run(3))
    return {
        "work": str(folder / "work"),
        "data": {"store": str(folder / "train.zarr"), "urls": [str(p) for p in data]},
        "test": {"store": str(folder / "test.zarr"), "urls": [str(p) for p in data]},
        "score": {"epochs": 12, "window": 3},
        "embed": {},
        "extrapolate": {"k": 5},
        "select": {"keep_fraction": 0.5},
        "train": {"epochs": 2},
        "report": {},
    }


def full_run(seconds):
    """The result of a run on everything."""
    cost = {"forward": 9, "backward": 9, "seconds": seconds, "device_seconds": 1, "bytes": 1}
    return json.dumps({"cost": {"phases": {"training": cost}}, "kept": 24, "of": 24})


class Again:
    """A chain that has been made, to start many stories from."""

    def __init__(self, folder, recipe):
        self.folder, self.recipe = folder, recipe
        self._kept = folder.with_name(f"{folder.name}.kept")
        shutil.copytree(folder, self._kept)

    def restore(self):
        shutil.rmtree(self.folder)
        shutil.copytree(self._kept, self.folder)
        return self.recipe


def outcome(result, recipe):
    """All that a chain has made, without where and when."""
    store, work = ss.open_store(recipe["data"]["store"]), Path(recipe["work"])
    names = [s for s in store.scores if s.startswith("seed") or s == result["extrapolate"]["score"]]
    learned = recipe["train"].get("policy_score")
    names += [*([learned] if learned else []), *result.get("ask", {}).get("scores", [])]
    return {
        "scores": {name: store.score(name).tolist() for name in names},
        "embeddings": {n: store.embedding(n).tolist() for n in store.embeddings},
        "trained": (Path(result["train"]["run"]) / "model.pt").read_text(),
        "seed runs": [p.name for p in work.glob("score-*")],
        "report": (work / "report.html").read_text(),
    }
