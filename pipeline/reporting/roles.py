"""What every model of a report is, from the recipe that it was trained by: a teacher, a student or a control."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.reporting.comparison import Model
from pipeline.reporting.summaries import RunSummary

WID, SLICE = "wid", "slice"
CONTROLS = {
    SLICE: "a slice of the teacher, trained without compactors",
    "scratch": "trained from scratch",
    "continue": "the teacher, trained on as it is",
}
"""Kinds of models that show what a student would be without what its method adds."""
NAMES = {WID: "WID", "kd": "logit distillation", "minilmv2": "MiniLMv2"}
"""What methods that make students are called."""


@dataclass(frozen=True)
class Roles:
    """Who is who.

    Attributes:
        students: with the teacher of each, WID's first.
        controls: no teachers among them.
        kinds: by name: the method, or `slice`; empty for what was not trained here.
    """

    students: list[tuple[Model, Model]]
    controls: list[Model]
    kinds: Mapping[str, str]

    def words(self, model: Model) -> str:
        """What a model is, in a few words."""
        kind = self.kinds[model.name]
        if model in self.controls:
            return f"control: {CONTROLS[kind]}"
        if any(model is student for student, _ in self.students):
            return f"student{by(kind)}"
        if any(model is teacher for _, teacher in self.students):
            return "teacher"
        return CONTROLS.get(kind) or (f"trained{by(kind)}" if kind else "not trained here")


def by(kind: str) -> str:
    """How a student was made, to be put behind its name."""
    return f", {CONTROLS[kind]}" if kind in CONTROLS else f" by {NAMES.get(kind, kind)}" if kind else ""


def roles_of(models: Sequence[Model], runs: Sequence[RunSummary]) -> Roles:
    """Who is who: students are what was folded and is no control; without one, the smallest of several models."""
    kinds = {model.name: kind_of(model, runs) for model in models}
    folded = [model for model in models if model.fold and kinds[model.name] not in CONTROLS]
    if not folded and len(models) > 1:
        folded = [min(models, key=lambda model: model.shape.parameters)]
    # A student may have been a teacher too; unless its run says so, it is none here.
    others = [model for model in models if model not in folded]
    pairs = [(student, teacher_of(student, models, others, runs)) for student in folded]
    students = [(student, teacher) for student, teacher in pairs if teacher]
    students.sort(key=lambda pair: kinds[pair[0].name] != WID)
    cast = {model.name for pair in students for model in pair}
    controls = [model for model in models if kinds[model.name] in CONTROLS and model.name not in cast]
    return Roles(students, controls, kinds)


def kind_of(model: Model, runs: Sequence[RunSummary]) -> str:
    """The method that a model was trained by; `slice` where that was WID with compactors that did not learn."""
    recipe = recipe_of(model, runs)
    method = str(model.fold.get("method") or recipe.get("method") or "")
    frozen = _section(recipe, "train").get("compactor_lr") == 0
    return SLICE if method == WID and frozen else method


def run_of(model: Model, runs: Sequence[RunSummary]) -> RunSummary | None:
    """The run that a model was folded from, if it is among these."""
    source = model.fold.get("source_run")
    if not isinstance(source, str):
        return None
    same = [run for run in runs if run.directory.resolve() == Path(source).resolve()]
    # Directories may have been moved since; then the name has to do, where it stands for one run.
    named = [run for run in runs if run.directory.name == Path(source).name]
    return same[0] if same else named[0] if len(named) == 1 else None


def recipe_of(model: Model, runs: Sequence[RunSummary]) -> Mapping[str, Any]:
    """The recipe of a model's run, also where the run is not among these but still where it was."""
    run = run_of(model, runs)
    return run.recipe if run else model.recipe


def teacher_of(
    student: Model, models: Sequence[Model], others: Sequence[Model], runs: Sequence[RunSummary]
) -> Model | None:
    """The one of `models` that the student's run started from, else the largest of `others` that is larger."""
    named = _section(recipe_of(student, runs), "teacher").get("path")
    if isinstance(named, str):
        for model in models:
            if model is not student and model.path.resolve() == Path(named).resolve():
                return model
    larger = [model for model in others if model.shape.parameters > student.shape.parameters]
    return max(larger, key=lambda model: model.shape.parameters, default=None)


def _section(recipe: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = recipe.get(name)
    return section if isinstance(section, Mapping) else {}
