"""`wid`: a teacher gets a compactor on each side of every linear layer, and loses its dimensions by a schedule."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from pipeline.compaction.fold import compare, fold, open_indices
from pipeline.compaction.model import CompactedBert, is_compactor
from pipeline.compaction.schedule import Schedule
from pipeline.compaction.selection import TaylorScores, norm_scores, random_scores
from pipeline.data.loader import TrainingData
from pipeline.errors import UserError
from pipeline.methods.method import Method, Ranks, State
from pipeline.methods.replay import load_replay
from pipeline.methods.teacher import new_bert, teacher_of
from pipeline.models.huggingface import save_config, shape_of
from pipeline.recipe import Recipe
from pipeline.shapes import BertShape
from pipeline.teacher_files import head_warmup_fault, resolve_student

_SELECTED, _TAYLOR = "selected_at.", "taylor."
"""Prefixes in a checkpoint of when each dimension of a group was selected, and of the running scores."""


class Wid(Method):
    """Weight-Inherited Distillation: schedule, gates and running scores. All ranks hold the same."""

    title = "Weight-Inherited Distillation (WID)"
    model: CompactedBert
    schedule: Schedule

    def __init__(self, recipe: Recipe, teacher: BertForMaskedLM, head_is_new: bool = False) -> None:
        super().__init__(recipe, compact(recipe, teacher), head_is_new)
        self.config = recipe.compaction
        self.schedule = Schedule(recipe.compaction, self.model.gates, recipe.train.compactor_lr)
        self.taylor = TaylorScores(self.model.gates)
        self._replayed: dict[int, dict[str, list[int]]] | None = None

    @classmethod
    def build(cls, recipe: Recipe, data: TrainingData, vocab_size: int) -> Self:
        torch.manual_seed(recipe.train.seed)
        teacher, head_is_new, notices = teacher_of(recipe, vocab_size, recipe.train.dropout)
        if head_is_new and (fault := head_warmup_fault(recipe)):
            raise UserError(fault)
        method = cls(recipe, teacher, head_is_new)
        method.notices = notices
        return method

    @classmethod
    def rebuild(cls, recipe: Recipe, config: BertConfig, head_is_new: bool) -> Self:
        return cls(recipe, new_bert(config), head_is_new)

    def get_ready(self) -> None:
        if self.config.replay:
            self._replayed = load_replay(self.config.replay, self.model.gates.groups, self.config.increments)

    def move_to(self, device: torch.device) -> None:
        # Gates are no parameters, so DeepSpeed leaves them where they are.
        self.model.gates.move_to(device)

    def describe(self) -> list[str]:
        params = self.recipe.target.params
        word = "student" if params is None else f"target.params {params}: the nearest legal student has"
        return [*super().describe(), f"{word}: {self.model.target}"]

    def before_step(self, step: int, ranks: Ranks) -> list[dict[str, Any]]:
        """Retire what is due at `step` and set the gates; returns the records of the choice, one per group."""
        increment = self.config.increment_due(step)
        records: list[dict[str, Any]] = []
        if increment is not None:
            records = list(self._select(step, increment, ranks))
            self.taylor.reset()
        if not self.model.narrowed:
            self.schedule.set_gates(step)
        self.model.gates.record_gradient(self._scores_gradients(step))
        return records

    def after_step(self, ranks: Ranks, loss_scale: float) -> None:
        """Score the gradient of all gates, of the whole global batch."""
        gradient = self.model.gates.value.grad
        if gradient is not None:
            self.taylor.add(ranks.mean(gradient.double()) / loss_scale)

    def successor(self, step: int) -> CompactedBert | None:
        """The same model at the width that is left, from the step on at which every gate is 0 or 1."""
        if step < self.config.end_step or self.model.narrowed:
            return None
        return compact(self.recipe, new_bert(BertConfig.from_dict(save_config(self.model.config))))

    def hand_over(self, successor: CompactedBert, state: State) -> State:
        kept = open_indices(self.model.gates)
        sides = {side.name: side for side in successor.sides()}
        successor.narrow(kept)
        self.model, self.schedule.gates = successor, successor.gates
        return {
            kind: {
                name: successor.cut(sides[name], tensor, kept) if name in sides else tensor
                for name, tensor in tensors.items()
            }
            for kind, tensors in state.items()
        }

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"narrowed": self.model.narrowed}

    def state_dict(self) -> dict[str, Tensor]:
        selected = {f"{_SELECTED}{name}": value for name, value in self.schedule.state_dict().items()}
        return {**selected, **{f"{_TAYLOR}{name}": value for name, value in self.taylor.state_dict().items()}}

    def load_state_dict(self, step: int, facts: Mapping[str, Any], state: dict[str, Tensor]) -> None:
        self.schedule.load_state_dict(_without_prefix(state, _SELECTED))
        self.taylor.load_state_dict(_without_prefix(state, _TAYLOR))
        self.schedule.set_gates(step)
        if facts["narrowed"]:
            self.model.narrow(open_indices(self.model.gates))

    def export(self, windows: list[Tensor]) -> tuple[BertForMaskedLM, dict[str, Any]]:
        student, kept = fold(self.model.eval())
        report = compare(self.model, student, windows)
        if not report.passes:
            raise UserError(f"the folded student is not the trained model, nothing is written: {report.to_dict()}")
        return student, {"strategy": self.config.strategy, "kept": kept, **report.to_dict()}

    @property
    def shape(self) -> BertShape:
        return self.model.target if self.model.narrowed else super().shape

    @torch.no_grad()
    def norms(self, ranks: Ranks) -> dict[str, Tensor]:
        """How far the compactors have moved from the identity, dimension by dimension.

        Returns:
            `row_KIND` and `column_KIND` for the kinds of group residual, attention and ffn: the L2 norms of the columns
            of every row delta and of the rows of every column delta that stand on dimensions of such groups, one after
            another (dimensions,) fp32 on the CPU.
        """
        norms: dict[str, list[Tensor]] = defaultdict(list)
        for side in self.model.sides():
            if not is_compactor(side.name):
                continue
            delta = self.model.get_parameter(side.name)
            with ranks.whole([delta]):
                across = 2 * delta.ndim - 3 - side.dim  # the other one of a matrix's two dimensions
                norm = torch.linalg.vector_norm(delta, dim=across, dtype=torch.float32)
            norms[f"{'row' if side.is_row else 'column'}_{side.kind}"].append(norm.flatten())
        return {name: torch.cat(parts).cpu() for name, parts in norms.items()}

    def _scores_gradients(self, step: int) -> bool:
        """Taylor scores are wanted until the last choice is made."""
        last = self.config.last_selection_step
        return self.config.selection == "taylor" and self._replayed is None and step < last

    def _select(self, step: int, increment: int, ranks: Ranks) -> Iterator[dict[str, Any]]:
        scores = self._scores(increment, ranks)
        if self._replayed is not None:
            choices = self._replayed[increment]
        else:
            # Ranks hold equal scores up to the last bits; one of them decides.
            choices = ranks.broadcast(self.schedule.choose(increment, scores))
        self.schedule.retire(step, choices)
        for name, retired in choices.items():
            yield {
                "step": step,
                "increment": increment,
                "group": name,
                "retired": retired,
                "scores": scores[name].tolist() if name in scores else [],
            }

    def _scores(self, increment: int, ranks: Ranks) -> dict[str, Tensor]:
        if self._replayed is not None:
            return {}
        if self.config.selection == "taylor":
            if not self.taylor.steps:  # fp16 can skip every step for a while: all scores would be equal
                raise ranks.said_once(
                    UserError(
                        f"increment {increment} is due and no step since the last one had finite gradients to choose "
                        "by: raise compaction.start_step or interval_steps, or lower fp16's initial_scale_power"
                    )
                )
            return self.taylor.scores()
        if self.config.selection == "random":
            groups, seed = self.model.gates.groups, self.recipe.train.seed
            return {name: random_scores(group, increment, seed) for name, group in groups.items()}
        with ranks.whole([self.model.get_parameter(side.name) for side in self.model.sides() if side.is_row]):
            return norm_scores(self.model)


def compact(recipe: Recipe, teacher: BertForMaskedLM) -> CompactedBert:
    """Wrap a teacher as the recipe says.

    Raises:
        UserError: the target is no BERT that it can become.
    """
    target = resolve_student(recipe, shape_of(teacher.config))
    penalty = recipe.compaction.decay == "penalty"
    return CompactedBert(teacher, target, recipe.compaction.strategy, stops_gradient=penalty)


def _without_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
