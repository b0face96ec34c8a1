"""The picture of a report: training curves with the moments of selection, and quality against size."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from pipeline.evaluation.report_tables import EvaluationSummary, RunSummary

WIDTH, HEIGHT, DPI = 7.0, 4.4, 150
"""Of one panel, in inches, and dots per inch."""


def draw(runs: list[RunSummary], evaluations: list[EvaluationSummary], path: Path) -> None:
    """Write the panels there is something to show in, side by side."""
    scored = [evaluation for evaluation in evaluations if "mlm loss" in evaluation.scores()]
    panels = [(draw_curves, runs)] if runs else []
    panels += [(draw_sizes, scored)] if scored else []  # type: ignore[list-item]
    if not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH * len(panels), HEIGHT), squeeze=False)
    for (function, content), axis in zip(panels, axes[0], strict=True):
        function(axis, content)
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def draw_curves(axis: Axes, runs: list[RunSummary]) -> None:
    """Training loss (thin), held-out loss (dots), selections as ticks at the bottom of their run's colour."""
    for number, run in enumerate(runs):
        colour = f"C{number}"
        tokens = [line["tokens"] for line in run.metrics]
        axis.plot(tokens, [line["loss"] for line in run.metrics], color=colour, linewidth=0.8, alpha=0.5)
        heldout = [line for line in run.metrics if "heldout_loss" in line]
        axis.plot(
            [line["tokens"] for line in heldout],
            [line["heldout_loss"] for line in heldout],
            color=colour,
            marker="o",
            markersize=3.5,
            label=f"{run.name} ({run.method})",
        )
        per_step = tokens[-1] / run.metrics[-1]["step"]
        for index, step in enumerate(run.selections):
            label = f"{run.name}: dimensions retired" if index == 0 else None
            axis.axvline(step * per_step, color=colour, linewidth=0.8, linestyle=":", label=label)
    axis.set_xlabel("tokens seen")
    axis.set_ylabel("MLM loss (nats per predicted token)")
    axis.set_title("Training: line = training batches, dots = held-out text", fontsize=10)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def draw_sizes(axis: Axes, evaluations: list[EvaluationSummary]) -> None:
    """Held-out loss against parameters, one labelled point per model."""
    losses = [evaluation.scores()["mlm loss"]["mean"] for evaluation in evaluations]
    sizes = [evaluation.shape.parameters for evaluation in evaluations]
    for number, (evaluation, size, loss) in enumerate(zip(evaluations, sizes, losses, strict=True)):
        axis.scatter(size, loss, color=f"C{number}", zorder=3)
        axis.annotate(evaluation.name, (size, loss), textcoords="offset points", xytext=(7, 4), fontsize=9)
    # Room for the labels, which stand to the right of their points.
    axis.margins(x=0.35, y=0.2)
    axis.set_xlabel("parameters (without pooler and MLM head)")
    axis.set_ylabel("held-out MLM loss (nats per predicted token)")
    axis.set_title("Quality against size", fontsize=10)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(alpha=0.3)
