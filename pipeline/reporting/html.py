"""The page of a report: one file that opens from disk, on a phone and printed, and loads nothing from anywhere."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from pipeline.evaluation.attention.conditions import MAIN_METRICS, SCRATCH, SHUFFLED, SLICE, TEACHER, by_text
from pipeline.evaluation.metrics import UNDEFINED
from pipeline.reporting.charts import Point, curves, narrowing, tradeoff
from pipeline.reporting.comparison import (
    LATENCY,
    Model,
    Score,
    distinct_names,
    is_quality,
    lower_is_better,
    models_of,
    number,
    pairs_within_noise,
    renamed,
    tasks_of,
)
from pipeline.reporting.plots import Colours
from pipeline.reporting.roles import Roles, roles_of, run_of
from pipeline.reporting.style import STYLE
from pipeline.reporting.summaries import EvaluationSummary, RunSummary
from pipeline.reporting.tables import RUN_HEADER, run_cells
from pipeline.reporting.verdict import caveat, controls, verdicts

ATTENTION_MAPS = "attention.png"
"""In an evaluation directory: heat maps of teacher and student."""
RULE = (
    "± is the sample standard deviation over seeds (rounds, for a latency). Two means are within noise (≈) where each "
    "has more than one seed and their difference is below the square root of the sum of the squared standard "
    "deviations. With one seed the noise is unknown, and nothing is marked. Seeds are those of fine-tuning, not of the "
    "training before it. Bold: the best mean."
)
ATTENTION_RULE = (
    "Divergences from the teacher's attention, means over layers and heads in nats; 0 is the same attention. JS, the "
    "Jensen-Shannon divergence of paired heads, is at most ln 2 = 0.693. MiniLMv2's divergence of relations needs no "
    "pairs of heads. The teacher itself must have 0, and heads in a wrong order show what no likeness looks like."
)
CONDITIONS = {
    TEACHER: "the teacher itself",
    SHUFFLED: "its heads in a wrong order",
    SCRATCH: "control: trained from scratch",
    SLICE: "control: the untrained slice",
}
"""What stands below a student's attention."""


