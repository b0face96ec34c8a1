"""The picture of a report: training curves with the moments of selection, and quality against size."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from pipeline.reporting.summaries import EvaluationSummary, RunSummary

WIDTH, HEIGHT, DPI = 7.0, 5.2, 150
"""Of the curves, in inches, and dots per inch; the panels of sizes share a column of 0.7 times that width."""

Colours = dict[str, str]
"""By the name of a run or a model: a model has the colour of the run it came from."""


def draw(runs: list[RunSummary], evaluations: list[EvaluationSummary], path: Path) -> None:
    """Write what there is to show: curves on the left, a panel for each held-out text on the right."""
    texts = sorted({name for evaluation in evaluations for name in evaluation.scores() if is_mlm_loss(name)})
    if not runs and not texts:
        return
    names = dict.fromkeys([*(evaluation.name for evaluation in evaluations), *(run.name for run in runs)])
    colours = {name: f"C{number % 10}" for number, name in enumerate(names)}
    columns = ([["curves"] * max(1, len(texts))] if runs else []) + ([texts] if texts else [])
    ratios = ([1.0] if runs else []) + ([0.7] if texts else [])
    mosaic = [list(row) for row in zip(*columns, strict=True)]
    figure, axes = plt.subplot_mosaic(mosaic, figsize=(WIDTH * sum(ratios), HEIGHT), width_ratios=ratios)
    if runs:
        draw_curves(axes["curves"], runs, colours)
    for text in texts:
        draw_sizes(axes[text], [e for e in evaluations if text in e.scores()], text, colours)
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def is_mlm_loss(score: str) -> bool:
    """True for `mlm TEXT loss`, the held-out loss on one text."""
    return score.startswith("mlm ") and score.endswith(" loss")


def draw_curves(axis: Axes, runs: list[RunSummary], colours: Colours) -> None:
    """Training loss (thin), held-out loss (dots), selections as ticks at the bottom in their run's colour."""
    # Methods that never measure it train on something else.
    runs = [run for run in runs if any("heldout_loss" in line for line in run.metrics)]
    selecting = [run for run in runs if run.selections]
    for run in runs:
        colour = colours[run.name]
        tokens = [line["tokens"] for line in run.metrics]
        axis.plot(tokens, [line["loss"] for line in run.metrics], color=colour, linewidth=0.8, alpha=0.4)
        heldout = [line for line in run.metrics if "heldout_loss" in line]
        axis.plot(
            [line["tokens"] for line in heldout],
            [line["heldout_loss"] for line in heldout],
            color=colour,
            marker="o",
            markersize=3.5,
            label=f"{run.name} ({run.method})",
        )
    for row, run in enumerate(selecting):
        per_step = run.metrics[-1]["tokens"] / run.metrics[-1]["step"]
        axis.plot(
            [step * per_step for step in run.selections],
            [0.02 + 0.035 * row] * len(run.selections),
            color=colours[run.name],
            linestyle="none",
            marker="|",
            markersize=9,
            transform=axis.get_xaxis_transform(),
            label=f"{run.name}: dimensions retired",
        )
    axis.set_xlabel("tokens seen")
    axis.set_ylabel("MLM loss (nats per predicted token)")
    axis.set_title("Training: thin line = training batches, dots = held-out text", fontsize=10)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def draw_sizes(axis: Axes, evaluations: list[EvaluationSummary], text: str, colours: Colours) -> None:
    """Held-out loss on one text against parameters, one point per model."""
    for evaluation in evaluations:
        loss = evaluation.scores()[text]["mean"]
        axis.scatter(evaluation.shape.parameters, loss, color=colours[evaluation.name], label=evaluation.name, zorder=3)
    axis.margins(x=0.15, y=0.15)
    axis.set_xlabel("parameters (without pooler and MLM head)")
    axis.set_ylabel("loss (nats per token)")
    axis.set_title(f"Quality against size: {text.removeprefix('mlm ').removesuffix(' loss')} text", fontsize=10)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(alpha=0.3)
    # To the right of the points, where it hides none.
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
