"""The unsupervised paradigm: TURTLE's pseudo-labels on stored embeddings, through the recorder."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from shardsieve._errors import MissingScoreError, ShardsieveError
from shardsieve.cost import Cost
from shardsieve.keepset import KeepSet
from shardsieve.order import hash_key, permutation
from shardsieve.store.layout import checked_name
from shardsieve.store.store import Store
from shardsieve.train.config import check_count, check_number, check_seed, make_plain
from shardsieve.train.progress import Progress
from shardsieve.train.recorder import Recorder
from shardsieve.train.seedscores import (
    add_scores,
    check_names,
    check_specs,
    put_seed_scores,
)

_BLOCK, _ORDER = 8192, 0x707
Layer = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TurtleConfig:
    """Settings of TURTLE; the defaults are those used for Score Extrapolation.

    Attributes:
        classes: Pseudo-classes to find, at least 2.
        epochs: Passes over the seeds, one recorded row each.
        gamma: Weight of the entropy that keeps the classes even, at least 0.
        inner_steps: Steps of the linear classifier that every task is judged by.
        learning_rate: Of Adam, for the task encoder and for the classifier.
        batch_size: Seeds per step of the task encoder, at most: all steps of an epoch have as many,
            or one less.
        seed: Of first weights and order.
    """

    classes: int
    epochs: int = 400
    gamma: float = 10.0
    inner_steps: int = 10
    learning_rate: float = 1e-3
    batch_size: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        make_plain(self)
        for name, least in (("classes", 2), ("epochs", 1), ("inner_steps", 1), ("batch_size", 2)):
            check_count(name, getattr(self, name), least)
        check_seed(self.seed)
        for name in ("gamma", "learning_rate"):
            check_number(name, getattr(self, name))
        if not (self.gamma >= 0 and self.learning_rate > 0):
            raise ValueError(
                "gamma must be at least 0 and learning_rate above 0, "
                f"got {self.gamma} and {self.learning_rate}"
            )


def task_encoders(points: Tensor, config: TurtleConfig) -> Iterator[Layer]:
    """Yield the task encoder after every epoch: weight (C, d) and bias (C,) of its logits.

    TURTLE (Gadetsky, Jiang, Brbić, ICML 2024, arXiv 2406.07236) with one embedding: softmax of a
    linear layer with normalised weights gives the labelling; a fresh linear classifier is fitted
    to it for a few steps, and the labelling descends that classifier's cross entropy less gamma
    times the entropy of the mean label. A function of points and settings alone on one device.

    Args:
        points: float32 (m, d), on any device.
        config: Settings.
    """
    task = _Task(points.shape[1], config, points.device)
    for epoch in range(config.epochs):
        order, start = torch.from_numpy(permutation(len(points), config.seed, epoch, _ORDER)), 0
        # Evenly: the mean label of a few samples left over would drive all classes together.
        for rows in order.tensor_split(-(-len(points) // config.batch_size)):
            task.step(points[rows.to(points.device)], hash_key(config.seed, epoch, start) % 2**63)
            start += len(rows)
        yield task.layer()


class _Task:
    """The task encoder and its optimiser."""

    def __init__(self, dim: int, config: TurtleConfig, device: torch.device) -> None:
        self.config = config
        weight, self.bias = _fresh(config.classes, dim, hash_key(config.seed) % 2**63, device)
        self.direction = weight.requires_grad_(True)
        self.length = weight.detach().norm(dim=1, keepdim=True).requires_grad_(True)
        parts = [self.direction, self.length, self.bias.requires_grad_(True)]
        self.optimizer = torch.optim.Adam(parts, config.learning_rate)

    def step(self, points: Tensor, draw: int) -> None:
        """Fit a fresh classifier to the labelling, then move the labelling towards it."""
        labels = linear(points, self._weight(), self.bias).softmax(dim=1)
        judged = self._judge(points, labels.detach(), draw)
        even = torch.special.entr(labels.mean(dim=0)).sum()
        self.optimizer.zero_grad()
        loss: Any = cross_entropy(judged, labels) - self.config.gamma * even
        loss.backward()
        self.optimizer.step()

    def layer(self) -> Layer:
        """Return copies of weight and bias."""
        return self._weight().detach().clone(), self.bias.detach().clone()

    def _weight(self) -> Tensor:
        weight: Tensor = self.length * self.direction / self.direction.norm(dim=1, keepdim=True)
        return weight

    def _judge(self, points: Tensor, labels: Tensor, draw: int) -> Tensor:
        classes, dim = self.direction.shape
        inner = [p.requires_grad_(True) for p in _fresh(classes, dim, draw, points.device)]
        optimizer = torch.optim.Adam(inner, self.config.learning_rate)
        for _ in range(self.config.inner_steps):
            optimizer.zero_grad()
            loss: Any = cross_entropy(linear(points, *inner), labels)
            loss.backward()
            optimizer.step()
        return linear(points, *inner).detach()


def _fresh(classes: int, dim: int, draw: int, device: torch.device) -> Layer:
    """Return weights as torch's own linear layer starts with, drawn on the CPU."""
    generator, reach = torch.Generator().manual_seed(draw), dim**-0.5
    weight = torch.empty(classes, dim).uniform_(-reach, reach, generator=generator)
    return weight.to(device), torch.empty(classes).uniform_(-reach, reach, generator=generator).to(
        device
    )


