"""What can be known to go wrong before anything is queued."""

import copy
import dataclasses
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.cost import trained_parameters
from pipeline.errors import Refusals, UserError, refuse
from pipeline.recipe import DISTILLATIONS, HOW_IT_RUNS, MAY_CHANGE, Recipe, load_recipe
from pipeline.stages import ROOT
from pipeline.teacher_files import teacher_shape
from pipeline.train import faults_here
from preprocessing.readers.specs import expand_specs
from slurm import scheduler
from slurm.chain import Link, has_shards
from slurm.record import FOLDER, Record
from slurm.resources import Resources

CODE = ("pipeline", "preprocessing", "slurm", "setup.py", ":!slurm/site.yaml")
"""What runs. Recipes, DeepSpeed files and the site file are copied into the run directory."""
LEFT_TO_THE_TRAINER = (*MAY_CHANGE, *HOW_IT_RUNS, "data.shards", "data.heldout", "teacher.path")
"""Keys of a recipe that it compares by what they mean, or lets change."""
_BYTES_OF_A_PARAMETER = 12
"""In a checkpoint: the fp32 weight and its two moments."""


def recipe_faults(recipe: Recipe, deepspeed_config: Path, resources: Resources) -> Iterator[str]:
    """What the trainer and the evaluation would have against a recipe."""
    asked = copy.deepcopy(recipe)
    if asked.sources.specs:
        asked.data.shards = "made from sources"
        refusals = Refusals()
        with refusals.gathering():
            expand_specs(asked.sources.specs)
        yield from refusals.sentences
    yield from faults_here(asked, deepspeed_config, resources.nodes * resources.tasks)
    if recipe.evaluation.tasks:
        from pipeline.evaluation.tasks import NAMES

        for name in (name.strip() for name in recipe.evaluation.tasks.split(",")):
            if name not in NAMES:
                yield f"evaluation.tasks: unknown task {name!r}; known are {', '.join(NAMES)}"


def code_revision() -> tuple[str, str]:
    """The commit, and what `git status` says of code that differs from it; `unknown` and nothing outside a clone."""
    commit = _git("rev-parse", "--short=12", "HEAD").strip()
    return (commit, _git("status", "--porcelain", "--", *CODE)) if commit else ("unknown", "")


def code_changes() -> str:
    """Uncommitted changes as a patch; new files are not in it."""
    return _git("diff", "HEAD", "--", *CODE)


def refuse_changes(changes: str) -> None:
    """Raise what keeps code from being submitted that no commit holds.

    Raises:
        UserError: there are changes.
    """
    if names := [line[3:] for line in changes.splitlines()]:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise UserError(f"uncommitted changes in {names[0]}{more}: commit them, or give --allow-dirty")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def refuse_path(run: Path) -> None:
    """See to it that jobs find their logs: SLURM takes a backslash in a log's name, and ends a name at a tab.

    Raises:
        UserError: the run directory's path has such a character. Percent signs, spaces and quotation marks are escaped.
    """
    if odd := next((character for character in str(run) if character == "\\" or character < " "), ""):
        raise UserError(f"SLURM writes no logs to a path with {odd!r}, as {str(run)!r} has it: choose another --run")


def refuse_full_disks(run: Path, recipe: Recipe) -> None:
    """Compare what training and shards will take with what is free.

    Raises:
        UserError: it is not enough.
    """
    refuse(filter(None, (_lack(run, _checkpoint_bytes(recipe), "checkpoints"), _lack_of_shards(recipe))))


def _lack(path: Path, needed: int, what: str) -> str | None:
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free >= needed:
        return None
    return f"{path}: {free / 1e9:.1f} GB are free, and {what} need about {needed / 1e9:.1f} GB: make room, or move it"


def _checkpoint_bytes(recipe: Recipe) -> int:
    """Of the checkpoints that are kept, and of the one that is being written."""
    is_trained = recipe.teacher.path is not None and recipe.method not in DISTILLATIONS  # else what it teaches is
    shape = teacher_shape(recipe.teacher.path) if is_trained else None
    parameters = trained_parameters("composed", shape, shape) if shape else 0
    return parameters * _BYTES_OF_A_PARAMETER * (recipe.train.keep_checkpoints + 1)


def _lack_of_shards(recipe: Recipe) -> str | None:
    """Shards and the working text of a build take about as much as the text itself."""
    if not recipe.sources.specs or has_shards(Path(recipe.data.shards)):
        return None
    files = [source for source in expand_specs(recipe.sources.specs) if source.path.is_file()]
    return _lack(Path(recipe.data.shards), sum(source.text_bytes for source in files), "shards")


def refuse_another_recipe(run: Path, recipe: Recipe) -> None:
    """See to it that a run with checkpoints goes on with the recipe it has; the trainer would refuse another one.

    Raises:
        UserError: a key differs that may not.
    """
    if not any((run / "checkpoints").glob("step_*/complete.json")):
        return
    old, new = (_flat(known.to_dict()) for known in (load_recipe(run / FOLDER / "recipe.yaml", []), recipe))
    for key in sorted(old.keys() | new.keys(), key=lambda key: (key != "method", key)):
        if old.get(key) != new.get(key) and key not in LEFT_TO_THE_TRAINER:
            change = f"its {key} is {old.get(key)!r}, not {new.get(key)!r}"
            raise UserError(f"{run} holds another run: {change}; choose another --run")


def _flat(sections: dict[str, Any]) -> dict[str, Any]:
    """Values by `section.key`."""
    values = dict[str, Any]()
    for name, section in sections.items():
        below = {f"{name}.{key}": value for key, value in section.items()} if isinstance(section, dict) else None
        values |= {name: section} if below is None else below
    return values


def refuse_jobs(record: Record) -> None:
    """See to it that no job of a run waits or runs, also of a submission that was cut.

    Raises:
        UserError: some do.
    """
    for job in [job for job in record.own if not job.number]:
        found = scheduler.named(job.name)
        record.jobs.remove(job)
        if found:
            record.note(dataclasses.replace(job, number=found[0]))
    if active := scheduler.active(job.number for job in record.own):
        numbers = ", ".join(sorted({state.job for state in active}, key=int))
        raise UserError(
            f"{record.run} has jobs that wait or run: {numbers}; wait for them (slurm/status.py), or end them "
            "(slurm/cancel.py)"
        )


def refuse_links(links: list[Link]) -> None:
    """See to it that the stages to queue find what they need and do not meet what they would not overwrite.

    Raises:
        UserError: they do not.
    """
    for stage in links[0].stages if links else ():
        if missing := [path for path in stage.inputs if not path.exists()]:
            raise UserError(f"stage {stage.name} needs {missing[0]}, which is not there: begin with an earlier stage")
    for stage in (stage for link in links if link.name == "fold" for stage in link.stages):
        if (student := stage.outputs[0].parent).exists() and any(student.iterdir()):
            raise UserError(f"stage fold would write {student}, which is there: move it away, then submit again")


def refuse_resources(record: Record, links: Iterable[Link]) -> None:
    """Ask SLURM whether it would take every batch file.

    Raises:
        UserError: it would not; with one sentence for each reason.
    """
    sentences = list[str]()
    for link in links:
        if complaint := scheduler.check(record.batch_file(link.name)):
            named = [f"{key} {value}" for key in ("partition", "account") if (value := getattr(link.resources, key))]
            asked = f" ({', '.join(named)})" if named else ""
            sentences.append(f"SLURM refuses stage {link.name}{asked}: {complaint}")
    refuse(sentences)
