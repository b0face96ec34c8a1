"""What a report says in Markdown: the verdict, scores, attention, runs."""

from collections.abc import Sequence

from pipeline.evaluation.attention.conditions import MAIN_METRICS, by_text
from pipeline.evaluation.metrics import UNDEFINED
from pipeline.records import markdown_table
from pipeline.reporting.comparison import is_attention, models_of
from pipeline.reporting.roles import roles_of
from pipeline.reporting.summaries import EvaluationSummary, RunSummary
from pipeline.reporting.verdict import caveat, controls, verdicts
from pipeline.shapes import BertShape

RUN_HEADER = ["run", "method", "steps", "tokens", "tokens/s", "waits for data", "held-out loss", "held-out accuracy"]


def markdown(runs: Sequence[RunSummary], evaluations: Sequence[EvaluationSummary]) -> str:
    """Everything, as paragraphs and tables, of runs and evaluations under names that tell them apart."""
    models = models_of(evaluations)
    roles = roles_of(models, runs)
    remarks = [f"{e.name}, {task}: {remark}" for e in evaluations for task, remark in e.remarks().items()]
    concluded = [f"{e.name}, {task}: {verdict}" for e in evaluations for task, verdict in e.verdicts().items()]
    parts = [
        *verdicts(roles, len(models), len(runs)),
        _list(controls(roles)),
        caveat(roles),
        evaluation_table(evaluations),
        _list(remarks),
        attention_table(evaluations),
        _list(concluded),
        run_table(runs),
    ]
    return "\n\n".join(filter(None, parts))


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in dict.fromkeys(lines))


def evaluation_table(evaluations: Sequence[EvaluationSummary]) -> str:
    """Size and scores of each model; empty without evaluations.

    One row per model, tasks of several directories of the same model side by side; attention has a table of its own.
    """
    models: dict[str, BertShape] = {}
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for evaluation in evaluations:
        models[evaluation.name] = evaluation.shape
        shown = {name: score for name, score in evaluation.scores().items() if not is_attention(name)}
        scores.setdefault(evaluation.name, {}).update(shown)
    columns = list(dict.fromkeys(column for entry in scores.values() for column in entry))
    header = ["model", "layers x hidden", "parameters", "in the encoder", *columns]
    rows = []
    for name, shape in models.items():
        cells = [_score(scores[name].get(column)) for column in columns]
        size = f"{shape.layers} x {shape.hidden}"
        rows.append([name, size, f"{shape.parameters:,}", f"{shape.encoder_parameters:,}", *cells])
    return markdown_table(header, rows) if rows else ""


def attention_table(evaluations: Sequence[EvaluationSummary]) -> str:
    """How far the attention of each student and its controls is from the teacher's; empty where that is not known."""
    rows = []
    for evaluation in evaluations:
        for conditions in by_text(evaluation.results.names).values():
            for name in conditions.values():
                scores = evaluation.results.scores(name)
                cells = [f"{scores[metric]['mean']:.4f}" if metric in scores else "" for metric in MAIN_METRICS]
                rows += [[evaluation.name, name, *cells, evaluation.results.data(name)]] if scores else []
    header = ["model", "divergence from the teacher (nats)", *MAIN_METRICS.values(), "data"]
    return markdown_table(header, rows) if rows else ""


def run_table(runs: Sequence[RunSummary]) -> str:
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
