"""Whether a predicted score is shown to beat chance, by the quality that is stored with it."""

import json
from collections.abc import Mapping
from typing import Any

from shardsieve.selection import check_fraction, num_kept


def doubt(quality: Mapping[str, Any], keep_fraction: float) -> str | None:
    """Return a warning if the prediction is not shown to beat chance at a keep fraction.

    The measured fraction nearest to the asked one decides: the low end of its interval must lie
    above the share of the samples that is kept, which is what a random keep set agrees in.

    Args:
        quality: As `Quality.to_dict` returns it.
        keep_fraction: In `(0, 1]`.

    Raises:
        ValueError: If the fraction lies outside.
    """
    check_fraction(keep_fraction)
    measured: Mapping[str, float] = quality["agreement"]
    nearest = min(measured, key=lambda name: abs(float(name) - keep_fraction))
    low, high = quality.get("intervals", {}).get(nearest, (measured[nearest],) * 2)
    samples = int(quality["num_held_out"])
    chance = num_kept(samples, float(nearest)) / samples
    # A constant prediction may agree in 0.10000000000000002 of the samples: a hair is no better.
    if low > chance + 1e-9 or keep_fraction == 1:
        return None
    return (
        f"at keep fraction {nearest} the predicted keep set is not shown to be better than a "
        f"random one: agreement {measured[nearest]:.3f} ({low:.3f} to {high:.3f}) over held-out "
        f"seeds, random {chance:.3g}; use rule 'random', or score more seeds for more steps"
    )


def doubt_of_score(made: Mapping[str, Any], keep_fraction: float) -> str | None:
    """Return the `doubt` of a predicted score by its provenance, None where it has no quality.

    A second seed run is the sterner judge: it does not share the first one's accidents.

    Args:
        made: With `quality`, and `against_second_run` where there was one.
        keep_fraction: In `(0, 1]`.
    """
    quality = quality_of_score(made)
    if quality is None:
        return None
    return doubt(made.get("against_second_run", quality), keep_fraction)


def quality_of_score(made: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the `quality` in a provenance; who puts a score may mean something else by it."""
    quality = made.get("quality")
    if not isinstance(quality, Mapping) or "agreement" not in quality:
        return None
    columns = quality.get("classes")
    if not isinstance(columns, Mapping):  # rows, by an earlier release
        return quality
    values = zip(*map(json.loads, columns.values()), strict=True)
    return {**quality, "classes": [dict(zip(columns, row, strict=True)) for row in values]}


def as_stored(quality: Mapping[str, Any]) -> dict[str, Any]:
    """Return a quality with its classes as columns, four digits of each figure in a line of text.

    Whoever opens a store reads what is known of all its scores, where Zarr gives every number of a
    list a line of its own: of tens of thousands of classes that were megabytes for each score.

    >>> as_stored({"classes": [{"class": 0, "kept": 0.123456}, {"class": 1, "kept": 0.5}]})
    {'classes': {'class': '[0,1]', 'kept': '[0.1235,0.5]'}}
    """
    rows = quality["classes"]
    columns = {name: [_four_digits(row[name]) for row in rows] for name in rows[0]} if rows else {}
    texts = {name: json.dumps(column, separators=(",", ":")) for name, column in columns.items()}
    return {**quality, "classes": texts}


def _four_digits(figure: float) -> float:
    return figure if isinstance(figure, int) else float(f"{figure:.4g}")