def page(runs: Sequence[RunSummary], evaluations: Sequence[EvaluationSummary], made_with: Mapping[str, str]) -> str:
    """The whole page.

    Args:
        runs: trainings.
        evaluations: of models.
        made_with: machine and commit of the report itself, by these words.
    """
    runs, models = renamed(runs), models_of(evaluations)
    names = dict.fromkeys([*(model.name for model in models), *(run.name for run in runs)])
    colours = {name: f"C{n % 10}" for n, name in enumerate(names)}
    roles = roles_of(models, runs)
    title = "Compression report"
    sections = [
        section("The models", models_table(models, runs, roles)),
        section("Quality against size and latency", tradeoffs(models, colours)),
        section("Scores, task by task", scores(models) + missing(evaluations)),
        section("Training", training(runs, colours)),
        section("Kept dimensions over time", kept(runs)),
        section("Attention", attention(models) + attention_maps(evaluations)),
        section("How it was made", provenance(runs, evaluations, made_with)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n"
        + "".join(f'<p class="verdict">{escape(line)}</p>\n' for line in verdicts(roles, len(models), len(runs)))
        + listed(controls(roles))
        + note(caveat(roles))
        + "</header>\n<main>\n"
        + "".join(sections)
        + "</main>\n</body>\n</html>\n"
    )


def section(title: str, content: str) -> str:
    """A part of the page; nothing where it has no content."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}</section>\n" if content else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", kind: str = "") -> str:
    """A table of HTML cells, of which the first in a row is its head; wide ones scroll on their own."""
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    lines = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>\n'
        for first, *rest in rows
    )
    said = f"<caption>{caption}</caption>" if caption else ""
    head = f"{said}<thead><tr>{heads}</tr></thead>"
    return f'<div class="scroll {kind}"><table>{head}\n<tbody>\n{lines}</tbody></table></div>\n'


def figures(drawn: Iterable[tuple[str, str]], kind: str = "") -> str:
    """Charts beside each other where there is room; each with its caption, as HTML."""
    inner = "".join(f"<figure><figcaption>{caption}</figcaption>{chart}</figure>\n" for chart, caption in drawn)
    return f'<div class="figures {kind}">\n{inner}</div>\n' if inner else ""


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>\n' if text else ""


def listed(lines: Iterable[str]) -> str:
    """A list of texts; nothing without one."""
    inner = "".join(f"<li>{escape(line)}</li>\n" for line in dict.fromkeys(lines))
    return f"<ul>\n{inner}</ul>\n" if inner else ""


def models_table(models: Sequence[Model], runs: Sequence[RunSummary], roles: Roles) -> str:
    """Role, shape, size and origin of every model."""
    if not models:
        return ""
    rows = []
    for model in models:
        shape, run = model.shape, run_of(model, runs)
        origin = f" (run {run.name})" if run and run.name != model.name else ""
        time = model.milliseconds
        rows.append(
            [
                escape(model.name),
                escape(roles.words(model) + origin),
                f"{shape.layers} x {shape.hidden}",
                f"{shape.heads} x {shape.head_size}",
                f"{shape.parameters:,}",
                f"{shape.encoder_parameters:,}",
                f"{time.mean:.1f} ms" if time else "-",
            ]
        )
    header = ["model", "what it is", "layers x hidden", "heads x size", "parameters", "in the encoder", "latency"]
    return table(header, rows, kind="roles") + note(
        "Parameters are those of embeddings and encoder, without pooler and MLM head."
    )


def tradeoffs(models: Sequence[Model], colours: Colours) -> str:
    """For every task two charts: the first of its metrics against parameters, and against latency."""
    drawn = []
    for task, (metric, *_) in tasks_of(models).items():
        if not is_quality(task):
            continue
        lower = lower_is_better(metric)
        quality = f"{metric} ({'less' if lower else 'more'} is better)"
        scored = [(model, score) for model in models if (score := model.score(task, metric))]
        by_size = [_point(m, s, Score(m.shape.parameters, 0.0, 1), colours) for m, s in scored]
        by_time = [_point(m, s, time, colours) for m, s in scored if (time := m.milliseconds)]
        for points, cost, word in ((by_size, "parameters", "size"), (by_time, "milliseconds", "latency")):
            if len(points) > 1:
                said = f"{task}: {metric} against {word}"
                drawn.append((tradeoff(said, points, cost, quality, lower), escape(said)))
    if not drawn:
        return ""
    hint = "The dashed line joins the models that no other beats: none costs less and is at least as good."
    if not any(model.milliseconds for model in models):
        hint += " No latency was measured (pipeline/evaluate.py --tasks latency does)."
    return figures(drawn, "pairs") + note(hint + " Bars are standard deviations, where there are several seeds.")


def _point(model: Model, score: Score, cost: Score, colours: Colours) -> Point:
    return Point(model.name, cost.mean, score.mean, cost.std, score.std, colours[model.name])


def scores(models: Sequence[Model]) -> str:
    """A table for every task, and the rule by which they mark what is within noise."""
    tables = "".join(task_table(models, task, metrics) for task, metrics in tasks_of(models).items())
    return f'<div class="tables">\n{tables}</div>\n{note(RULE)}' if tables else ""


def task_table(models: Sequence[Model], task: str, metrics: Sequence[str]) -> str:
    """The scores of one task, one row for each model that has some, and the rows that they are about."""
    scored = [model for model in models if model.scores.get(task)]
    near = {metric: pairs_within_noise(scored, task, metric) for metric in metrics}
    best = {metric: _best(scored, task, metric) for metric in metrics}
    counts = {model.name: sorted({score.count for score in model.scores[task].values()}) for model in scored}
    data = list(dict.fromkeys(model.data[task] for model in scored))
    rows = [
        [
            escape(model.name),
            *(_cell(model.score(task, metric), best[metric], near[metric][model.name]) for metric in metrics),
            " or ".join(map(str, counts[model.name])),
            *([escape(model.data[task])] if len(data) > 1 else []),
        ]
        for model in scored
    ]
    about = "" if len(data) > 1 else f" <small>{escape(data[0])}</small>"
    header = [f"{escape(m)} {'↓' if lower_is_better(m) else '↑'}" for m in metrics]
    last = ["rounds" if task == LATENCY else "seeds", *(["rows"] if len(data) > 1 else [])]
    return table(["model", *header, *last], rows, f"{escape(task)}{about}", "rows" * (len(data) > 1))


def _best(models: Sequence[Model], task: str, metric: str) -> float | None:
    """The best mean, if there are several to choose from."""
    known = [s.mean for m in models if (s := m.score(task, metric)) and s.undefined < s.count]
    return (min if lower_is_better(metric) else max)(known) if len(known) > 1 else None


def _cell(score: Score | None, best: float | None, near: Sequence[str]) -> str:
    if score is None:
        return "-"
    if score.undefined == score.count:
        return escape(UNDEFINED)
    mean = f"<b>{number(score.mean)}</b>" if score.mean == best else number(score.mean)
    spread = f" ± {number(score.std)}" if score.count > 1 else ""
    unknown = f"<small>{score.undefined} of {score.count} {escape(UNDEFINED)}</small>" if score.undefined else ""
    mark = f"<small>≈ {escape(', '.join(near))}</small>" if near else ""
    return mean + spread + unknown + mark


def missing(evaluations: Sequence[EvaluationSummary]) -> str:
    """What was asked for and has no score, with the reason."""
    lines = [
        f"{evaluation.name}: {task}: {reason}"
        for evaluation in evaluations
        for task, reason in evaluation.results.not_available.items()
    ]
    lines += [f"{e.name}: the evaluation is not finished" for e in evaluations if not e.results.complete]
    return f"<h3>Without a score</h3>\n{listed(lines)}" if lines else ""


def training(runs: Sequence[RunSummary], colours: Colours) -> str:
    """Curves, and where every run ended."""
    if not runs:
        return ""
    said = (
        "Thin lines: training batches. Dots: held-out text. Ticks at the bottom: dimensions were chosen to be retired."
    )
    rows = [list(map(escape, run_cells(run))) for run in runs]
    return figures([(curves(runs, colours), said)]) + table(RUN_HEADER, rows)


def kept(runs: Sequence[RunSummary]) -> str:
    """A chart for every run that narrowed."""
    narrowed = [run for run in runs if any(len({count for _, count in line}) > 1 for line in run.kept().values())]
    return figures((narrowing(run), f"{escape(run.name)} ({escape(run.method)})") for run in narrowed)


def attention(models: Sequence[Model]) -> str:
    """For every student and text a table: its attention and that of its controls beside the teacher's."""
    tables = "".join(
        attention_table(model, text, conditions)
        for model in models
        for text, conditions in by_text(model.scores).items()
    )
    return tables + note(ATTENTION_RULE * bool(tables))


def attention_table(model: Model, text: str, conditions: Mapping[str, str]) -> str:
    """One text; the verdict stands above."""
    rows = []
    for condition, name in conditions.items():
        scores = model.scores.get(name, {})
        cells = [f"{scores[metric].mean:.4f}" if metric in scores else "-" for metric in MAIN_METRICS]
        rows.append([CONDITIONS.get(condition, escape(model.name)), *cells, escape(model.data.get(name, "-"))])
    said = f"<small>{escape(model.verdicts[text])}</small>" if text in model.verdicts else ""
    header = [f"{escape(words)} ↓" for words in MAIN_METRICS.values()]
    return table(["", *header, "what was compared"], rows, f"{escape(text)}, {escape(model.name)}{said}", "attention")


def attention_maps(evaluations: Sequence[EvaluationSummary]) -> str:
    """The heat maps that evaluations left, within the page."""
    drawn = []
    for evaluation in evaluations:
        path = evaluation.directory / ATTENTION_MAPS
        if path.is_file():
            content = base64.b64encode(path.read_bytes()).decode()
            said = escape(f"Attention of {evaluation.name} beside its teacher's")
            drawn.append((f'<img src="data:image/png;base64,{content}" alt="{said}">', said))
    return figures(drawn, "wide")


def provenance(
    runs: Sequence[RunSummary], evaluations: Sequence[EvaluationSummary], made_with: Mapping[str, str]
) -> str:
    """Recipes, machines, versions and commits; how models were fine-tuned."""
    recipes = {run.name: flat(run.recipe) for run in runs}
    machines = {run.name: {key: v for key, v in run.environment.items() if key != "command"} for run in runs}
    names = distinct_names(evaluation.directory for evaluation in evaluations)
    settings = {names[evaluation.directory]: flat(evaluation.results.settings) for evaluation in evaluations}
    commands = [run.environment["command"] for run in runs if "command" in run.environment]
    parts = [
        beside("Recipes", recipes),
        beside("Machine and versions", machines),
        beside("Fine-tuning", settings),
        f"<h3>Commands</h3>\n<pre>{escape(chr(10).join(commands))}</pre>\n" if commands else "",
    ]
    return "".join(parts) + note(f"This page was made by commit {made_with['commit']} on {made_with['machine']}.")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`section.key` -> value as it is written in a recipe."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = "null" if value is None else str(value)
    return found


def beside(title: str, columns: Mapping[str, Mapping[str, str]]) -> str:
    """Settings of several runs or models: first what differs, with a column for each, then what all have in common."""
    keys = list(dict.fromkeys(key for values in columns.values() for key in values))
    if not keys:
        return ""
    rows = {key: [values.get(key, "-") for values in columns.values()] for key in keys}
    differing = {key: cells for key, cells in rows.items() if len(set(cells)) > 1}
    common = [(key, cells[0]) for key, cells in rows.items() if key not in differing]
    parts = [f"<h3>{escape(title)}</h3>\n"]
    if differing:
        lines = [[escape(key), *map(escape, cells)] for key, cells in differing.items()]
        parts.append(table(["what differs", *map(escape, columns)], lines, kind="values"))
    if common:
        inner = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>\n" for key, value in common)
        parts.append(f'<dl class="settings">\n{inner}</dl>\n')
    return "".join(parts)
