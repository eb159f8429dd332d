"""What each method of `shardsieve extrapolate` fits on, and what it is tried on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import shardsieve.extrapolate as extrapolators
from shardsieve._errors import MissingScoreError, StoreMismatchError
from shardsieve.extrapolate.direct import Direct
from shardsieve.extrapolate.fused import Fused
from shardsieve.extrapolate.knn import KNN
from shardsieve.extrapolate.protocol import Extrapolator
from shardsieve.extrapolate.quality import cut, out_of_fold
from shardsieve.extrapolate.ranks import ALONE, Ranks
from shardsieve.scores.inputs import one_of
from shardsieve.selection import num_kept
from shardsieve.store.rows import StoredRows, TakenRows
from shardsieve.store.store import Store
from shardsieve.train.labels import labels_behind
from shardsieve.train.recorder import Recorder

METHODS = ("knn", "gnn", "direct", "fused")
ON_SIGNALS = ("direct", "fused")
_FURTHER: dict[str, dict[str, Any]] = {
    "knn": {"search": "auto", "min_recall": 0.99},
    "gnn": {"layer": "gcn", "graph": "all", "labels": False},
}
# Options that belong to one method.
ONLY_WITH = {"knn": ("weights", *_FURTHER["knn"]), "gnn": tuple(_FURTHER["gnn"])}
# Whose search for the neighbours of the rest is chosen once, for all shards.
SEARCHING = ("knn", "gnn", "fused")

_SPEAKS_OF = {
    False: "scores of the seed run, of seeds left out of the fit; not of a full run's scores",
    True: "what the seed run's networks said over its epochs about seeds they were not trained on; "
    "not of a full run's scores",
}

Progress = Callable[[int, int], None]
Values = NDArray[np.float32]
Mask = NDArray[np.bool_]


def taken(method: str, how: dict[str, Any]) -> dict[str, Any]:
    """Return the further arguments that a method takes, as given or as usual."""
    return {name: how.get(name, usual) for name, usual in _FURTHER.get(method, {}).items()}


def usual_k(method: str) -> int:
    """Return how many neighbours a method takes unless told otherwise, as its class does."""
    return 20 if method == "gnn" else 50


def check_tried(method: str, folds: int, *, drawn: int, held_out: float) -> None:
    """Refuse a seed run that will score fewer seeds to try predictions on than there are folds.

    Args:
        method: Of `METHODS`; those on signals are tried on held-out seeds, others on trained ones.
        folds: Of the cross-validation.
        drawn: Seeds in all.
        held_out: Share of them that the seed run holds out, in `[0, 1)`.
    """
    out = num_kept(drawn, held_out) if held_out else 0
    tried, kind = (out, "held-out ") if method in ON_SIGNALS else (drawn - out, "")
    if tried < folds:
        raise ValueError(
            f"predictions must be tried on a {kind}seed per fold, {folds}, got {tried} of {drawn} "
            f"seeds; give more seeds{', or hold out more of them' if kind else ''}"
        )


@dataclass(frozen=True)
class Task:
    """An extrapolation over all n samples of a store.

    Attributes:
        make: Gives a fresh extrapolator.
        target: Name of the score that is learned.
        values: float32 (n,): what is learned and, NaN elsewhere, where.
        tried: bool (n,): samples whose predictions are measured.
        speaks_of: What the measured quality is about.
        fit_beside: (n, ...) by name, what `fit` takes besides.
        predict_beside: Likewise for `predict`.
        joint: Whether the wanted samples are given to `fit` besides, and predicted all at once.
        together: Whether all ranks fit it together, so that each of them must; `joint` is.
    """

    make: Callable[[], Extrapolator]
    target: str
    values: Values
    tried: Mask
    speaks_of: str
    fit_beside: dict[str, NDArray[Any]] = field(default_factory=dict)
    predict_beside: dict[str, NDArray[Any]] = field(default_factory=dict)
    joint: bool = False
    together: bool = False

    def out_of_fold(
        self, rows: StoredRows, *, folds: int, seed: int, progress: Progress | None = None
    ) -> Values:
        """Return predictions of the tried samples, each from other folds; NaN elsewhere: (n,)."""
        learned = np.isfinite(self.values)
        predicted = np.full(len(learned), np.nan, dtype=np.float32)
        predicted[learned] = out_of_fold(
            self.make,
            rows.take(np.flatnonzero(learned)),
            self.values[learned],
            folds=folds,
            seed=seed,
            tried=self.tried[learned],
            beside=cut(self.fit_beside, learned),
            predict_beside=cut(self.predict_beside, learned),
            progress=progress,
        )
        return predicted

    def fitted(self, rows: StoredRows, **more: Any) -> Any:
        """Return an extrapolator fitted on all that is learned, and on `more`."""
        learned, model = np.isfinite(self.values), self.make()
        fitted: Any = model
        points = rows.take(np.flatnonzero(learned))
        fitted.fit(points, self.values[learned], **cut(self.fit_beside, learned), **more)
        return fitted

    def predict(self, rows: StoredRows, wanted: Mask, **more: Any) -> Values:
        """Return the predictions of the wanted samples, float32 (number wanted,); see `fitted`."""
        places = np.flatnonzero(wanted)
        if not self.joint:
            return self.predict_at(rows, places, self.fitted(rows, **more))
        beside = {f"rest_{name}": a for name, a in cut(self.predict_beside, places).items()}
        more |= {"rest": TakenRows(rows, places), **beside}
        found: Values = self.fitted(rows, **more).predict_rest()
        return found

    def predict_at(self, rows: StoredRows, places: NDArray[np.int64], fitted: Any) -> Values:
        """Return the predictions of samples by row, ascending, of what `fitted` returned."""
        beside = cut(self.predict_beside, places)
        found: Values = fitted.predict(rows.take(places), **beside)
        return found


def make_task(
    store: Store,
    method: str,
    *,
    score: str,
    embedding: str,
    readable: Mask,
    k: int,
    weights: str,
    seed: int,
    ranks: Ranks = ALONE,
    **how: Any,
) -> Task:
    """Return what a method does with a store.

    Args:
        store: Open.
        method: One of `METHODS`.
        score: Measured score of the seeds.
        embedding: Name of the embedding, and of the signals made in the same pass.
        readable: bool (n,): samples that have an embedding.
        k: Neighbours.
        weights: Of kNN.
        seed: Of what is drawn.
        ranks: Those that fit a GNN together, and this one's device.
        **how: Further arguments of `KNN` or `GNN`; `labels`: whether they are features of a GNN.

    Raises:
        ValueError: If the method is unknown, or labels are asked for and no seed has one.
        MissingScoreError: If there are no scored seeds, held-out seeds or signals.
    """
    one_of("method", method, METHODS)
    measured = np.where(readable, store.score(score), np.nan).astype(np.float32)
    if not np.isfinite(measured).any() and np.isfinite(store.score(score)).any():
        raise MissingScoreError(
            f"score {score!r} must be of samples that have an embedding, got none such; embed again"
        )
    if not np.isfinite(measured).any():
        raise MissingScoreError(f"score {score!r} has no scored sample; run `shardsieve score`")
    device = ranks.gpu
    if method in ON_SIGNALS:
        where: dict[str, Any] = {"k": k, "seed": seed, "device": device}
        return _on_signals(store, method, score, embedding, measured, readable, **where)
    tried = np.isfinite(measured)
    if method == "knn":
        return Task(
            lambda: KNN(k=k, weights=weights, device=device, **how),
            score,
            measured,
            tried,
            _SPEAKS_OF[False],
        )
    gnn: Any = extrapolators.GNN
    beside = _labels_of(store, score, tried) if how.pop("labels", False) else {}
    return Task(
        lambda: gnn(k=k, seed=seed, ranks=ranks, device=device, **how),
        score,
        measured,
        tried,
        _SPEAKS_OF[False],
        beside,
        beside,
        joint=how.get("graph", "all") == "all",
        together=True,
    )


def _labels_of(store: Store, score: str, seeds: Mask) -> dict[str, NDArray[Any]]:
    labels = labels_behind(store, score)
    if (labels[seeds] < 0).all():
        raise ValueError(
            f"labels must be known for seeds to be features, got none of {int(seeds.sum())} seeds; "
            "use --no-labels, or index again with the --label-member that holds them"
        )
    return {"labels": labels}


def held_out_score(store: Store, score: str, method: str) -> str:
    """Return the name under which the seed run scored its held-out seeds."""
    parts = score.split("_")
    names = ["_".join([*parts[:i], "held_out", *parts[i:]]) for i in range(1, len(parts))]
    for name in names:
        if name in store.scores:
            return name
    cure = "run `shardsieve score --held-out 0.1 --snapshots 4` in a new run folder"
    made = store.provenance(score) if store.has_score(score) else {}
    recorded = f"{made.get('dynamics')}_held_out"
    if recorded in Recorder.runs(store):
        cure = f"run `shardsieve score --from-dynamics {recorded} --scores ...` as for {score!r}"
    raise MissingScoreError(
        f"method {method!r} learns from seeds held out of the seed run, and score {score!r} has "
        f"none; {cure}"
    )


def _on_signals(
    store: Store,
    method: str,
    score: str,
    embedding: str,
    measured: Values,
    readable: Mask,
    *,
    k: int,
    seed: int,
    device: str,
) -> Task:
    target = held_out_score(store, score, method)
    if embedding not in store.signal_tables:
        raise MissingScoreError(
            f"method {method!r} needs the seed network's signals, and embedding {embedding!r} has "
            "none; run `shardsieve embed` with the seed run's network"
        )
    _refuse_other_seeds(store, method, score, embedding)
    signals = store.signals(embedding)
    held = np.where(readable, store.score(target), np.nan).astype(np.float32)
    tried = np.isfinite(held)
    about = {"signals": signals} | (
        {"labels": labels_behind(store, score)} if method == "fused" else {}
    )
    return Task(
        (lambda: Fused(k, seed=seed, device=device))
        if method == "fused"
        else (lambda: Direct(seed=seed)),
        target,
        np.where(tried, held, measured),
        tried,
        _SPEAKS_OF[True],
        {**about, "trained": np.isfinite(measured) & ~tried},
        about,
    )


def _refuse_other_seeds(store: Store, method: str, score: str, embedding: str) -> None:
    """Refuse signals of networks that may have been trained on the score's held-out seeds."""
    theirs = store.signal_array(embedding).attrs.get("seeds_digest")
    ours = store.provenance(score).get("seeds_digest")
    if None not in (theirs, ours) and theirs != ours:
        run = store.provenance(score).get("dynamics")
        raise StoreMismatchError(
            f"method {method!r} needs signals of the networks behind score {score!r}, and those of "
            f"embedding {embedding!r} were trained on other seeds; run `shardsieve embed --model "
            f"FOLDER --name NEW` with the folder of seed run {run!r}, and pass --embedding NEW"
        )
