"""Scores from the recorder's signals, by a short specification: no further training."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve.scores.divergences import tdds_from_divergence
from shardsieve.scores.dynamics import (
    confidence,
    dual,
    dynamic_uncertainty,
    frequency,
    threshold_closeness,
    variability,
)
from shardsieve.scores.events import forgetting
from shardsieve.scores.inputs import Floats, finite, one_of, plain, whole_number
from shardsieve.scores.table import oriented, said_of
from shardsieve.scores.windows import mean_of


@dataclass(frozen=True)
class Recorded:
    """How a score comes from signals.

    Attributes:
        scorer: Its name in `ORIENTATION`.
        signal: The recorded signal it needs.
        compute: Maps the signal (T, n) and the options to the paper's quantity.
        options: What may be set besides `first` and `last`, with the type of each.
        windowed: Whether it takes a window of epochs.
        last: Epochs from the end that are used unless told otherwise; None takes all.
    """

    scorer: str
    signal: str
    compute: Callable[..., Floats]
    options: Mapping[str, type] = field(default_factory=dict)
    windowed: bool = False
    last: int | None = None


@dataclass(frozen=True)
class SeedScore:
    """A score of the seed samples.

    Attributes:
        name: `forgetting`, or with options `forgetting.never_learned-easiest`.
        definition: Name and parameters that decide its values.
        values: float64 (n,), higher is kept first.
        parameters: The same as a mapping.
        scorer: Name in `ORIENTATION`.
    """

    name: str
    definition: str
    values: Floats
    parameters: Mapping[str, Any]
    scorer: str


def _mean(signal: ArrayLike) -> Floats:
    return mean_of(finite("signal", signal, "T n"))


def _tdds(divergence: NDArray[np.float64], **how: Any) -> Floats:
    # The first of these epochs is compared with one that is not among them.
    return tdds_from_divergence(divergence[1:], **how)


_DU = {"variant": str, "include_last": bool, "population": bool, "skip_epochs": int}
RECORDED: Mapping[str, Recorded] = MappingProxyType(
    {
        "dyn_unc": Recorded("dynamic_uncertainty", "p_true", dynamic_uncertainty, _DU, True),
        "tdds": Recorded("tdds", "divergence", _tdds, {"decay": float, "squared": bool}, True),
        "el2n": Recorded("el2n", "el2n", _mean),
        "aum": Recorded("aum", "margin", _mean),
        "confidence": Recorded("confidence", "p_true", confidence),
        "cross_entropy": Recorded("cross_entropy", "loss", _mean, last=1),
        "dual": Recorded("dual", "p_true", dual, windowed=True),
        "entropy": Recorded("entropy", "entropy", _mean, last=1),
        "forgetting": Recorded("forgetting", "correct", forgetting, {"never_learned": str}),
        "frequency": Recorded("frequency", "p_true", frequency),
        "grand_last_layer": Recorded("grand_last_layer", "grand", _mean),
        "margin": Recorded("margin", "gap", _mean, last=1),
        "threshold_closeness": Recorded("threshold_closeness", "p_true", threshold_closeness),
        "variability": Recorded("variability", "p_true", variability),
    }
)


def name_of(spec: str) -> str:
    """Return the name of the score that a specification makes.

    >>> name_of("forgetting:never_learned=easiest")
    'forgetting.never_learned-easiest'
    """
    return spec.replace(":", ".").replace("=", "-")


def defined(name: str, parameters: Mapping[str, Any]) -> str:
    """Return the definition of a score: its name, with what decides its values.

    >>> defined("dyn_unc", {"window": 10}), defined("el2n", {})
    ('dyn_unc(window=10)', 'el2n')
    """
    written = ", ".join(f"{key}={value}" for key, value in parameters.items())
    return f"{name}({written})" if written else name


def computable(signals: Iterable[str]) -> list[str]:
    """Return the names of the scores that these signals allow."""
    known = set(signals)
    return [name for name, row in RECORDED.items() if row.signal in known]


def from_signals(spec: str, signals: Mapping[str, ArrayLike], *, window: int = 10) -> SeedScore:
    """Return the score that a specification names, computed from recorded signals.

    Args:
        spec: A name of `RECORDED`, with options behind colons: `dyn_unc:variant=official`,
            `forgetting:never_learned=easiest`, `dual:first=30` (the first 30 epochs only),
            `entropy:last=5` (mean over the last 5), `tdds:window=5`.
        signals: By name, (T, n) each, seen in every epoch; as `Recorder.signal` returns them.
        window: J of the windowed scores, unless the specification says another.

    Raises:
        ValueError: If the name or an option is unknown, a signal is missing, or there are too few
            epochs.

    >>> score = from_signals("confidence:last=2", {"p_true": [[0.0], [0.5], [1.0]]})
    >>> score.name, score.definition, score.values.tolist()
    ('confidence.last-2', 'confidence(last=2)', [-0.75])
    """
    name, options = parsed(spec, {name: _types(row) for name, row in RECORDED.items()})
    row = RECORDED[name]
    if row.signal not in signals:
        raise ValueError(
            f"score {name!r} must have the signal {row.signal!r}, got {', '.join(signals)}; "
            "record it in another run"
        )
    parameters: dict[str, Any] = {"window": window} if row.windowed else {}
    if row.last is not None:
        parameters["last"] = row.last
    parameters |= options
    how = {key: value for key, value in parameters.items() if key not in ("first", "last")}
    signal = np.asarray(plain(signals[row.signal]), dtype=np.float64)
    values = row.compute(_epochs(signal, parameters), **how)
    return SeedScore(
        name=name_of(spec),
        definition=defined(name, parameters),
        values=oriented(row.scorer, values),
        parameters=parameters,
        scorer=row.scorer,
    )


def about(score: SeedScore) -> dict[str, Any]:
    """Return what a stored score says of its formula, JSON-ready."""
    made = {"definition": score.definition, "parameters": dict(score.parameters)}
    return made | said_of(score.scorer)


def parsed(spec: str, known: Mapping[str, Mapping[str, type]]) -> tuple[str, dict[str, Any]]:
    """Return name and options of a specification.

    Args:
        spec: `NAME` or `NAME:KEY=VALUE:...`.
        known: The types of the options, by name of the score.

    Raises:
        ValueError: If name, option or value is none of these.

    >>> parsed("tdds:squared=true", {"tdds": {"squared": bool}})
    ('tdds', {'squared': True})
    """
    name, *given = spec.split(":")
    one_of("score", name, known)
    options: dict[str, Any] = {}
    for one in given:
        key, equals, text = one.partition("=")
        if not equals or key not in known[name]:
            allowed = ", ".join(f"{k}=..." for k in known[name]) or "none"
            raise ValueError(
                f"options of the score {name!r} must be among {allowed}, got {one!r} in {spec!r}"
            )
        options[key] = _converted(spec, key, text, known[name][key])
    return name, options


def _types(row: Recorded) -> dict[str, type]:
    types: dict[str, type] = {"first": int, "last": int, **row.options}
    return types | ({"window": int} if row.windowed else {})


def _converted(spec: str, key: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    else:
        try:
            return kind(text)
        except ValueError:
            pass
    raise ValueError(f"{key} must be a {kind.__name__}, got {text!r} in {spec!r}")


def _epochs(signal: NDArray[np.float64], parameters: Mapping[str, Any]) -> NDArray[np.float64]:
    left = ""
    for key in ("first", "last"):
        if key in parameters:
            count = parameters[key]
            whole_number(key, count, 1)
            if count > len(signal):
                raise ValueError(
                    f"{key} must be at most the {len(signal)} recorded epochs{left}, "
                    f"got {count}; record more"
                )
            signal = signal[:count] if key == "first" else signal[-count:]
            left = f" that {key}={count} leaves"
    return signal