def score_unsupervised(
    store: Store,
    seeds: NDArray[np.int64],
    config: TurtleConfig,
    *,
    embedding: str,
    name: str = "unsupervised",
    window: int = 10,
    scores: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Find pseudo-labels, save the dynamics of the seeds towards them, and store scores.

    Every epoch's task encoder is recorded against the sample's own final pseudo-label. Labels of
    the store are not read. The last task encoder gives every sample with an embedding its
    pseudo-label, stored under the run's name: to train on, see `TrainConfig`. The epochs' encoders
    are held: T·C·(d + 1) float32. Started again it only computes what is not stored yet.

    Args:
        store: Open for writing, with embeddings.
        seeds: int64 (m,), sample ids; those without an embedding are left out.
        config: Settings.
        embedding: Name of a stored embedding.
        name: Of the dynamics, and prefix of the scores.
        window: J of the windowed scores, less than the epochs.
        scores: As in `score_seeds`.
        progress: Called with (epochs done, epochs in all).

    Returns:
        The result: seeds, epochs, pseudo-classes found.

    Raises:
        MissingScoreError: If there is no such embedding, or none for the seeds.
        ShardsieveError: If the name holds another run.
        ValueError: If there are too few epochs for the window, or a score is unknown.
    """
    checked_name(name)
    scored = check_specs(config.epochs, window, scores)
    points, ids = _points(store, seeds, embedding)
    made: dict[str, Any] = {"paradigm": "unsupervised", "model": "turtle", "embedding": embedding}
    made |= {"epochs": config.epochs, "seeds": len(ids), "seed": config.seed}
    made |= {"seeds_digest": KeepSet.from_ids(store, ids).digest, "view": "task encoder"}
    made["training"] = asdict(config)
    held = Recorder.load(store, name) if name in Recorder.runs(store) else None
    if held is not None and {key: held.made.get(key) for key in made} != made:
        raise ShardsieveError(
            f"dynamics {name!r} of {store.path} belong to another run; choose another name"
        )
    store.refuse_other_pseudo_labels(name, {**made, "dynamics": name})
    if held is None:
        check_names(store, [name], scored)
    begin, encoders = time.perf_counter(), list[Layer]()
    if held is None or name not in store.pseudo_label_sets:  # earlier releases stored none
        for encoder in task_encoders(points, config):
            encoders.append(encoder)
            if progress:
                progress(len(encoders), config.epochs)
        labels = _labels(store, embedding, encoders[-1])
        store.put_pseudo_labels(name, labels, provenance={**made, "dynamics": name})
    if held is not None:
        add_scores(store, name, scores, window=window)
        return _result(held)
    recorder = _recorded(points, ids, encoders)
    spent = Cost.timed(time.perf_counter() - begin)
    recorder.made = {**made, **recorder.made, "cost": spent.to_dict()}
    recorder.save(store, name)
    put_seed_scores(store, name, recorder, scores, window=window)
    return _result(recorder)


def _recorded(points: Tensor, ids: NDArray[np.int64], encoders: Sequence[Layer]) -> Recorder:
    blocks = [torch.arange(len(ids))[at : at + _BLOCK] for at in range(0, len(ids), _BLOCK)]
    last = [linear(points[rows], *encoders[-1]).argmax(dim=1) for rows in blocks]
    recorder = Recorder(ids, len(encoders[-1][1]))
    recorder.made = {"pseudo_classes": len(np.unique(torch.cat(last).cpu().numpy()))}
    for encoder in encoders:
        for rows, labels in zip(blocks, last, strict=True):
            logits = linear(points[rows], *encoder)
            recorder.record(torch.from_numpy(ids)[rows], logits, labels)
        recorder.end_epoch(share=False)  # the other processes wait
    return recorder


def _labels(store: Store, embedding: str, encoder: Layer) -> NDArray[np.int64]:
    """Return the pseudo-label of every sample, int64 (n,); -1 for one without an embedding."""
    rows, labels = store.embedding_rows(embedding), np.full(len(store), -1, dtype=np.int64)
    for begin in range(0, len(store), _BLOCK):
        places = np.arange(begin, min(begin + _BLOCK, len(store)))
        block = rows.take(places)
        there = np.isfinite(block).all(axis=1)
        points = torch.from_numpy(block[there].astype(np.float32)).to(encoder[0].device)
        labels[places[there]] = linear(points, *encoder).argmax(dim=1).cpu().numpy()
    return labels


def _points(
    store: Store, seeds: NDArray[np.int64], embedding: str
) -> tuple[Tensor, NDArray[np.int64]]:
    rows = store.embedding(store.embedding_name(embedding))[store.rows(seeds)]
    there = np.isfinite(rows).all(axis=1)
    if not there.any():
        raise MissingScoreError(f"embedding {embedding!r} must be there for seeds, got none")
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.from_numpy(rows[there].astype(np.float32)).to(found), seeds[there]


def _result(recorder: Recorder) -> dict[str, Any]:
    found = recorder.made["pseudo_classes"]
    return {"seeds": len(recorder.ids), "epochs": recorder.epochs, "pseudo_classes": found}
