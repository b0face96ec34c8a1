"""`items/NAME.json`: one item of an evaluation, planned or done. All that `results.json` says comes from these.

Every process writes the records of its own items alone, so that any number of them can share a directory.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.evaluation.items import Item, Outcome
from pipeline.evaluation.metrics import summarise
from pipeline.evaluation.results import Results, Summary

ITEMS = "items"
"""The folder in an evaluation's directory."""

Record = dict[str, Any]
"""The fields of an `Item`, `estimated_seconds`, and `done`: null, or what was found and how."""
Document = dict[str, Any]
"""What `results.json` holds."""
Averages = Mapping[str, Callable[[Results], Summary | None]]
"""By name what is computed from all scores together, where there are enough of them."""


def planned(item: Item, seconds: float, evaluation: str) -> Record:
    """The record of an item that nobody has finished; `evaluation` tells models and hyper-parameters apart."""
    return {
        "evaluation": evaluation,
        "task": item.task,
        "seed": item.seed,
        "point": item.point,
        "chosen_on": item.chosen_on,
        "entries": {name: dict(entry) for name, entry in item.entries.items()},
        "settings": item.settings,
        "missing": dict(item.missing),
        "teraflops": item.flops / 1e12,
        "estimated_seconds": round(seconds, 1),
        "done": None,
    }


def finished(record: Record, outcome: Outcome, how: Mapping[str, Any]) -> Record:
    """The same record with what was found, and how: seconds, threads, device."""
    scores = {
        name: {metric: {str(seed): value for seed, value in by_seed.items()} for metric, by_seed in values.items()}
        for name, values in outcome.scores.items()
    }
    found = {"scores": scores, "verdicts": dict(outcome.verdicts), "selection": outcome.selection}
    return {**record, "done": {**how, **found, "failure": outcome.failure, "submission": outcome.submission}}


def read_records(directory: Path) -> dict[str, Record]:
    """All records in an evaluation's directory, by the name of their item.

    Raises:
        UserError: one cannot be read.
    """
    found: dict[str, Record] = {}
    for path in sorted((directory / ITEMS).glob("[!.]*.json")):
        try:
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
            if not {"evaluation", "task", "seed", "entries", "done"} <= set(found[path.stem]):
                raise ValueError("a field is missing")
        except (OSError, ValueError, TypeError):
            raise UserError(f"{path}: it cannot be read; remove it, and the item runs again") from None
    return found


def compose(header: Mapping[str, Any], records: Iterable[Record], order: Sequence[str], averages: Averages) -> Document:
    """What `results.json` says: the header, and everything in the records.

    Args:
        header: what a directory belongs to.
        records: of all items, in any order.
        order: of the tasks.
        averages: over all scores.
    """
    kinds = {name: number for number, name in enumerate(order)}

    def position(record: Record) -> tuple[int, str, int, str]:
        kind = record["task"].split(" ")[0]
        return kinds.get(kind, len(kinds)), record["task"], record["seed"] or 0, record["point"]

    ordered = sorted(records, key=position)
    document: Document = {**header, "task_settings": {}, "complete": False, "tasks": {}, "not_available": {}}
    grids: Document = {}
    for task in dict.fromkeys(record["task"] for record in ordered):
        of_task = [record for record in ordered if record["task"] == task]
        if of_task[0]["point"]:
            grids[task], of_task = _choose(of_task)
        _enter(document, task, of_task)
    document["not_available"] = {
        name: reason for name, reason in document["not_available"].items() if name not in document["tasks"]
    }
    document["complete"] = all(record["done"] for record in ordered)
    document["cost"] = _cost(ordered)
    return document | ({"grid": grids} if grids else {}) | _together(document, ordered, averages)


def _enter(document: Document, task: str, records: Sequence[Record]) -> None:
    """Put the records of one task into the document."""
    values: dict[tuple[str, str], dict[int, float | None]] = {}
    # What is done tells what the scores are of; a plan may be older, and of other rows.
    for record in sorted(records, key=lambda record: not record["done"]):
        if record["settings"] and record["entries"]:
            document["task_settings"].setdefault(task, record["settings"])
        document["not_available"] |= record["missing"]
        for name, entry in record["entries"].items():
            document["tasks"].setdefault(name, dict(entry))
    for name, metric, seed, value in (value for record in records for value in _values(record)):
        values.setdefault((name, metric), {})[seed] = value
    for (name, metric), by_seed in values.items():
        document["tasks"][name][metric] = summarise(by_seed)
    for record in filter(lambda record: record["done"], records):
        for name, verdict in record["done"]["verdicts"].items():
            document["tasks"][name]["verdict"] = verdict


def _values(record: Record) -> Iterator[tuple[str, str, int, float | None]]:
    for name, metrics in (record["done"] or {"scores": {}})["scores"].items():
        for metric, by_seed in metrics.items():
            yield from ((name, metric, int(seed), value) for seed, value in by_seed.items())


def _choose(records: Sequence[Record]) -> tuple[Document, list[Record]]:
    """All points of a task's grid with their means, and the records that stand for the task.

    A point is chosen over the seeds that are done at every point. While there is none, the records stand for the task
    without their scores. A point that failed under a seed is worse than any other.
    """
    by_point: dict[str, list[Record]] = {}
    for record in records:
        by_point.setdefault(record["point"], []).append(record)
    seeds = set.intersection(*({r["seed"] for r in found if r["done"]} for found in by_point.values()))
    points = []
    for point, found in by_point.items():
        selected = [r["done"]["selection"] for r in found if r["seed"] in seeds]
        mean = None if None in selected or not selected else sum(selected) / len(selected)
        settings = {name: found[0]["settings"][name] for name in ("learning_rate", "batch_size")}
        points.append({"point": point, **settings, "selection": mean, "seeds": len(seeds)})
    # The lowest rate and the smallest batch of equals: max keeps the first one.
    able = [point for point in points if point["selection"] is not None]
    able.sort(key=lambda point: (point["learning_rate"], point["batch_size"]))
    best = max(able, key=lambda point: point["selection"], default=None)
    grid = {"chosen_on": records[0]["chosen_on"], "chosen": best["point"] if best else None, "points": points}
    if not best:
        return grid, [{**record, "done": None, "settings": None} for record in records]
    standing = by_point[best["point"]]
    return grid, [record if record["seed"] in seeds else {**record, "done": None} for record in standing]


def _cost(records: Sequence[Record]) -> Document:
    """What was thought that the items would take, and what those that are done have taken."""
    done = [record for record in records if record["done"]]
    return {
        "items": len(records),
        "done": len(done),
        "teraflops": round(sum(record["teraflops"] for record in records), 3),
        "estimated_seconds": round(sum(record["estimated_seconds"] for record in records), 1),
        "seconds": round(sum(record["done"]["seconds"] for record in done), 1),
    }


def _together(document: Document, records: Sequence[Record], averages: Averages) -> Document:
    """What belongs to no single task: the averages that there are, and the zip."""
    found: Document = {}
    for record in records:
        if record["done"] and record["done"]["submission"]:
            found["submission"] = record["done"]["submission"]
    results = Results(document)
    return found | {name: value for name, average in averages.items() if (value := average(results)) is not None}
