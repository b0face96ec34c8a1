"""GLUE tasks from the Hugging Face hub, through `datasets`."""

from typing import Any

from pipeline.errors import DataError, first_line
from pipeline.evaluation.glue.rows import Example, Split, TaskData
from pipeline.evaluation.glue.tasks import GlueTask

HUB_NAME = "nyu-mll/glue"


def load(task: GlueTask) -> TaskData:
    """Load all labelled splits of a task.

    Raises:
        DataError: the hub does not hand them over, or a label is no class of the task.
    """
    splits = _load(task.name)
    train = convert(task, splits["train"], "train")
    return TaskData(
        task, train, {dev.name: convert(task, splits[dev.hub_split], dev.hub_split) for dev in task.dev_sets}
    )


def load_texts(task: GlueTask, config: str, split: str) -> list[tuple[str, ...]]:
    """The texts of an unlabelled split, for a model of `task`.

    Raises:
        DataError: the hub does not hand it over.
    """
    return [tuple(row[column] for column in task.hub_columns) for row in _load(config)[split]]


def _load(config: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(HUB_NAME, config)
    except (OSError, ValueError) as error:
        raise DataError(f"hub: {HUB_NAME}, {config} could not be loaded ({first_line(error)})") from error


def convert(task: GlueTask, split: Any, name: str) -> Split:
    """Rows of one hub split; the hub numbers classes in the order of `GlueTask.classes`."""
    examples = []
    for index, row in enumerate(split):
        label = row["label"]
        if not task.regression and not 0 <= label < len(task.classes):
            raise DataError(f"hub: {HUB_NAME}, {task.name}, {name}, row {index}: label {label} is no class")
        texts = tuple(row[column] for column in task.hub_columns)
        examples.append(Example(index, texts, float(label) if task.regression else int(label)))
    return Split(examples, f"hub split {name}")
