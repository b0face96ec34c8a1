"""What the user sees at the end: all scores in an output directory."""

from pipeline.evaluation.glue.tasks import GLUE, SCORED
from pipeline.evaluation.results import Results, Summary
from pipeline.records import markdown_table


def format_table(results: Results) -> str:
    """Score, mean and std over seeds, number of seeds, and what the data was; the tasks of GLUE first."""
    rows = []
    for name in sorted(results.names, key=lambda name: SCORED.index(name) if name in SCORED else len(SCORED)):
        for metric, summary in results.scores(name).items():
            rows.append([f"{name} {metric}", *numbers(summary), results.data(name)])
    rows += [[name, "not available", "", reason] for name, reason in results.not_available.items()]
    if results.glue_average is not None:
        note = "" if all(results.data(name) == "full" for name in GLUE) else "not all data is full"
        rows.append(["glue average", *numbers(results.glue_average), note])
    return markdown_table(["score", "mean ± std", "seeds", "data"], rows)


def numbers(summary: Summary) -> tuple[str, str]:
    """`mean ± std` and the number of seeds."""
    return f"{summary['mean']:.4f} ± {summary['std']:.4f}", str(len(summary["seeds"]))
