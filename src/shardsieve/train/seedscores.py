"""From recorded dynamics to stored scores of the seed samples."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardsieve._errors import ShardsieveError
from shardsieve.scores.recorded import (
    RECORDED,
    SeedScore,
    about,
    computable,
    from_signals,
    name_of,
)
from shardsieve.store.store import Store
from shardsieve.train.measures import KNOWN, PLAIN, SIGNALS
from shardsieve.train.recorder import Recorder

_PLENTY, _USUAL_WINDOW = 1000, 10
Progress = Callable[[int, int], None]


def signals_for(specs: Iterable[str] | None) -> tuple[str, ...]:
    """Return the signals to record: the usual ones, or those that cost little and what specs need.

    >>> signals_for(["tdds:window=5"]) == signals_for(None), "divergence" in signals_for(["el2n"])
    (True, False)
    """
    if specs is None:
        return SIGNALS
    named = {spec.partition(":")[0] for spec in specs}
    needed = {row.signal for name, row in RECORDED.items() if name in named}
    return tuple(name for name in KNOWN if name in PLAIN or name in needed)


def check_specs(
    epochs: int, window: int, specs: Sequence[str] | None, *, match_steps_of: int | None = None
) -> list[SeedScore]:
    """Return the scores that a run will make, of a sample that nothing is known of.

    Args:
        epochs: Of the run.
        window: J of the windowed scores.
        specs: As in `from_signals`; None takes every score that the signals allow.
        match_steps_of: Of a run that is given its epochs once samples are counted: they are as many
            as it takes, and a window is made to fit them.

    Raises:
        ValueError: Now and not after the run: too few epochs or too small a window for one of
            them, a wrong specification.
    """
    if match_steps_of is not None:
        epochs, window = _PLENTY, min(window, _USUAL_WINDOW)
    nothing = {name: np.zeros((epochs, 1)) for name in signals_for(specs)}
    return [
        _of_enough_epochs(spec, nothing, window)
        for spec in (computable(nothing) if specs is None else specs)
    ]


def _of_enough_epochs(spec: str, signals: Mapping[str, Any], window: int) -> SeedScore:
    try:
        return from_signals(spec, signals, window=window)
    except ValueError as error:
        raise ValueError(
            f"{error} (of score {spec}, which `shardsieve score --scores` can leave out)"
        ) from error


def check_names(store: Store, runs: Iterable[str], scores: Sequence[SeedScore]) -> None:
    """Refuse to make scores of runs whose names stand for others in the store.

    Raises:
        StoreMismatchError: If there is one.
    """
    for run in runs:
        for score in scores:
            store.check_score(f"{run}_{score.name}", score.definition)


def seed_scores(
    recorder: Recorder,
    specs: Iterable[str] | None = None,
    *,
    window: int = 10,
    progress: Progress | None = None,
) -> list[SeedScore]:
    """Return scores of the samples that were seen in every epoch.

    Args:
        recorder: With at least one epoch.
        specs: As in `from_signals`; None takes every score that the signals allow.
        window: J of the windowed scores.
        progress: Called with (scores computed, scores in all).

    Raises:
        ValueError: If a specification is wrong, or there are too few epochs for it.
    """
    signals = _Seen(recorder)
    wanted = computable(signals) if specs is None else list(specs)
    made = list[SeedScore]()
    for spec in wanted:
        made.append(from_signals(spec, signals, window=window))
        if progress:
            progress(len(made), len(wanted))
    return made


class _Seen(Mapping[str, NDArray[np.float32]]):
    """Signals (T, n) of the seeds that were seen in every epoch, each made when it is asked for."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder, self._seen = recorder, seen_always(recorder)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._recorder.signal(name)[:, self._seen]

    def __contains__(self, name: object) -> bool:
        return name in self._recorder.signals

    def __iter__(self) -> Iterator[str]:
        return iter(self._recorder.signals)

    def __len__(self) -> int:
        return len(self._recorder.signals)


def seen_always(recorder: Recorder) -> NDArray[np.bool_]:
    """Return which seeds have a value in every epoch, bool (m,); an unreadable image has none."""
    # A divergence needs the epoch before; every other signal tells.
    plain = [name for name in recorder.signals if name != "divergence"]
    seen = np.ones(len(recorder.ids), dtype=np.bool_)
    for name in plain[:1]:
        seen &= np.isfinite(recorder.signal(name)).all(axis=0)
    return seen


