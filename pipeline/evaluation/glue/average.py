"""The GLUE averages of an evaluation: over the eight tasks of `GLUE`, and over all nine."""

from collections.abc import Sequence

from pipeline.evaluation.glue.tasks import GLUE, GLUE_TASKS, MNLI_MM
from pipeline.evaluation.metrics import summarise
from pipeline.evaluation.results import Results, Summary


def task_score(results: Results, name: str, seed: str) -> float:
    """One number for a GLUE task under one seed: the mean of its metrics.

    For mnli it is the mean over the matched and, where that was there, the mismatched set.

    Raises:
        KeyError: the task has no score under this seed.
    """
    names = [name, MNLI_MM] if name == "mnli" and MNLI_MM in results.names else [name]
    values = [results.scores(part)[metric]["seeds"][seed] for part in names for metric in GLUE_TASKS[name].metrics]
    return sum(values) / len(values)


def glue_average(results: Results, names: Sequence[str] = GLUE) -> Summary | None:
    """The unweighted mean over `names`, seed by seed, then mean and std over the seeds.

    This is the convention of the benchmark itself (Wang et al. 2018, section 3: metrics averaged within a
    task first). Seeds that some task lacks are left out; None when no seed has all of them.
    """
    averages: dict[int, float] = {}
    for seed in results.scores("cola").get("matthews", {}).get("seeds", {}):
        try:
            averages[int(seed)] = sum(task_score(results, name, seed) for name in names) / len(names)
        except KeyError:
            continue
    return summarise(averages) if averages else None
