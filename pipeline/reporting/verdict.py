"""The verdict of a report in one sentence: what was compressed to what, and how the two compare."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.reporting.comparison import Model, Score, is_quality, lower_is_better, number
from pipeline.reporting.summaries import RunSummary
from pipeline.shapes import BertShape

RELATIONS = ("better", "equal or within noise", "worse")
NUMBERS_IN_A_SENTENCE = 4
"""Tasks up to which the verdict gives their scores; a sentence with more of them is not read."""


def main_student(models: Sequence[Model]) -> Model | None:
    """What the verdict is on: the first WID student, else the first that was folded, else the smallest of several."""
    folded = [model for model in models if model.fold]
    wid = [model for model in folded if model.fold.get("method") == "wid"]
    if wid or folded:
        return (wid or folded)[0]
    return min(models, key=lambda model: model.shape.parameters) if len(models) > 1 else None


def run_of(model: Model, runs: Sequence[RunSummary]) -> RunSummary | None:
    """The run that a model was folded from, if it is among these."""
    source = model.fold.get("source_run")
    if not isinstance(source, str):
        return None
    same = [run for run in runs if run.directory.resolve() == Path(source).resolve()]
    # Directories may have been moved since; then the name has to do, where it stands for one run.
    named = [run for run in runs if run.directory.name == Path(source).name]
    return same[0] if same else named[0] if len(named) == 1 else None


def teacher_of(student: Model, models: Sequence[Model], runs: Sequence[RunSummary]) -> Model | None:
    """The evaluated model that the student's run started from, else the largest of those that are larger."""
    run = run_of(student, runs)
    named = ((run.recipe.get("teacher") or {}) if run else {}).get("path")
    others = [model for model in models if model is not student]
    if isinstance(named, str):
        for model in others:
            if model.path.resolve() == Path(named).resolve():
                return model
    larger = [model for model in others if model.shape.parameters > student.shape.parameters]
    return max(larger, key=lambda model: model.shape.parameters, default=None)


def verdict(models: Sequence[Model], runs: Sequence[RunSummary]) -> str:
    """One sentence: what was compressed to what, and how the two compare."""
    student = main_student(models)
    teacher = teacher_of(student, models, runs) if student else None
    if student and teacher:
        return _compressed(student, teacher, runs) + _compared(student, teacher) + "."
    count = f"{len(models)} model{'s' * (len(models) != 1)} and {len(runs)} run{'s' * (len(runs) != 1)}"
    return f"This page shows {count}, among which are no student and teacher to compare."


def caveat(models: Sequence[Model], runs: Sequence[RunSummary]) -> str:
    """What the verdict cannot know; nothing where every task has several seeds."""
    student = main_student(models)
    teacher = teacher_of(student, models, runs) if student else None
    if not student or not teacher:
        return ""
    common = [(student.scores[task][metric], task) for task, metric in _common(student, teacher)]
    single = [task for score, task in common if score.count < 2]
    return f"One measurement: {', '.join(single)}. How much of such a difference is noise is not known." * bool(single)


def _compressed(student: Model, teacher: Model, runs: Sequence[RunSummary]) -> str:
    run = run_of(student, runs)
    method = str(student.fold.get("method") or (run.method if run else ""))
    by = f" by {'WID' if method == 'wid' else method}" if method else ""
    share = 100 * student.shape.encoder_parameters / teacher.shape.encoder_parameters
    return (
        f"Compressed from {teacher.name} ({size(teacher.shape)}) to {student.name} ({size(student.shape)}){by}: "
        f"the student has {share:.0f} % of the encoder's parameters"
    )


def size(shape: BertShape) -> str:
    """Layers, width and millions of parameters, in words."""
    return f"{shape.layers} layers x {shape.hidden}, {shape.parameters / 1e6:.2f} M parameters"


def _compared(student: Model, teacher: Model) -> str:
    """The rest of the sentence: time, then tasks by how they compare, on the first metric of each."""
    parts = []
    fast, slow = student.milliseconds, teacher.milliseconds
    if fast and slow and slow.mean:
        parts.append(f"takes {100 * fast.mean / slow.mean:.0f} % of the time ({fast.mean:.1f} of {slow.mean:.1f} ms)")
    found: dict[str, list[str]] = {}
    common = _common(student, teacher)
    for task, metric in common:
        mine, its = student.scores[task][metric], teacher.scores[task][metric]
        numbers = f" ({metric} {number(mine.mean)} against {number(its.mean)})"
        found.setdefault(_relation(mine, its, metric), []).append(
            task + (numbers if len(common) <= NUMBERS_IN_A_SENTENCE else "")
        )
    parts += [f"is {relation} on {_listed(found[relation])}" for relation in RELATIONS if relation in found]
    return "".join(f", {part}" for part in parts[:-1]) + "".join(f" and {part}" for part in parts[-1:])


def _common(student: Model, teacher: Model) -> list[tuple[str, str]]:
    """The tasks of both that say how good they are, each with its first metric."""
    first = [(task, next(iter(metrics))) for task, metrics in student.scores.items() if is_quality(task)]
    return [(task, metric) for task, metric in first if teacher.score(task, metric)]


def _relation(mine: Score, its: Score, metric: str) -> str:
    if mine.mean == its.mean or mine.within_noise(its):
        return "equal or within noise"
    return "better" if (mine.mean < its.mean) == lower_is_better(metric) else "worse"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " and " * (len(words) > 1) + words[-1]
