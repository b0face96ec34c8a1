"""The method inside a distributed run: statistics from all ranks, one decision, the same gates everywhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.compaction.model import CompactedBert
from pipeline.compaction.schedule import Schedule
from pipeline.compaction.selection import TaylorScores, norm_scores, random_scores
from pipeline.config import Recipe
from pipeline.engine.distributed import World
from pipeline.engine.run_directory import read_json_lines
from pipeline.engine.state import gathered
from pipeline.errors import UserError


class CompactionState:
    """Schedule, gates and running scores of one run. All ranks hold the same and call the same methods."""

    def __init__(self, recipe: Recipe, model: CompactedBert, world: World) -> None:
        self.config, self.seed = recipe.compaction, recipe.train.seed
        self.model, self.world = model, world
        self.schedule = Schedule(recipe.compaction, model.gates, recipe.train.compactor_lr)
        self.taylor = TaylorScores(model.gates)
        self.replayed = load_replay(self.config.replay, model) if self.config.replay else None

    def before_step(self, step: int) -> list[dict[str, Any]]:
        """Retire what is due at `step` and set the gates; returns the records of the choice, one per group."""
        increment = self.config.increment_due(step)
        records: list[dict[str, Any]] = []
        if increment is not None:
            records = list(self._select(step, increment))
            self.taylor.reset()
        if step <= self.config.end_step:
            self.schedule.set_gates(step)
        for gate in self.model.gates.values():
            gate.record_gradient(self._scores_gradients(step))
        return records

    def after_backward(self, engine: Any) -> None:
        """Take the gate gradients of the whole global batch, before DeepSpeed's step changes the loss scale."""
        gradients = {name: gate.value.grad for name, gate in self.model.gates.items() if gate.value.grad is not None}
        if not gradients:
            return
        flat = self.world.mean(torch.cat([g.double() for g in gradients.values()]))
        flat /= loss_scale(engine)
        if bool(flat.isfinite().all()):
            parts = flat.split([len(g) for g in gradients.values()])
            self.taylor.add(dict(zip(gradients, parts, strict=True)))

    def state_dict(self) -> dict[str, Tensor]:
        selected = {f"selected_at.{name}": value for name, value in self.schedule.state_dict().items()}
        return {**selected, **{f"taylor.{name}": value for name, value in self.taylor.state_dict().items()}}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.schedule.load_state_dict(_strip(state, "selected_at."))
        self.taylor.load_state_dict(_strip(state, "taylor."))

    def set_gates(self, step: int) -> None:
        """The gates as they are after `step` completed steps, with nothing selected anew."""
        self.schedule.set_gates(step)

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
            return self.taylor.scores()
        if self.config.selection == "random":
            return {name: random_scores(group, increment, self.seed) for name, group in self.model.groups.items()}
        scores = {}
        for name in self.model.groups:
            with gathered([reader.row_delta for reader in self.model.readers(name)]):
                scores[name] = norm_scores(self.model, name)
        return scores


def loss_scale(engine: Any) -> float:
    """The factor that DeepSpeed's fp16 puts on the loss; 1 in other precisions."""
    return float(getattr(engine.optimizer, "loss_scale", 1.0))


def load_replay(path: str, model: CompactedBert) -> dict[int, dict[str, list[int]]]:
    """The choices in a `selection.jsonl`: increment -> group -> dimensions.

    Raises:
        UserError: the file is missing, or does not belong to these groups.
    """
    if not Path(path).is_file():
        raise UserError(f"compaction.replay {path} does not exist")
    choices: dict[int, dict[str, list[int]]] = {}
    for line in read_json_lines(Path(path)):
        choices.setdefault(line["increment"], {})[line["group"]] = line["retired"]
    for name, group in model.groups.items():
        retired = [index for choice in choices.values() for index in choice.get(name, [])]
        if len(set(retired)) != group.size - group.keep or any(not 0 <= index < group.size for index in retired):
            raise UserError(
                f"compaction.replay {path} retires {len(set(retired))} of {group.size} dimensions of {name}, and this "
                f"target wants {group.size - group.keep} retired: it was recorded for another teacher or target"
            )
    return choices


def _strip(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
