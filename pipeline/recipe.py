"""The recipe: what is trained. One YAML file, every key of which can be overridden as `--section.key value`.

How it runs (ZeRO stage, precision, micro-batch) is the DeepSpeed JSON's business, see `engine.deepspeed_config`.
"""

import copy
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.config import (
    CompactionConfig,
    DataConfig,
    DistillationConfig,
    EvaluationConfig,
    SourcesConfig,
    TargetConfig,
    TeacherConfig,
    TrainConfig,
)
from pipeline.errors import refuse
from pipeline.parsing import apply_options, build, read_sections

MethodName = Literal["wid", "continue", "scratch", "kd", "minilmv2"]
DISTILLATIONS: tuple[MethodName, ...] = ("kd", "minilmv2")


@dataclass
class Recipe:
    """What is trained, in six sections and a method; and in two more, what comes before and after on a cluster.

    wid compacts a teacher, continue trains a teacher on as it is (what more of the same text would have brought),
    scratch pre-trains a BERT from a shape, kd and minilmv2 pre-train one that learns from a teacher beside it.
    """

    method: MethodName = "wid"
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data: DataConfig = field(default_factory=DataConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    compaction: CompactionConfig = field(default_factory=CompactionConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sources: SourcesConfig = field(default_factory=SourcesConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def problems(self) -> Iterator[str]:
        """A sentence for each thing that does not go together."""
        yield from CHECKS[self.method](self)
        if self.method not in DISTILLATIONS and self.distillation != DistillationConfig():
            yield f"the distillation section is for methods kd and minilmv2, not {self.method}: remove it"

    def to_dict(self) -> dict[str, Any]:
        """What a run is: all but what comes before and after it, and `distillation` where the method has none."""
        ignored = {"sources", "evaluation", *(() if self.method in DISTILLATIONS else ("distillation",))}
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in ignored}

    def with_absolute_paths(self) -> "Recipe":
        """The same recipe whose paths mean the same from any working directory; a hub name stays a hub name."""
        recipe = copy.deepcopy(self)
        if recipe.teacher.path is not None and os.path.isdir(recipe.teacher.path):
            recipe.teacher.path = os.path.abspath(recipe.teacher.path)
        if isinstance(recipe.data.shards, str):
            recipe.data.shards = os.path.abspath(recipe.data.shards)
        elif recipe.data.shards is not None:
            recipe.data.shards = [{"path": os.path.abspath(p), "weight": w} for p, w in recipe.data.sources()]
        if recipe.data.heldout is not None:
            recipe.data.heldout = os.path.abspath(recipe.data.heldout)
        if recipe.compaction.replay is not None:
            recipe.compaction.replay = os.path.abspath(recipe.compaction.replay)
        return recipe


def _check_wid(recipe: Recipe) -> Iterator[str]:
    yield from _check_teacher(recipe)
    if recipe.target.layers is not None:
        yield "target.layers is for a new BERT (scratch, kd, minilmv2): a WID student has its teacher's layers"
    if recipe.compaction.end_step > recipe.train.steps:
        yield (
            f"the narrowing schedule ends at step {recipe.compaction.end_step}, after train.steps "
            f"{recipe.train.steps}: train longer or shorten the compaction section"
        )


def _check_continue(recipe: Recipe) -> Iterator[str]:
    yield from _check_teacher(recipe)
    if recipe.target != TargetConfig():
        yield "method continue keeps the teacher's shape: remove the target section"


def _check_scratch(recipe: Recipe) -> Iterator[str]:
    if recipe.teacher.path is not None:
        yield "method scratch takes no teacher: remove teacher.path, or use another method"


def _check_distillation(recipe: Recipe) -> Iterator[str]:
    yield from _check_teacher(recipe)
    other = {"kd": ("teacher_layer", "relation_heads"), "minilmv2": ("temperature", "mlm_share")}[recipe.method]
    for name in other:
        if getattr(recipe.distillation, name) != getattr(DistillationConfig(), name):
            yield f"distillation.{name} is not for method {recipe.method}: remove it"


def _check_teacher(recipe: Recipe) -> Iterator[str]:
    if recipe.teacher.path is None:
        yield f"method {recipe.method} needs a teacher: set teacher.path to a BERT directory or hub name"
    if recipe.method not in DISTILLATIONS and recipe.train.embedding_init != "random":
        yield f"train.embedding_init is for a new BERT, and method {recipe.method} starts from the teacher's weights"


CHECKS: dict[MethodName, Callable[[Recipe], Iterator[str]]] = {
    "wid": _check_wid,
    "continue": _check_continue,
    "scratch": _check_scratch,
    "kd": _check_distillation,
    "minilmv2": _check_distillation,
}
"""What each method has to say against a recipe. It stands here, not in `pipeline.methods`, because recipes are read and
refused where there is no torch."""


MAY_CHANGE = ("train.steps", "train.hang_minutes", "train.compile")
"""Keys that a resumed run may set anew: steps may grow, how long a rank may stand still is not about training, and the
next machine may have no compiler, or no use for one."""
HOW_IT_RUNS = ("train.cuda_graph", "data.reader")
"""Keys without an effect on what is trained; older recipes lack them."""


def load_recipe(
    path: Path, options: list[str], elsewhere: Callable[[Recipe], Iterable[str]] = lambda recipe: ()
) -> Recipe:
    """Read a recipe and apply `--section.key value` options.

    Args:
        path: of the YAML file.
        options: as they stand on the command line.
        elsewhere: what else may be wrong with the recipe where it is to run; said together with the rest.

    Raises:
        UserError: the file or a key does not exist, a value has the wrong type, or the combination is impossible.
    """
    content = read_sections(path, "recipe")
    apply_options(content, options)
    recipe: Recipe = build(Recipe, content, where=str(path))
    refuse([*recipe.problems(), *elsewhere(recipe)])
    return recipe
