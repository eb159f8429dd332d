"""Checks that every scorer makes once, at its entrance; arrays and tensors are taken alike.

Shapes are written as the names of their axes: `"T n C"` is epochs, samples, classes; `R` is runs.
"""

import sys
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# Half-precision and label-smoothing arithmetic may overshoot 1 by rounding; logits by far more.
_ABOVE_ONE = 1e-6
_PLACES = {"T": " in epoch ", "R": " in run "}
_LONGEST_SHOWN = 60

_RECORD = "record every sample in every epoch, and none after training diverged"


def plain(values: Any) -> Any:
    """Return values as numpy can take them: tensors, also in a list, detached and on the CPU.

    Floats of fewer than 32 bits become float32, which holds every one of them: numpy has no
    bfloat16. Anything else is left as it is, and torch is not loaded for it.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return values
    if isinstance(values, torch.Tensor):
        here = values.detach().cpu()
        small = here.is_floating_point() and here.element_size() < 4
        return (here.float() if small else here).numpy()
    # Of a batch there are many values, and few types.
    kinds = set(map(type, values)) if isinstance(values, (list, tuple)) else ()
    if any(issubclass(kind, torch.Tensor) for kind in kinds):
        return [plain(value) for value in values]
    return values


def real(name: str, values: ArrayLike) -> NDArray[Any]:
    """Return the values as an array of real numbers, whose floats may be NaN or infinite.

    Raises:
        ValueError: If they are none: complex, text, dates, a generator, or partly masked.
    """
    _refuse_masked(name, values)
    try:
        array = np.asarray(plain(values))
        if array.dtype.kind == "O":
            array = array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{name} must be an array or a list of real numbers, got {_shown(values)}: {error}"
        ) from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be real numbers, got {array.dtype}; convert them first")
    return array


def _refuse_masked(name: str, values: ArrayLike) -> None:
    if np.ma.is_masked(values):
        raise ValueError(f"{name} must hold no masked values; fill them first: .filled(...)")


def _shown(values: Any) -> str:
    text = repr(values)
    return text if len(text) <= _LONGEST_SHOWN else f"a {type(values).__name__}"


def finite(name: str, values: ArrayLike, *shapes: str, cure: str = _RECORD) -> Floats:
    """Return the values as float64 of one of the shapes, all of them finite."""
    array = np.asarray(real(name, values), dtype=np.float64)
    axes = _axes(name, array, shapes)
    _refuse(name, "be finite", array, ~np.isfinite(array), axes, cure)
    return array


def probabilities(name: str, values: ArrayLike, *shapes: str) -> Floats:
    """Return the values as float64 of one of the shapes, in `[0, 1]`: a hair above 1 becomes 1."""
    array = finite(name, values, *shapes)
    outside = (array < 0) | (array > 1 + _ABOVE_ONE)
    cure = "pass probabilities, not logits"
    _refuse(name, "lie in [0, 1]", array, outside, _axes(name, array, shapes), cure)
    return np.minimum(array, 1.0) if (array > 1).any() else array


def truths(name: str, values: ArrayLike, shape: str) -> NDArray[np.bool_]:
    """Return the values as bool of the shape; numbers must be 0 or 1."""
    _refuse_masked(name, values)
    array = np.asarray(plain(values))
    axes = _axes(name, array, (shape,))
    cure = "compare with the label first"
    _refuse(name, "be true or false", array, (array != 0) & (array != 1), axes, cure)
    return array.astype(np.bool_)


def class_ids(labels: ArrayLike, num_samples: int, num_classes: int) -> NDArray[np.int64]:
    """Return the labels as int64 (n,), each in `[0, num_classes)`."""
    array = integers("labels", labels)
    if array.shape != (num_samples,):
        raise ValueError(
            f"labels must have shape ({num_samples},), got {array.shape}; pass one per sample"
        )
    outside = (array < 0) | (array >= num_classes)
    cure = "number the classes from 0"
    _refuse("labels", f"lie in [0, {num_classes})", array, outside, ["n"], cure)
    return array


def integers(
    name: str, values: ArrayLike, *, cure: str = "convert them first"
) -> NDArray[np.int64]:
    """Return the values as int64; what is empty may be of any type.

    Raises:
        ValueError: If they are no integers, or partly masked.
    """
    _refuse_masked(name, values)
    array = np.asarray(plain(values))
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, got {array.dtype}; {cure}")
    return array.astype(np.int64)


def positions_within(positions: ArrayLike, num_samples: int) -> NDArray[np.int64]:
    """Return the positions as int64 (b,), each in `[0, num_samples)` and none twice."""
    array = integers("positions", positions)
    if array.ndim != 1:
        raise ValueError(f"positions must have shape (b,), got {array.shape}; flatten the batch")
    outside = array[(array < 0) | (array >= num_samples)]
    if len(outside):
        raise ValueError(
            f"positions must lie in [0, {num_samples}), got {outside[0]}; "
            "map sample ids to positions in the seed subset"
        )
    unique, times = np.unique(array, return_counts=True)
    if len(unique) < len(array):
        twice = unique[times > 1][0]
        raise ValueError(
            f"positions must be unique within an update, got {twice} more than once; "
            "leave out the samples that a padded batch repeats"
        )
    return array


def batch_values(
    values: ArrayLike, positions: NDArray[np.int64], highest: float, lowest: float = 0.0
) -> Floats:
    """Return one value per position as float64 (b,), finite and in `[lowest, highest]`.

    A hair above the highest becomes the highest.
    """
    array = np.asarray(real("values", values), dtype=np.float64)
    if array.shape != positions.shape:
        raise ValueError(
            f"values must have shape {positions.shape}, got {array.shape}; pass one per position"
        )
    bad = np.flatnonzero(~np.isfinite(array) | (array < lowest) | (array > highest + _ABOVE_ONE))
    if len(bad):
        first = bad[np.argmin(positions[bad])]
        condition = f"lie in [{lowest:g}, {highest:g}]"
        if np.isinf(highest):
            condition = "be finite" if np.isinf(lowest) else f"be finite and at least {lowest:g}"
        raise ValueError(
            f"values must {condition}, got {array[first]} for sample {positions[first]}; "
            "stop recording where training diverges"
        )
    return np.minimum(array, highest)


def plain_number(value: Any) -> Any:
    """Return a number of numpy's as Python's, which JSON and states hold, and all else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def whole_number(name: str, value: Any, least: int) -> None:
    """Refuse anything but an integer of at least `least`; a truth value is none."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(
            f"{name} must be a whole number of at least {least}, got {value!r}; pass one"
        )


def refuse_no_state(owner: str, state: Any, names: Collection[str]) -> None:
    """Refuse what is no mapping, or lacks a name."""
    must = f"state must be what state_dict of a {owner} returned"
    if not isinstance(state, Mapping):
        raise ValueError(f"{must}, got {state!r}")
    for name in names:
        if name not in state:
            raise ValueError(f"{must}, got one without {name!r}")


def one_of(name: str, value: str, known: Collection[str]) -> None:
    """Refuse a word that is not among the known ones."""
    if value not in known:
        raise ValueError(
            f"{name} must be one of {', '.join(known)}, got {value!r}; take one of these"
        )


def enough_epochs(name: str, epochs: int, window: int, *, more: bool, skipped: int = 0) -> None:
    """Refuse a recording of fewer epochs than the window, or of as many where `more` is needed."""
    if epochs < window + more:
        relation = "more than" if more else "at least"
        after = f" after skip_epochs={skipped}" if skipped else ""
        raise ValueError(
            f"{name} must have {relation} window={window} epochs, got {epochs}{after}; "
            "train longer or pass a smaller window"
        )


def two_classes(name: str, num_classes: int) -> None:
    """Refuse a single class, which has no runner-up."""
    if num_classes < 2:
        raise ValueError(
            f"{name} must have at least 2 classes, got {num_classes}; "
            "write a binary output p as the two columns 1 - p and p"
        )


def _axes(name: str, array: NDArray[Any], shapes: tuple[str, ...]) -> list[str]:
    for shape in shapes:
        axes = shape.split()
        if len(axes) == array.ndim:
            break
    else:
        wanted = " or ".join(f"({', '.join(shape.split())})" for shape in shapes)
        raise ValueError(f"{name} must have shape {wanted}, got {array.shape}; reshape it")
    if any(size == 0 for axis, size in zip(axes, array.shape, strict=True) if axis != "n"):
        raise ValueError(
            f"{name} must have an entry along every axis of ({', '.join(axes)}), "
            f"got shape {array.shape}; record at least one epoch"
        )
    return axes


def _refuse(
    name: str,
    condition: str,
    array: NDArray[Any],
    bad: NDArray[np.bool_],
    axes: list[str],
    cure: str,
) -> None:
    if not bad.any():
        return
    where = np.argwhere(bad)
    first = where[np.argmin(where[:, axes.index("n")])]
    place = "".join(
        f"{_PLACES[axis]}{at}" for axis, at in zip(axes, first, strict=True) if axis in _PLACES
    )
    raise ValueError(
        f"{name} must {condition}, got {array[tuple(first)]} "
        f"for sample {first[axes.index('n')]}{place} "
        f"({len(where)} of {array.size} values); {cure}"
    )
