"""The method inside a distributed run: statistics from all ranks, one decision, the same gates everywhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.compaction.fold import open_indices
from pipeline.compaction.groups import Group
from pipeline.compaction.model import CompactedBert
from pipeline.compaction.schedule import Schedule
from pipeline.compaction.selection import TaylorScores, norm_scores, random_scores
from pipeline.config import Recipe
from pipeline.engine.distributed import World
from pipeline.engine.restore import SELECTED, without_prefix
from pipeline.engine.state import gathered
from pipeline.errors import UserError
from pipeline.records import read_json_lines


class CompactionState:
    """Schedule, gates and running scores of one run. All ranks hold the same and call the same methods."""

    def __init__(self, recipe: Recipe, model: CompactedBert, world: World) -> None:
        self.config, self.seed = recipe.compaction, recipe.train.seed
        self.model, self.world = model, world
        self.schedule = Schedule(recipe.compaction, model.gates, recipe.train.compactor_lr)
        self.taylor = TaylorScores(model.gates)
        self.replayed = None
        if self.config.replay:
            self.replayed = load_replay(self.config.replay, model.gates.groups, self.config.increments)

    def before_step(self, step: int) -> list[dict[str, Any]]:
        """Retire what is due at `step` and set the gates; returns the records of the choice, one per group."""
        increment = self.config.increment_due(step)
        records: list[dict[str, Any]] = []
        if increment is not None:
            records = list(self._select(step, increment))
            self.taylor.reset()
        if not self.model.narrowed:
            self.schedule.set_gates(step)
        self.model.gates.record_gradient(self._scores_gradients(step))
        return records

    def gate_gradient(self, loss_scale: float) -> Tensor | None:
        """The gradient of all gates (dimensions,) of the whole global batch, on the CPU; None if it is not scored.

        Args:
            loss_scale: fp16's, that the gradient has in it.
        """
        gradient = self.model.gates.value.grad
        return None if gradient is None else self.world.mean(gradient.double()).cpu() / loss_scale

    def after_step(self, gradient: Tensor) -> None:
        """Score what `gate_gradient` returned, for a step that was not skipped."""
        if bool(gradient.isfinite().all()):
            self.taylor.add(gradient)

    def state_dict(self) -> dict[str, Tensor]:
        selected = {f"{SELECTED}{name}": value for name, value in self.schedule.state_dict().items()}
        return {**selected, **{f"taylor.{name}": value for name, value in self.taylor.state_dict().items()}}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.schedule.load_state_dict(without_prefix(state, SELECTED))
        self.taylor.load_state_dict(without_prefix(state, "taylor."))

    def narrowing_due(self, step: int) -> bool:
        """True from the step on at which every gate is 0 or 1, until `narrow` was called."""
        return step >= self.config.end_step and not self.model.narrowed

    def narrow(self, successor: CompactedBert, state: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """Go on with `successor`, a model just built for the recipe, narrowed to what the gates have left open.

        Args:
            successor: takes the place of the present model.
            state: what `gather_state` returned for the present model.

        Returns:
            The state cut to the successor's parameters.
        """
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

    def _scores_gradients(self, step: int) -> bool:
        """Taylor scores are wanted until the last choice is made."""
        last = self.config.last_selection_step
        return self.config.selection == "taylor" and self.replayed is None and step < last

    def _select(self, step: int, increment: int) -> Iterator[dict[str, Any]]:
        scores = self._scores(increment)
        if self.replayed is not None:
            choices = self.replayed[increment]
        else:
            # Ranks hold equal scores up to the last bits; one of them decides.
            choices = self.world.broadcast(self.schedule.choose(increment, scores))
        self.schedule.retire(step, choices)
        for name, retired in choices.items():
            yield {
                "step": step,
                "increment": increment,
                "group": name,
                "retired": retired,
                "scores": scores[name].tolist() if name in scores else [],
            }

    def _scores(self, increment: int) -> dict[str, Tensor]:
        if self.replayed is not None:
            return {}
        if self.config.selection == "taylor":
            if not self.taylor.steps:  # fp16 can skip every step for a while: all scores would be equal
                raise self.world.said_once(
                    UserError(
                        f"increment {increment} is due and no step since the last one had finite gradients to choose "
                        "by: raise compaction.start_step or interval_steps, or lower fp16's initial_scale_power"
                    )
                )
            return self.taylor.scores()
        if self.config.selection == "random":
            return {name: random_scores(group, increment, self.seed) for name, group in self.model.gates.groups.items()}
        with gathered([self.model.get_parameter(side.name) for side in self.model.sides() if side.is_row]):
            return norm_scores(self.model)


def load_replay(path: str, groups: dict[str, Group], increments: int) -> dict[int, dict[str, list[int]]]:
    """The choices in a `selection.jsonl`: increment -> group -> dimensions.

    Raises:
        UserError: the file is missing or no such record, or it was recorded for other groups or increments.
    """
    if not Path(path).is_file():
        raise UserError(f"compaction.replay {path} does not exist")
    choices: dict[int, dict[str, list[int]]] = {}
    try:
        for line in read_json_lines(Path(path)):
            choices.setdefault(line["increment"], {})[line["group"]] = line["retired"]
        retired = {name: [i for choice in choices.values() for i in choice[name]] for name in groups}
    except (KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f"compaction.replay {path} is no whole selection.jsonl of this teacher: {error!r}") from error
    if choices.keys() != set(range(1, increments + 1)):
        raise UserError(
            f"compaction.replay {path} records {len(choices)} increments and compaction.increments is {increments}"
        )
    for name, group in groups.items():
        if not _reaches_target(group, retired[name]):
            raise UserError(
                f"compaction.replay {path} retires {len(set(retired[name]))} of {group.size} dimensions of {name}, "
                f"which does not lead to {group.target_size}: it was recorded for another teacher, target or strategy"
            )
    return choices


def _reaches_target(group: Group, retired: list[int]) -> bool:
    """Whether retiring these leaves what the student needs: the quota of every block, in whole units."""
    if len(set(retired)) != len(retired) or any(not 0 <= index < group.size for index in retired):
        return False
    gone = torch.zeros(group.size, dtype=torch.bool)
    gone[retired] = True
    units = gone.reshape(group.blocks, -1, group.unit)
    whole = bool((units.all(-1) == units.any(-1)).all())
    return whole and bool((units.all(-1).sum(1) == group.units_to_retire).all())
