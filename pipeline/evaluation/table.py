"""What the user sees at the end: all scores in an output directory."""

from collections.abc import Iterator, Mapping, Sequence

from pipeline.evaluation.attention.conditions import MAIN_METRICS, by_text
from pipeline.evaluation.glue.tasks import GLUE, MNLI_MM, SCORED, WITH_WNLI
from pipeline.evaluation.metrics import UNDEFINED
from pipeline.evaluation.results import ATTENTION, Results, Summary
from pipeline.records import markdown_table


def format_table(results: Results) -> str:
    """Score, mean and std over seeds, number of seeds, and what the data was; the tasks of GLUE first.

    Below it, where attention was compared, a table of its main numbers and the verdicts.
    """
    texts = by_text(results.names)
    elsewhere = {name for conditions in texts.values() for name in conditions.values()}
    names = [name for name in results.names if name not in elsewhere]
    rows = []
    for name in sorted(names, key=lambda name: SCORED.index(name) if name in SCORED else len(SCORED)):
        for metric, summary in results.scores(name).items():
            about = "; ".join(filter(None, (results.data(name), results.remark(name))))
            rows.append([f"{name} {metric}", *numbers(summary), about])
    rows += [[name, "not available", "", reason] for name, reason in results.not_available.items()]
    if results.glue_average is not None:
        rows.append(["glue average", *numbers(results.glue_average), _average_note(results, GLUE)])
    if results.glue_average_with_wnli is not None:
        note = _average_note(results, WITH_WNLI)
        rows.append(["glue average with wnli", *numbers(results.glue_average_with_wnli), note])
    main = markdown_table(["score", "mean ± std", "seeds", "data"], rows) if rows or not texts else ""
    return "\n\n".join(filter(None, (main, *_attention(results, texts))))


def _attention(results: Results, texts: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """The table of the student and its controls on all texts, and a verdict for each text."""
    shown = [name for conditions in texts.values() for name in conditions.values() if results.scores(name)]
    if not shown:
        return
    rows = []
    for name in shown:
        scores = results.scores(name)
        cells = [f"{scores[metric]['mean']:.4f}" if metric in scores else "" for metric in MAIN_METRICS]
        rows.append([name, *cells, results.data(name)])
    yield markdown_table(["divergence from the teacher (nats)", *MAIN_METRICS.values(), "data"], rows)
    yield "\n".join(f"{text}: {verdict}" for text in texts if (verdict := results.verdict(text)))
    yield f"More, by layer and head: {ATTENTION}"


def _average_note(results: Results, names: Sequence[str]) -> str:
    """What a reader of the average over `names` must know."""
    notes = [] if all(results.data(name) == "full" for name in names) else ["not all data is full"]
    if any("undefined" in summary for name in (*names, MNLI_MM) for summary in results.scores(name).values()):
        notes.append("a score in it is undefined and counts as 0")
    return "; ".join(notes)


def numbers(summary: Summary) -> tuple[str, str]:
    """`mean ± std` and the number of seeds."""
    undefined = summary.get("undefined", [])
    if len(undefined) == len(summary["seeds"]):
        return UNDEFINED, str(len(undefined))
    note = f" (seed {', '.join(undefined)}: {UNDEFINED})" if undefined else ""
    return f"{summary['mean']:.4f} ± {summary['std']:.4f}{note}", str(len(summary["seeds"]))
