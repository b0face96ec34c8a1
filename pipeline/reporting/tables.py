"""The Markdown tables of a report."""

from pipeline.evaluation.metrics import UNDEFINED
from pipeline.records import markdown_table
from pipeline.reporting.summaries import EvaluationSummary, RunSummary
from pipeline.shapes import BertShape

RUN_HEADER = ["run", "method", "steps", "tokens", "tokens/s", "waits for data", "held-out loss", "held-out accuracy"]


def evaluation_table(evaluations: list[EvaluationSummary]) -> str:
    """Size and scores of each model; empty without evaluations.

    One row per model, tasks of several directories of the same model side by side.
    """
    models: dict[str, BertShape] = {}
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for evaluation in evaluations:
        models[evaluation.name] = evaluation.shape
        scores.setdefault(evaluation.name, {}).update(evaluation.scores())
    columns = list(dict.fromkeys(column for entry in scores.values() for column in entry))
    header = ["model", "layers x hidden", "parameters", "in the encoder", *columns]
    rows = []
    for name, shape in models.items():
        cells = [_score(scores[name].get(column)) for column in columns]
        size = f"{shape.layers} x {shape.hidden}"
        rows.append([name, size, f"{shape.parameters:,}", f"{shape.encoder_parameters:,}", *cells])
    return markdown_table(header, rows) if rows else ""


def run_table(runs: list[RunSummary]) -> str:
    """Length, speed and last held-out measurement of each run; empty without runs."""
    return markdown_table(RUN_HEADER, [run_cells(run) for run in runs]) if runs else ""


def run_cells(run: RunSummary) -> list[str]:
    """What stands under `RUN_HEADER` for one run."""
    n = run.numbers()
    heldout = ["", ""]
    if n["heldout_loss"] is not None:
        heldout = [f"{n['heldout_loss']:.3f}", f"{100 * n['heldout_accuracy']:.1f} %"]
    speed = [f"{n['tokens_per_s']:,.0f}", f"{100 * n['data_wait']:.1f} %"]
    return [run.name, run.method, f"{n['step']:,}", f"{n['tokens']:,}", *speed, *heldout]


def _score(value: dict[str, float] | None) -> str:
    if value is None:
        return ""
    undefined = value.get("undefined", 0)
    if undefined == value["seeds"]:
        return UNDEFINED
    spread = f" ± {value['std']:.3f}" if value["seeds"] > 1 else ""
    note = f" ({undefined:.0f} of {value['seeds']:.0f} {UNDEFINED})" if undefined else ""
    return f"{value['mean']:.3f}{spread}{note}"
