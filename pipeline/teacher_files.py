"""What the files of a teacher say before it is loaded. Nothing here needs torch."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.shapes import BertShape, resolve_target

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_OF_A_HEAD = "cls.predictions.transform.dense.weight"


def teacher_has_head(path: str) -> bool | None:
    """Whether the weights in the directory `path` hold an MLM head.

    None where only loading can tell: for a hub name, a pickled file, or one that cannot be read.
    """
    names = _weight_names(Path(path))
    return None if names is None else any(name.endswith(_OF_A_HEAD) for name in names)


def resolve_student(recipe: Recipe, teacher: BertShape) -> BertShape:
    """The shape that the recipe makes of a teacher.

    Raises:
        UserError: its `target` is no BERT, or none that the teacher can become.
    """
    target = recipe.target
    return resolve_target(
        teacher,
        recipe.compaction.strategy,
        hidden=target.hidden,
        head_size=target.head_size,
        intermediate=target.intermediate,
        params=target.parameter_count(),
    )


def teacher_shape(path: str) -> BertShape | None:
    """What the `config.json` in the directory `path` says of a BERT; None where only loading can tell."""
    try:
        config = json.loads((Path(path) / "config.json").read_bytes())
        return BertShape.from_config(config) if config["model_type"] == "bert" else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError):
        return None


def head_warmup_fault(recipe: Recipe) -> str | None:
    """What is wrong with the schedule of a teacher without an MLM head, in a sentence; None if nothing is."""
    warmup, start = recipe.teacher.head_warmup_steps, recipe.compaction.start_step
    if recipe.method != "wid" or start >= warmup:
        return None
    return (
        f"the teacher has no MLM head, and a new one is warmed up for teacher.head_warmup_steps {warmup} steps before "
        f"anything is retired, but compaction.start_step is {start}: set compaction.start_step to at least {warmup}, "
        f"or teacher.head_warmup_steps to at most {start}"
    )


def _weight_names(directory: Path) -> list[str] | None:
    """The names in the header of the weights, or in the index of several files of weights."""
    try:
        if (directory / WEIGHTS).is_file():
            with safe_open(directory / WEIGHTS, framework="np") as weights:
                return list(weights.keys())
        return list(json.loads((directory / INDEX).read_bytes())["weight_map"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
