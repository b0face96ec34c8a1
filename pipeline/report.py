"""Report: tables, plots and a page from finished runs and evaluations.

    python pipeline/report.py --runs DIR... --output DIR

1. Read every directory: a run of pipeline/train.py (metrics.jsonl) or an evaluation of pipeline/evaluate.py
   (results.json).
2. Write `report.md` (verdict and tables), `report.json` (the same numbers, with machine, versions and commit) and
   `report.png`: loss over tokens with the moments of selection, and held-out loss against size.
3. Write `report.html`: all of it on one page that opens from disk, with what is within noise, the trade-offs between
   quality, size and latency, the recipes and the machines.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.errors import EXIT_DONE, UserError, run_entry_point
from pipeline.evaluation.results import RESULTS
from pipeline.launch import add_launcher_arguments, only_rank_zero


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tables and plots from runs and evaluations.")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, metavar="DIR", help="runs and evaluations")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where report.html and the others go")
    add_launcher_arguments(parser)
    return parser.parse_args()


def merged(numbers: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """What several evaluations of one model say of it, together."""
    found: dict[str, dict[str, Any]] = {}
    for name, new in numbers:
        known = found.setdefault(name, new)
        known |= {key: {**known.get(key, {}), **value} for key, value in new.items() if isinstance(value, dict)}
    return found


def main() -> int:
    arguments = parse_arguments()
    if not only_rank_zero():
        return EXIT_DONE
    from pipeline.environment import commit, machine, versions
    from pipeline.files import writing
    from pipeline.reporting.comparison import named, renamed
    from pipeline.reporting.html import page
    from pipeline.reporting.plots import draw
    from pipeline.reporting.summaries import EvaluationSummary, RunSummary
    from pipeline.reporting.tables import markdown

    runs, evaluations = [], []
    for directory in arguments.runs:
        if (directory / "metrics.jsonl").is_file():
            runs.append(RunSummary.read(directory))
        elif (directory / RESULTS).is_file():
            evaluations.append(EvaluationSummary.read(directory))
        else:
            raise UserError(f"{directory} is neither a run (metrics.jsonl) nor an evaluation (results.json)")
    runs, evaluations = renamed(runs), named(evaluations)
    said = markdown(runs, evaluations)
    with writing(arguments.output):
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "report.md").write_text(said + "\n", encoding="utf-8")
        made_with = {"machine": machine(), "commit": commit()}
        numbers = {
            "machine": made_with["machine"],
            "versions": versions(),
            "commit": made_with["commit"],
            "runs": {run.name: run.numbers() for run in runs},
            "evaluations": merged((evaluation.name, evaluation.numbers()) for evaluation in evaluations),
        }
        (arguments.output / "report.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
        draw(runs, evaluations, arguments.output / "report.png")
        (arguments.output / "report.html").write_text(page(runs, evaluations, made_with), encoding="utf-8")
    print(said)
    print(f"\nwritten: {arguments.output / 'report.md'}, {arguments.output / 'report.png'}")
    print(f"page: {arguments.output / 'report.html'}")
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
