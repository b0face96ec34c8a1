"""Which dimensions to retire next: scores per dimension, and the choice made from them.

`norm`    L2 norm of the group's row-compactor columns, summed over its readers (the paper, on all readers instead
          of one matrix of layer 0);
`taylor`  mean over optimizer steps of the squared gradient of the loss with respect to the gate: the first-order
          change of the loss if the gate closed, for all readers and writers of the group at once;
`random`  the control.

The lowest scores are retired first. Scores are float64 on the CPU; the choice is deterministic.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.compaction.groups import Gate, Group

if TYPE_CHECKING:
    # Recipes name selections; reading a recipe must not cost the seconds that importing transformers does.
    from pipeline.compaction.model import CompactedBert


def norm_scores(model: CompactedBert, group: str) -> Tensor:
    """Summed L2 norms of the columns of I + row_delta over the readers of `group`: (size,) float64.

    Under ZeRO-3 the row compactors of the group's readers must be gathered while this runs.
    """
    total = torch.zeros(model.groups[group].size, dtype=torch.float64)
    for reader in model.readers(group):
        delta = reader.row_delta.detach().double().cpu()
        total += (delta + torch.eye(len(delta), dtype=torch.float64)).norm(dim=0)
    return total


def random_scores(group: Group, increment: int, seed: int) -> Tensor:
    """Uniform scores (size,) float64, a pure function of the group's name, the increment and the seed."""
    digest = hashlib.sha256(f"{seed}/{group.name}/{increment}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.rand(group.size, dtype=torch.float64, generator=generator)


class TaylorScores:
    """Running mean over optimizer steps of the squared gate gradients.

    Square only the gradient of the global-batch mean loss: accumulated over micro-batches, averaged over ranks and
    unscaled. Squaring any part of it measures noise instead.
    """

    def __init__(self, gates: dict[str, Gate]) -> None:
        self.steps = 0
        self.sums = {name: torch.zeros(gate.group.size, dtype=torch.float64) for name, gate in gates.items()}

    def add(self, gradients: dict[str, Tensor]) -> None:
        """Take the gradients (size,) of one optimizer step, on the CPU."""
        for name, gradient in gradients.items():
            self.sums[name] += gradient.double().square()
        self.steps += 1

    def scores(self) -> dict[str, Tensor]:
        """The mean over the steps seen: name -> (size,) float64."""
        return {name: total / max(self.steps, 1) for name, total in self.sums.items()}

    def reset(self) -> None:
        """Start the next interval."""
        self.steps = 0
        for total in self.sums.values():
            total.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        return {"steps": torch.tensor(self.steps), **{f"sums.{name}": total for name, total in self.sums.items()}}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.steps = int(state["steps"])
        for name, total in self.sums.items():
            total.copy_(state[f"sums.{name}"])


def choose(group: Group, scores: Tensor, retired: Tensor, increment: int, increments: int) -> list[int]:
    """The dimensions to retire at `increment` (1..increments), in ascending order.

    After increment k of n, floor(k r / n) of the r units that each block loses are retired. Lowest score first; of
    equal scores the lowest index.

    Args:
        group: whose dimensions they are.
        scores: (size,) float64; a unit's score is the sum over its dimensions.
        retired: (size,) bool, what earlier increments took.
        increment: k, from 1.
        increments: n.
    """
    quota = increment * group.units_to_retire // increments
    shape = (group.blocks, -1, group.unit)
    unit_scores = scores.reshape(shape).sum(-1)
    taken = retired.reshape(shape).all(-1)
    chosen: list[int] = []
    for block in range(group.blocks):
        order = unit_scores[block].masked_fill(taken[block], float("inf")).argsort(stable=True)
        for unit in order[: quota - int(taken[block].sum())].tolist():
            start = (block * unit_scores.shape[1] + unit) * group.unit
            chosen.extend(range(start, start + group.unit))
    return sorted(chosen)
