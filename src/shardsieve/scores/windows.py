"""The statistics of one window of epochs, shared by the batch and the streaming scorers."""

import numpy as np

from shardsieve.scores.inputs import Floats


def mean_and_scatter(rows: Floats) -> tuple[Floats, Floats]:
    """Return the mean over the J rows of (J, n) and the sum of squared deviations from it.

    The result depends on the values and their order alone, never on memory layout or on how many
    columns are passed at a time, so that the streaming scorers equal the batch ones to the bit.
    """
    mean = _total(rows) / len(rows)
    return mean, _total((rows - mean) ** 2)


def mean_of(rows: Floats) -> Floats:
    """Return the mean over the rows; see `mean_and_scatter` on what it depends."""
    return _total(rows) / len(rows)


def deviation(rows: Floats, *, population: bool = False) -> Floats:
    """Return the standard deviation over the rows: of the sample, or of the population."""
    _, scatter = mean_and_scatter(rows)
    spread: Floats = np.sqrt(scatter / (len(rows) - (not population)))
    return spread


def dual_window(rows: Floats) -> Floats:
    """Return what DUAL averages: the sample's standard deviation times 1 less the mean."""
    mean, scatter = mean_and_scatter(rows)
    product: Floats = np.sqrt(scatter / (len(rows) - 1)) * (1 - mean)
    return product


def fluctuation(rows: Floats) -> Floats:
    """Return the norm of the deviations from the mean over the rows, TDDS' r_k."""
    _, scatter = mean_and_scatter(rows)
    norm: Floats = np.sqrt(scatter)
    return norm


def _total(rows: Floats) -> Floats:
    # numpy's own sum pairs the terms differently for another memory layout.
    total = np.zeros(rows.shape[1:], dtype=np.float64)
    for row in rows:
        total += row
    return total
