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
from pipeline.reporting.labels import Box, place
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
LINE_HEIGHT, CHARACTER, MARK = 12.0, 6.2, 4.0
"""In points: of a name in a chart, of the width of one of its characters, and half of the width of a point's mark."""
LONGEST_NAME = 22


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
    """A name that fits into a chart; often it is its end that tells it from others."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"


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
    """Write every name beside its point, with a line to it where it had to move."""
    figure.draw_without_rendering()  # places the axes, which decides where points are
    scale = 72 / figure.dpi

    def at(x: float, y: float) -> tuple[float, float]:
        left, up = scale * axis.transData.transform((x, y))
        return float(left), float(up)

    centres = [at(p.cost, p.quality) for p in points]
    marks = [Box(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in centres]
    for p, (x, y) in zip(points, centres, strict=True):
        across, up = at(p.cost + p.cost_std, p.quality + p.quality_std)
        marks += [Box(2 * x - across, y - 1, across, y + 1), Box(x - 1, 2 * y - up, x + 1, up)]
    inside = Box(*(scale * side for side in axis.bbox.extents))
    boxes = place(centres, [CHARACTER * len(short(p.name)) for p in points], LINE_HEIGHT, marks, inside)
    for p, centre, box in zip(points, centres, boxes, strict=True):
        name_point(axis, p, centre, box)


def name_point(axis: Axes, point: Point, centre: tuple[float, float], box: Box) -> None:
    """Write the name of one point into a box, which is where it is among the coordinates of its centre."""
    up, right = (box.low + box.high) / 2 - centre[1], box.left > centre[0]
    line = {"arrowstyle": "-", "color": "#999", "linewidth": 0.7, "relpos": (0 if right else 1, 0.5)}
    axis.annotate(
        short(point.name),
        (point.cost, point.quality),
        xytext=((box.left if right else box.right) - centre[0], up),
        textcoords="offset points",
        ha="left" if right else "right",
        va="center",
        color="#222",
        arrowprops=line if abs(up) > LINE_HEIGHT else None,
    )


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
