"""The picture of how long the documents are."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from pipeline.files import writing
from preprocessing.inspection.lengths import EDGES, quantile

_INCHES, _DPI = (7.0, 4.2), 150


def draw(histogram: np.ndarray, path: Path) -> None:
    """Write a PNG of documents (len(EDGES) - 1,) by their length. UserError if it cannot be written."""
    filled = np.flatnonzero(histogram)
    first, last = int(filled[0]), int(filled[-1])
    figure, axes = plt.subplots(figsize=_INCHES)
    axes.stairs(histogram[first : last + 1], EDGES[first : last + 2], fill=True, color="C0")
    median = quantile(histogram, 0.5)
    axes.axvline(median, color="C1", label=f"median, about {median:,.0f} tokens")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=30))
    axes.xaxis.set_minor_locator(LogLocator(subs=(3.0, 4.0, 6.0, 7.0, 8.0, 9.0), numticks=60))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, place: ""))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,.0f}"))
    axes.tick_params(axis="x", rotation=30)
    axes.set_xlabel("tokens per document (log scale, eight bins to a doubling)")
    axes.set_ylabel("documents in bin")
    axes.set_title(f"{int(histogram.sum()):,} documents by length")
    axes.legend()
    figure.tight_layout()
    with writing(path):
        figure.savefig(path, dpi=_DPI, format="png")
    plt.close(figure)
