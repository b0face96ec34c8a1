"""The table of tasks: a new one is a class and a line here."""

from pipeline.errors import UserError
from pipeline.evaluation.attention.run import Attention
from pipeline.evaluation.glue.run import Glue
from pipeline.evaluation.latency import Latency
from pipeline.evaluation.mlm import MaskedLM
from pipeline.evaluation.squad.run import Squad
from pipeline.evaluation.task import Request, Task

TASKS: tuple[type[Task], ...] = (Glue, Squad, MaskedLM, Latency, Attention)
"""In the order of `results.json`. They run from the last to the first: fine-tuning takes hours, the others minutes."""

NAMES: tuple[str, ...] = tuple(name for task in TASKS for name in task.names)
"""All that `--tasks` accepts."""


def make_tasks(text: str, request: Request) -> list[Task]:
    """The tasks that `--tasks` names, in the order of the table.

    Raises:
        UserError: a name is unknown or missing, or an option is for a task that is not asked for.
    """
    asked = [part.strip() for part in text.split(",")]
    for name in asked:
        if name not in NAMES:
            raise UserError(f"--tasks: unknown task '{name}'; known are {', '.join(NAMES)}")
    if (request.teacher or request.controls) and not set(Attention.names) & set(asked):
        raise UserError("--teacher and --controls are for task attention, which --tasks does not name")
    if request.predict_test and not set(Glue.names) & set(asked):
        raise UserError("--predict-test: there is no task of GLUE in --tasks")
    chosen = {task: [name for name in asked if name in task.names] for task in TASKS}
    return [task(names, request) for task, names in chosen.items() if names]
