"""What recipe and teacher come to: shapes, and what the files of a teacher say before it is loaded.

Nothing here needs torch.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pipeline.errors import UserError
from pipeline.recipe import DISTILLATIONS, Recipe
from pipeline.shapes import BertShape, resolve_target

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DEFAULT_POSITIONS = 512
BERT_VOCABULARY = 30522
"""Where the true one is not known yet; it matters to `target.params` alone."""
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


def new_shape(recipe: Recipe, vocab_size: int) -> BertShape:
    """The shape of a new BERT; `target.params` picks the nearest hidden size for the given layers.

    Raises:
        UserError: the recipe's `target` is no BERT.
    """
    target, positions = recipe.target, max(DEFAULT_POSITIONS, recipe.data.seq_len)
    layers, head_size = target.layers or 12, target.head_size or 64

    def shape(heads: int) -> BertShape:
        hidden = heads * head_size
        return BertShape(layers, hidden, heads, target.intermediate or 4 * hidden, vocab_size, positions)

    params = target.parameter_count()
    if params is not None:
        if target.hidden is not None:
            raise UserError("give either target.params or target.hidden, not both")
        return min((shape(heads) for heads in range(1, 129)), key=lambda s: abs(s.parameters - params))
    if target.hidden is None or target.hidden % head_size:
        raise UserError(
            f"method {recipe.method} needs target.hidden as a multiple of target.head_size {head_size} (or "
            f"target.params), not {target.hidden}"
        )
    return shape(target.hidden // head_size)


def check_distillation(recipe: Recipe, teacher: BertShape, has_head: bool | None, student: BertShape) -> None:
    """Refuse a teacher that cannot teach this student by the recipe's method.

    Args:
        recipe: of method kd or minilmv2.
        teacher: its shape.
        has_head: whether it has an MLM head; None if that is not known.
        student: the shape of the new BERT.

    Raises:
        UserError: with the reason.
    """
    wanted, path = recipe.distillation, recipe.teacher.path
    if recipe.method == "kd":
        if has_head is False:
            raise UserError(
                f"teacher {path} has no MLM head, whose predictions method kd learns: take one that has, or method "
                "minilmv2"
            )
        return
    if wanted.teacher_layer is not None and wanted.teacher_layer > teacher.layers:
        raise UserError(
            f"distillation.teacher_layer is {wanted.teacher_layer} and teacher {path} has {teacher.layers} layers"
        )
    heads = wanted.relation_heads or teacher.heads
    for size, whose in ((teacher.hidden, f"teacher {path}"), (student.hidden, "the student")):
        if size % heads:
            raise UserError(
                f"{heads} relation heads do not divide the {size} hidden dimensions of {whose}: set "
                "distillation.relation_heads to a number that divides those of teacher and student"
            )


def check_target(recipe: Recipe) -> None:
    """Refuse, by what files say, a target that the recipe's method cannot make of its teacher, or without one.

    Raises:
        UserError: with the reason.
    """
    path = recipe.teacher.path
    teacher = teacher_shape(path) if path is not None else None
    if recipe.method == "wid" and teacher:
        resolve_student(recipe, teacher)
    elif recipe.method == "scratch" or recipe.method in DISTILLATIONS:
        student = new_shape(recipe, teacher.vocab_size if teacher else BERT_VOCABULARY)
        if path is not None and teacher and recipe.method in DISTILLATIONS:
            check_distillation(recipe, teacher, teacher_has_head(path), student)


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
