"""The charts of a report's page, as SVG to be put into HTML: text stays text, and nothing is loaded from elsewhere."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from pipeline.reporting.comparison import frontier
from pipeline.reporting.plots import Colours, draw_curves
from pipeline.reporting.summaries import RunSummary

SIZE, TALL = (4.7, 3.5), (4.7, 4.2)
"""In inches. So wide, the text of a chart can still be read on a phone."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888",
    "axes.labelcolor": "#333",
    "xtick.color": "#555",
    "ytick.color": "#555",
}
LINE_HEIGHT = 12.0
"""Between two names in a chart, in points."""
LONGEST_NAME = 26


@dataclass(frozen=True)
class Point:
    """A model in a chart of quality against cost; deviations are 0 where they are not known."""

    name: str
    cost: float
    quality: float
    cost_std: float
    quality_std: float
    colour: str


def svg(title: str, draw: Callable[[Axes, Figure], object], size: tuple[float, float] = SIZE) -> str:
    """The `<svg>` of one pair of axes, scaled by the page.

    Args:
        title: what it shows, for those who hear the page.
        draw: fills the axes.
        size: in inches.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot(), figure)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=nothing, transparent=True)
    drawn = stream.getvalue()
    drawn = re.sub(r"<style.*?</style>", "", drawn[drawn.index("<svg") :], count=1, flags=re.DOTALL)
    # Within HTML, names of groups would stand several times on a page, and names of schemas say nothing.
    drawn = re.sub(r'<g id="[a-zA-Z.]+_\d+"', "<g", drawn)
    box = re.search(r'viewBox="([^"]*)"', drawn)
    head = f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label="{escape(title)}">'
    return re.sub(r"<svg[^>]*>", lambda _: head, drawn, count=1)


def short(name: str) -> str:
    """A name that fits into a chart."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def tradeoff(title: str, points: Sequence[Point], cost: str, quality: str, lower: bool) -> str:
    """Quality against cost: every point named, and a line through those that no other beats.

    Args:
        title: what it shows.
        points: one for every model.
        cost: the label of the horizontal axis.
        quality: the label of the vertical axis.
        lower: whether less of it is better.
    """

    def draw(axis: Axes, figure: Figure) -> None:
        best = [points[n] for n in frontier([(point.cost, point.quality) for point in points], lower)]
        axis.plot(
            [p.cost for p in best], [p.quality for p in best], color="#999", linestyle="--", linewidth=1, zorder=1
        )
        for p in points:
            across, up = p.cost_std or None, p.quality_std or None
            axis.errorbar(p.cost, p.quality, up, across, color=p.colour, fmt="o", markersize=7, elinewidth=1)
        axis.margins(x=0.2, y=0.12)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axis.set_xlabel(cost)
        axis.set_ylabel(quality)
        axis.grid(alpha=0.25)
        name_points(axis, figure, points)

    return svg(title, draw)


def name_points(axis: Axes, figure: Figure, points: Sequence[Point]) -> None:
    """Write every name beside its point, towards the middle of the chart, and none over another."""
    figure.draw_without_rendering()  # places the axes, which decides where points are
    scale = 72 / figure.dpi
    places = [scale * axis.transData.transform((p.cost, p.quality)) for p in points]
    low, high = scale * axis.bbox.y0, scale * axis.bbox.y1
    middle = scale * (axis.bbox.x0 + axis.bbox.x1) / 2
    # Where a bar goes to the sides, the name stands above it.
    wanted = [float(place[1]) + (LINE_HEIGHT if p.cost_std else 0) for place, p in zip(places, points, strict=True)]
    for right in (True, False):
        side = sorted((n for n, place in enumerate(places) if (place[0] < middle) == right), key=wanted.__getitem__)
        heights = spread_out([wanted[n] for n in side], LINE_HEIGHT, low, high)
        for n, height in zip(side, heights, strict=True):
            name_point(axis, points[n], height - float(places[n][1]), right, abs(height - wanted[n]) > LINE_HEIGHT / 4)


def name_point(axis: Axes, point: Point, up: float, right: bool, moved: bool) -> None:
    """Write the name of one point to its right or left, `up` points higher, with a line to it where it was moved."""
    line = {"arrowstyle": "-", "color": "#999", "linewidth": 0.7}
    axis.annotate(
        short(point.name),
        (point.cost, point.quality),
        xytext=((1 if right else -1) * (16 if moved else 2 if point.cost_std else 8), up),
        textcoords="offset points",
        ha="left" if right else "right",
        va="center",
        color="#222",
        arrowprops=line if moved else None,
    )


def spread_out(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights near the wanted ones (in rising order), `gap` apart and between `low` and `high`."""
    placed: list[list[float]] = []
    for height in wanted:
        placed.append([height])
        # Names that touch become one block around the middle of where they want to be.
        while len(placed) > 1 and _block(placed[-2], gap)[1] + gap > _block(placed[-1], gap)[0]:
            last = placed.pop()
            placed[-1] += last
    heights = [start + gap * n for block in placed for start in [_block(block, gap)[0]] for n in range(len(block))]
    over = max(0.0, max(heights, default=high) - high)
    return [max(low + gap * n, height - over) for n, height in enumerate(heights)]


def _block(wanted: Sequence[float], gap: float) -> tuple[float, float]:
    """Where the lowest and the highest of names that follow each other stand."""
    middle, half = sum(wanted) / len(wanted), gap * (len(wanted) - 1) / 2
    return middle - half, middle + half


def curves(runs: Sequence[RunSummary], colours: Colours) -> str:
    """Training and held-out loss over tokens."""

    def draw(axis: Axes, figure: Figure) -> None:
        draw_curves(axis, list(runs), colours)
        axis.set_title("")
        axis.xaxis.set_major_locator(MaxNLocator(6))
        if inner := axis.get_legend():
            inner.remove()
        handles, labels = axis.get_legend_handles_labels()
        # The ticks have the colours of the curves, and the caption says what they are.
        shown = {label: handle for handle, label in zip(handles, labels, strict=True) if "retired" not in label}
        columns = 2 if len(shown) > 1 else 1
        figure.legend(shown.values(), shown, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)

    return svg("Loss over tokens seen", draw, TALL)


def narrowing(run: RunSummary) -> str:
    """Kept dimensions over steps: the residual stream, and attention and FFN averaged over the layers."""

    def draw(axis: Axes, figure: Figure) -> None:
        for kind, style in (("ffn", "-"), ("residual", "-"), ("attention", (0, (4, 3)))):
            groups = [line for group, line in run.kept().items() if group.partition(".")[0] == kind]
            if not groups:
                continue
            steps = [step for step, _ in groups[0]]
            means = [sum(count for _, count in at) / len(at) for at in zip(*groups, strict=True)]
            label = f"{kind}, mean of {len(groups)} layers" if len(groups) > 1 else kind
            axis.plot(
                steps,
                means,
                drawstyle="steps-post",
                linestyle=style,
                label=f"{label}: {means[0]:.0f} → {means[-1]:.0f}",
            )
        axis.set_ylim(bottom=0)
        axis.set_xlabel("step")
        axis.set_ylabel("dimensions kept")
        axis.grid(alpha=0.25)
        figure.legend(loc="outside lower center", frameon=False)

    return svg(f"Dimensions kept by {run.name}", draw)
