"""What can be said of evaluated models beside each other: which means differ, and which models none beats."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.evaluation.results import Summary
from pipeline.reporting.summaries import EvaluationSummary, RunSummary
from pipeline.shapes import BertShape

LATENCY = "latency"
GLUE_AVERAGE = "GLUE average"
LOWER_IS_BETTER = ("loss", "perplexity", "milliseconds", "divergence", "kl", "js", "relation")
"""Words in the names of metrics; of all others more is better."""


@dataclass(frozen=True)
class Score:
    """Mean and sample standard deviation over `count` seeds (rounds, for a latency); `undefined` of them count as 0."""

    mean: float
    std: float
    count: int
    undefined: int = 0

    @classmethod
    def of(cls, summary: Summary) -> "Score":
        """What `results.json` says of one metric."""
        return cls(summary["mean"], summary["std"], len(summary["seeds"]), len(summary.get("undefined", ())))

    def within_noise(self, other: "Score") -> bool:
        """Whether the difference is below the square root of the sum of squared deviations; never for one seed."""
        if min(self.count, other.count) < 2:
            return False
        return abs(self.mean - other.mean) < math.hypot(self.std, other.std)


@dataclass(frozen=True)
class Model:
    """One model with what all its evaluations say of it.

    Attributes:
        name: tells it apart from the others.
        path: of its directory.
        shape: of the encoder.
        fold: its fold.json, if it has one.
        recipe: of the run that it was folded from, if that is known.
        scores: task -> metric -> score.
        data: task -> the rows it is about.
        verdicts: task -> a sentence, where the task draws a conclusion.
    """

    name: str
    path: Path
    shape: BertShape
    fold: Mapping[str, Any]
    recipe: Mapping[str, Any]
    scores: dict[str, dict[str, Score]]
    data: dict[str, str]
    verdicts: dict[str, str]

    def score(self, task: str, metric: str) -> Score | None:
        return self.scores.get(task, {}).get(metric)

    @property
    def milliseconds(self) -> Score | None:
        return self.score(LATENCY, "milliseconds")


def lower_is_better(metric: str) -> bool:
    """By the words of its name."""
    return any(word in LOWER_IS_BETTER for word in metric.lower().replace("_", " ").split())


def distinct_names(paths: Iterable[Path]) -> dict[Path, str]:
    """The last part of every path, with as many parts before it as it takes to tell them all apart."""
    different = list(dict.fromkeys(paths))
    names = {}
    for path in different:
        others = [other for other in different if other != path]
        lengths = range(1, len(path.parts) + 1)
        tails = (path.parts[-length:] for length in lengths)
        tail = next((t for t in tails if all(other.parts[-len(t) :] != t for other in others)), path.parts)
        names[path] = "/".join(tail)
    return names


def models_of(evaluations: Sequence[EvaluationSummary]) -> list[Model]:
    """Every model once, in the order in which it first appears."""
    models: dict[Path, Model] = {}
    for evaluation in named(evaluations):
        path, results = evaluation.results.model, evaluation.results
        new = Model(evaluation.name, path, evaluation.shape, evaluation.fold, evaluation.recipe, {}, {}, {})
        model = models.setdefault(path, new)
        model.verdicts.update(evaluation.verdicts())
        for task in results.names:
            rows = "all official rows" if results.data(task) == "full" else results.data(task)
            model.data[task] = "; ".join(filter(None, (rows, results.remark(task))))
            for metric, value in results.scores(task).items():
                model.scores.setdefault(task, {})[metric] = Score.of(value)
        if results.glue_average:
            model.scores[GLUE_AVERAGE] = {"average": Score.of(results.glue_average)}
            model.data[GLUE_AVERAGE] = "over the tasks of GLUE"
    return list(models.values())


def named(evaluations: Sequence[EvaluationSummary]) -> list[EvaluationSummary]:
    """The evaluations under names that tell their models apart."""
    names = distinct_names(evaluation.results.model for evaluation in evaluations)
    return [replace(evaluation, name=names[evaluation.results.model]) for evaluation in evaluations]


def renamed(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """The runs under names that tell them apart."""
    names = distinct_names(run.directory for run in runs)
    return [replace(run, name=names[run.directory]) for run in runs]


def tasks_of(models: Sequence[Model]) -> dict[str, list[str]]:
    """Every task that has a score, with its metrics, in the order in which they first appear; without attention."""
    tasks: dict[str, dict[str, None]] = {}
    for model in models:
        for task, metrics in model.scores.items():
            if not is_attention(task):
                tasks.setdefault(task, {}).update(dict.fromkeys(metrics))
    return {task: list(metrics) for task, metrics in tasks.items()}


def is_attention(task: str) -> bool:
    """True for what says how like its teacher a model looks at text."""
    return task.startswith("attention ")


def is_quality(task: str) -> bool:
    """False for what says how fast a model is, or how like its teacher, rather than how good."""
    return task != LATENCY and not is_attention(task)


def frontier(points: Sequence[tuple[float, float]], lower: bool) -> list[int]:
    """The numbers of the points (cost, quality) that no other beats: none costs less and is at least as good.

    Args:
        points: cost, of which less is better, and quality.
        lower: whether less quality is better, as for a loss.
    """
    sign = 1 if lower else -1
    best, kept = math.inf, []
    for number in sorted(range(len(points)), key=lambda number: (points[number][0], sign * points[number][1])):
        if sign * points[number][1] < best:
            best = sign * points[number][1]
            kept.append(number)
    return kept


def number(value: float) -> str:
    """Three decimals, or thousands where there are some."""
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"


def pairs_within_noise(models: Sequence[Model], task: str, metric: str) -> dict[str, list[str]]:
    """For every model, those from which its mean is not told apart."""
    near: dict[str, list[str]] = {model.name: [] for model in models}
    for one, other in itertools.permutations(models, 2):
        mine, its = one.score(task, metric), other.score(task, metric)
        if mine and its and not (mine.undefined or its.undefined) and mine.within_noise(its):
            near[one.name].append(other.name)
    return near
