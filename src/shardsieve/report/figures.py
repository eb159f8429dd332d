"""Plots and contact sheets as data URLs."""

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageOps

from shardsieve.loaders.dataset import ShardDataset
from shardsieve.store.store import Store
from shardsieve.train.images import Sample, image_of

_SIDE, _GAP = 64, 4
_MOST_BARS, _MOST_POINTS = 30, 20_000
_TAIL = 0.005
_BLUE, _GREY, _RED = "#3b6ea5", "#b8c4d0", "#b5482f"


def histogram(scores: NDArray[np.float32], measured: NDArray[np.bool_], cut: float) -> str:
    """Return the distribution of measured and predicted scores, and where the keep set starts."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        bins, says = _bins(scores)
        shown = np.clip(scores, bins[0], bins[-1])
        parts = [shown[~measured], shown[measured]]
        axes.hist(parts, bins=bins.tolist(), stacked=True, color=[_GREY, _BLUE])
        if not measured.all():  # where nothing is predicted, a score may be anybody's own
            axes.legend(axes.containers, ["predicted", "measured"], frameon=False)
        axes.axvline(float(np.clip(cut, bins[0], bins[-1])), color=_RED)
        axes.set(xlabel=f"score{says}", ylabel="samples")

    return _plotted(draw)


def spread_of(scores: NDArray[np.float32], measured: NDArray[np.bool_]) -> str:
    """Return both distributions, each as a share of its own samples, one over the other."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        bins, says = _bins(scores)
        shown = np.clip(scores, bins[0], bins[-1])
        for part, color, name in (
            (shown[~measured], _RED, "predicted"),
            (shown[measured], _BLUE, "measured"),
        ):
            how = {"bins": bins.tolist(), "histtype": "step", "color": color, "label": name}
            axes.hist(part, density=True, **how)
        axes.legend(frameon=False)
        axes.set(xlabel=f"score{says}", ylabel="density")

    return _plotted(draw)


def _bins(scores: NDArray[np.float32]) -> tuple[NDArray[Any], str]:
    """Return edges of 60 bins, and what there is to say of them.

    Far tails go into the outermost bins where they would leave one bar of all others.
    """
    whole = np.histogram_bin_edges(scores, 60)
    low, high = np.quantile(scores, [_TAIL, 1 - _TAIL])
    if not 0 < high - low < (whole[-1] - whole[0]) / 4:
        return whole, ""
    middle = np.histogram_bin_edges(scores, 60, range=(float(low), float(high)))
    return middle, f" (the lowest and highest {_TAIL:.1%} in the outermost bins)"


def against(predicted: NDArray[np.float32], measured: NDArray[np.float32]) -> str:
    """Return predicted over measured scores: as points, and as counts where they would merge."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        if len(measured) <= _MOST_POINTS:
            axes.scatter(measured, predicted, s=4, alpha=0.3, color=_BLUE, linewidths=0)
        else:
            how: dict[str, Any] = {"gridsize": 80, "bins": "log", "cmap": "Blues", "mincnt": 1}
            figure.colorbar(axes.hexbin(measured, predicted, **how), label="samples")
        ends = [float(measured.min()), float(measured.max())]
        axes.plot(ends, ends, color=_RED, linewidth=1)
        axes.set(xlabel="measured score", ylabel="predicted score")

    return _plotted(draw)


def shares(names: list[str], kept: list[float], fraction: float) -> str:
    """Return the kept share of every class as bars; of many, from the least kept to the most."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        if len(names) <= _MOST_BARS:
            axes.bar(range(len(kept)), kept, color=_BLUE)
            how: dict[str, Any] = {"rotation": 45, "ha": "right", "parse_math": False}
            axes.set_xticks(range(len(names)), names, **how)
        else:  # bars thinner than a pixel would be drawn or not by chance
            axes.stairs(sorted(kept), fill=True, color=_BLUE)
            axes.set(xlabel="classes, from the least kept to the most")
        axes.axhline(fraction, color=_RED)
        axes.set(ylabel="kept share", ylim=(0, 1))

    return _plotted(draw)


def contact_sheet(store: Store, ids: NDArray[np.int64], columns: int = 10) -> str:
    """Return the images of these samples side by side; a grey square where there is none."""
    samples = ShardDataset(store).__getitems__(ids.tolist())
    rows = -(-len(samples) // columns)
    step = _SIDE + _GAP
    sheet = Image.new("RGB", (columns * step, rows * step), "white")
    for place, sample in enumerate(samples):
        sheet.paste(_tile(sample), (place % columns * step, place // columns * step))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return _url("png", buffer.getvalue())


def _tile(sample: Sample) -> Image.Image:
    try:
        image = image_of(sample).convert("RGB")
    except (OSError, ValueError):  # extreme scores are often those of damaged images
        return Image.new("RGB", (_SIDE, _SIDE), "grey")
    return ImageOps.contain(image, (_SIDE, _SIDE), Image.Resampling.BICUBIC)


def _plotted(draw: Callable[[Figure], None]) -> str:
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    draw(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return _url("png", buffer.getvalue())


def _url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