def put_seed_scores(
    store: Store,
    run: str,
    recorder: Recorder,
    specs: Iterable[str] | None = None,
    *,
    window: int = 10,
    progress: Progress | None = None,
) -> list[str]:
    """Store scores as `RUN_NAME`, NaN for samples that are no seeds; return their names.

    Each says how it was made: definition and parameters, the run with its seeds, model, epochs and
    view, and that it was measured.

    Raises:
        ValueError: As in `seed_scores`; nothing is stored then.
        ShardsieveError: If no seed has a value in every epoch; nothing is stored then.
        StoreMismatchError: If a name stands for another definition.
    """
    made = seed_scores(recorder, specs, window=window, progress=progress)
    seen = seen_always(recorder)
    if len(seen) and not seen.any():
        raise ShardsieveError(
            f"run {run!r} has no seed with a number in every epoch: its training diverged, or no "
            "image can be read; score again in another run folder with a lower learning rate"
        )
    rows = store.rows(recorder.ids[seen])
    names = []
    for score in made:
        values = np.full(len(store), np.nan)
        values[rows] = score.values
        how = {**about(score), "dynamics": run, **recorder.made, "measured": True}
        names.append(f"{run}_{score.name}")
        store.put_score(names[-1], values, provenance=how | _ceiling_of(store, names[-1], values))
    return names


def _ceiling_of(store: Store, name: str, values: NDArray[np.float64]) -> dict[str, Any]:
    """Return how well these very values repeat in a second run, where that is known."""
    if name not in store.scores or "ceiling" not in store.provenance(name):
        return {}
    same = np.array_equal(store.score(name), values.astype(np.float32), equal_nan=True)
    return {"ceiling": store.provenance(name)["ceiling"]} if same else {}


def forget_run(store: Store, run: str) -> None:
    """Delete what a seed run left in a store, with its second run for the ceiling, if it is there.

    These are its dynamics, scores and pseudo-labels, also those of held-out seeds and scores
    computed later.
    """
    runs = [f"{run}{again}{held}" for again in ("", "_again") for held in ("", "_held_out")]
    for name in store.scores:
        if store.provenance(name).get("dynamics") in runs:
            store.forget_score(name)
    for name in store.pseudo_label_sets:
        if store.pseudo_label_making(name).get("dynamics") in runs:
            store.forget_pseudo_labels(name)
    for one in runs:
        Recorder.forget(store, one)


def scores_from_dynamics(
    store: Store,
    run: str,
    specs: Iterable[str] | None = None,
    *,
    window: int | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Store further scores of a recorded run, without any training; return their names.

    Args:
        store: Open for writing.
        run: Name in `dynamics/`.
        specs: As in `from_signals`; None takes every score that the signals allow.
        window: J of the windowed scores; None takes that of the run's own, 10 if it has none.
        progress: Called with (scores computed, scores in all).

    Raises:
        ShardsieveError: If the run recorded no epoch, or the store has no such run.
        ValueError: If a specification is wrong, or there are too few epochs for it.
    """
    recorder = Recorder.load(store, run)
    if not recorder.epochs:
        raise ShardsieveError(f"run {run!r} of {store.path} has no epoch; score it again")
    window = _window_of(store, run) if window is None else window
    return put_seed_scores(store, run, recorder, specs, window=window, progress=progress)


def _window_of(store: Store, run: str) -> int:
    for name in (f"{run}_{score}" for score, row in RECORDED.items() if row.windowed):
        made = store.provenance(name) if name in store.scores else {}
        if made.get("dynamics") == run:
            return int(made["parameters"]["window"])
    return _USUAL_WINDOW


def add_scores(
    store: Store, run: str, specs: Iterable[str] | None = None, *, window: int = 10
) -> list[str]:
    """Store those scores of a recorded run that are not stored yet; return their names."""
    recorder = Recorder.load(store, run)
    missing = [
        spec
        for spec in (computable(recorder.signals) if specs is None else specs)
        if f"{run}_{name_of(spec)}" not in store.scores
    ]
    return put_seed_scores(store, run, recorder, missing, window=window)
