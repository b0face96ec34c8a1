"""The verdict of a report: a sentence on what was compressed to what and how the two compare; one on each control."""

from collections.abc import Iterator, Sequence

from pipeline.reporting.comparison import Model, Score, is_quality, lower_is_better, number
from pipeline.reporting.roles import CONTROLS, Roles, by
from pipeline.shapes import BertShape

RELATIONS = ("better", "equal or within noise", "worse")
NUMBERS_IN_A_SENTENCE = 4
"""Tasks up to which the verdict gives their scores; a sentence with more of them is not read."""


def verdicts(roles: Roles, models: int, runs: int) -> list[str]:
    """A sentence for each student; without one, how many `models` and `runs` there are."""
    if roles.students:
        return [_verdict(student, teacher, roles.kinds[student.name]) for student, teacher in roles.students]
    count = f"{models} model{'s' * (models != 1)} and {runs} run{'s' * (runs != 1)}"
    return [f"This page shows {count}, among which are no student and teacher to compare."]


def controls(roles: Roles) -> list[str]:
    """A sentence for each control: what it is, and how students of its size compare with it."""
    return [
        f"{control.name} is a control ({CONTROLS[roles.kinds[control.name]]})"
        + "".join(f"; {student.name} {words}" for student, words in _against(control, roles))
        + "."
        for control in roles.controls
    ]


def caveat(roles: Roles) -> str:
    """What the verdict cannot know; nothing where every task has several seeds."""
    single = {
        task: None
        for student, teacher in roles.students
        for task, metric in _common(student, teacher)
        if student.scores[task][metric].count < 2 or teacher.scores[task][metric].count < 2
    }
    return f"One measurement: {', '.join(single)}. How much of such a difference is noise is not known." * bool(single)


def size(shape: BertShape) -> str:
    """Layers, width and millions of parameters, in words."""
    return f"{shape.layers} layers x {shape.hidden}, {shape.parameters / 1e6:.2f} M parameters"


def _verdict(student: Model, teacher: Model, kind: str) -> str:
    share = 100 * student.shape.encoder_parameters / teacher.shape.encoder_parameters
    parts = [f"the student has {share:.0f} % of the encoder's parameters"]
    fast, slow = student.milliseconds, teacher.milliseconds
    if fast and slow and slow.mean:
        parts.append(f"takes {100 * fast.mean / slow.mean:.0f} % of the time ({fast.mean:.1f} of {slow.mean:.1f} ms)")
    said = f"Compressed from {teacher.name} ({size(teacher.shape)}) to {student.name} ({size(student.shape)}){by(kind)}"
    numbers = len(_common(student, teacher)) <= NUMBERS_IN_A_SENTENCE
    return f"{said}: {_listed([*parts, *_relations(student, teacher, numbers)])}."


def _against(control: Model, roles: Roles) -> Iterator[tuple[Model, str]]:
    """Students of a control's shape, each with how it compares with it."""
    for student, _ in roles.students:
        if student.shape == control.shape and (relations := _relations(student, control, numbers=False)):
            yield student, _listed(relations)


def _relations(mine: Model, its: Model, numbers: bool) -> list[str]:
    """`is better on ...` and so on, by the first metric of each task of both."""
    found: dict[str, list[str]] = {}
    for task, metric in _common(mine, its):
        one, other = mine.scores[task][metric], its.scores[task][metric]
        shown = f" ({metric} {number(one.mean)} against {number(other.mean)})" if numbers else ""
        found.setdefault(_relation(one, other, metric), []).append(task + shown)
    return [f"is {relation} on {_listed(found[relation])}" for relation in RELATIONS if relation in found]


def _common(mine: Model, its: Model) -> list[tuple[str, str]]:
    """The tasks of both that say how good they are, each with its first metric."""
    first = [(task, next(iter(metrics))) for task, metrics in mine.scores.items() if is_quality(task)]
    return [(task, metric) for task, metric in first if its.score(task, metric)]


def _relation(mine: Score, its: Score, metric: str) -> str:
    if mine.mean == its.mean or mine.within_noise(its):
        return "equal or within noise"
    return "better" if (mine.mean < its.mean) == lower_is_better(metric) else "worse"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " and " * (len(words) > 1) + words[-1]
