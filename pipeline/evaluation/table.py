"""What the user sees at the end: the GLUE average and the table of all scores in an output directory."""

from typing import Any

from pipeline.evaluation.glue.tasks import GLUE, MNLI_MM, SCORED, TASKS
from pipeline.evaluation.metrics import summarise


def task_score(tasks: dict[str, Any], name: str, seed: str) -> float:
    """One number for a GLUE task under one seed: the mean of its metrics.

    For mnli it is the mean over the matched and, where that was there, the mismatched set. Raises `KeyError`
    for a task or seed that has no score.
    """
    names = [name, MNLI_MM] if name == "mnli" and MNLI_MM in tasks else [name]
    values = [tasks[part][metric]["seeds"][seed] for part in names for metric in TASKS[name].metrics]
    return sum(values) / len(values)


def glue_average(tasks: dict[str, Any]) -> dict[str, object] | None:
    """The unweighted mean over the eight tasks of `GLUE`, seed by seed, then mean and std over the seeds.

    This is the convention of the benchmark itself (Wang et al. 2018, section 3: metrics averaged within a
    task first) without WNLI. Seeds that some task lacks are left out; None when no seed has all eight.
    """
    averages: dict[int, float] = {}
    for seed in tasks.get("cola", {}).get("matthews", {}).get("seeds", {}):
        try:
            averages[int(seed)] = sum(task_score(tasks, name, seed) for name in GLUE) / len(GLUE)
        except KeyError:
            continue
    return summarise(averages) if averages else None


def format_table(document: dict[str, Any]) -> str:
    """Task, metric, mean and std over seeds, number of seeds, and what the data was, as aligned text."""
    rows = [("task", "metric", "mean ± std", "seeds", "data")]
    tasks = document["tasks"]
    for name in sorted(tasks, key=lambda key: SCORED.index(key) if key in SCORED else len(SCORED)):
        for metric, value in tasks[name].items():
            if isinstance(value, dict):
                rows.append((name, metric, *_numbers(value), tasks[name]["data"]))
    rows += [(name, "", "not available", "", reason) for name, reason in document["not_available"].items()]
    if "glue_average" in document:
        note = "" if all(tasks[name]["data"] == "full" for name in GLUE) else "not all data is full"
        rows.append(("glue", "average", *_numbers(document["glue_average"]), note))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ("  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _numbers(summary: dict[str, Any]) -> tuple[str, str]:
    """`mean ± std` and the number of seeds of a summary."""
    return f"{summary['mean']:.4f} ± {summary['std']:.4f}", str(len(summary["seeds"]))
