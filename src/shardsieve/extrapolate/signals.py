"""From what networks say about samples to features, and the regression on features."""

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve._errors import MissingDependencyError
from shardsieve.scores.inputs import plain

REGRESSORS = ("auto", "ridge", "boosting")
# Trees of 20 samples a leaf need many samples; a line does not.
_FEW = 1000

Signals: TypeAlias = ArrayLike | Mapping[str, ArrayLike]
Features = NDArray[np.float32]


def signal_features(signals: Signals | None, num_samples: int) -> Features:
    """Return one row of features per sample, float32 (n, f); NaN stays NaN.

    Args:
        signals: (n,) or (n, s), or by name, each of these; or (n, K, s), of K networks: then the
            mean and the deviation over networks are features as well.
        num_samples: n.

    Raises:
        ValueError: If there are none, or their number is another.

    >>> signal_features({"loss": [1, 2], "entropy": [3, 4]}, 2).tolist()
    [[3.0, 1.0], [4.0, 2.0]]
    """
    if signals is None or (isinstance(signals, Mapping) and not signals):
        raise ValueError(
            "signals must be given, (n, s): what the seed network says about each sample, such as "
            "its entropy and loss; or use KNN, which needs embeddings alone"
        )
    if isinstance(signals, Mapping):  # by name, so that the order of a dictionary decides nothing
        parts = [signal_features(signals[name], num_samples) for name in sorted(signals)]
        return np.concatenate(parts, axis=1)
    array = np.asarray(plain(signals), dtype=np.float32)
    if array.ndim not in (1, 2, 3) or len(array) != num_samples:
        raise ValueError(
            f"signals must have one row for each of {num_samples} embeddings, got shape "
            f"{array.shape}; give the signals of the same samples"
        )
    flat = array.reshape(num_samples, math.prod(array.shape[1:]))
    endless = np.flatnonzero(np.isinf(flat).any(axis=1))
    if len(endless):
        raise ValueError(
            f"signals must be finite, or NaN where missing, got an infinity for sample "
            f"{endless[0]} ({len(endless)} samples); embed with a network that has not diverged"
        )
    if array.ndim < 3 or array.shape[1] < 2:
        return flat
    # A sample without signals has no mean either.
    return np.concatenate([flat, array.mean(axis=1), array.std(axis=1)], axis=1)


def names_of(signals: Signals | None) -> list[str] | None:
    """Return the names of signals in the order of their features; None where they have none."""
    return sorted(signals) if isinstance(signals, Mapping) else None


def check_names(signals: Signals | None, fitted: list[str] | None) -> None:
    """Refuse signals of other names than those of the fit, of which no feature is the same.

    Raises:
        ValueError: Naming both.
    """
    names = names_of(signals)
    if signals is not None and names != fitted:
        given, wanted = (", ".join(n) if n is not None else "no names" for n in (names, fitted))
        raise ValueError(
            f"signals must be named as those of fit ({wanted}), got {given}; give the same signals"
        )


def num_networks(signals: Signals | None) -> int:
    """Return of how many networks there are signals, at least 1.

    >>> num_networks({"loss": np.zeros((5, 4, 1)), "other": np.zeros(5)})
    4
    """
    if isinstance(signals, Mapping):
        return max(map(num_networks, signals.values()), default=1)
    shape = np.shape(plain(signals))
    return max(1, shape[1]) if len(shape) == 3 else 1


def first_networks(signals: Signals, count: int) -> Signals:
    """Return the signals of the first networks; what is not by network stays."""
    if isinstance(signals, Mapping):
        return {name: np.asarray(first_networks(part, count)) for name, part in signals.items()}
    array = np.asarray(plain(signals), dtype=np.float32)
    return array[:, :count] if array.ndim == 3 else array


def rows_with_signals(features: Features) -> NDArray[np.bool_]:
    """Return which rows hold a number: bool (n,); ValueError if none does."""
    known = np.asarray(~np.isnan(features).all(axis=1))
    if not known.any():
        raise ValueError(
            "signals must hold numbers for at least one sample, got none; give those of samples "
            "that the network was not trained on"
        )
    return known


def predicted(model: Any, features: Features) -> Features:
    """Return a fitted regressor's predictions, float32 (n,).

    Raises:
        ValueError: If the features are not as many as were fitted.
    """
    if not len(features):
        return np.zeros(0, dtype=np.float32)
    if features.shape[1] != model.n_features_in_:
        raise ValueError(
            f"signals must be those of fit, which made {model.n_features_in_} features, got "
            f"{features.shape[1]}; give the same signals of as many networks"
        )
    return np.asarray(model.predict(features), dtype=np.float32)


def make_regressor(kind: str, num_samples: int, seed: int) -> Any:
    """Return an unfitted scikit-learn regressor that takes missing features.

    Args:
        kind: `ridge`, `boosting`, or `auto`: boosting from 1,000 samples on.
        num_samples: To fit on.
        seed: Of the trees.

    Raises:
        MissingDependencyError: Without scikit-learn.
    """
    try:
        from sklearn.ensemble import HistGradientBoostingRegressor
        from sklearn.impute import SimpleImputer
        from sklearn.linear_model import RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise MissingDependencyError(
            "Direct and Fused need scikit-learn: install shardsieve[direct]"
        ) from error
    if kind == "boosting" or (kind == "auto" and num_samples >= _FEW):
        how = {"max_iter": 150, "learning_rate": 0.05, "max_leaf_nodes": 8}
        return HistGradientBoostingRegressor(
            **how,
            min_samples_leaf=20,
            l2_regularization=1.0,
            early_stopping=False,
            random_state=seed,
        )
    return make_pipeline(
        SimpleImputer(keep_empty_features=True), StandardScaler(), RidgeCV(np.logspace(-2, 4, 13))
    )
