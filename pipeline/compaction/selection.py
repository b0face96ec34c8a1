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

from pipeline.compaction.groups import KINDS, Gates, Group

if TYPE_CHECKING:
    # Recipes name selections; reading a recipe must not cost the seconds that importing transformers does.
    from pipeline.compaction.model import CompactedBert


def norm_scores(model: CompactedBert) -> dict[str, Tensor]:
    """Summed L2 norms of the columns of I + row_delta over the readers of each group: name -> (size,) float64.

    Under ZeRO-3 the row compactors must be gathered while this runs.
    """
    kinds: dict[str, Tensor] = {}
    for side in model.sides():
        if not side.is_row:
            continue
        norms = torch.stack([_column_norms(delta) for delta in model.get_parameter(side.name).detach()])
        groups = sum(group.kind == side.kind for group in model.gates.groups.values())
        summed = norms.view(groups, -1, norms.shape[1]).sum(1)
        kinds[side.kind] = kinds[side.kind] + summed if side.kind in kinds else summed
    return model.gates.split(torch.cat([kinds[kind].flatten() for kind in KINDS]))


def _column_norms(delta: Tensor) -> Tensor:
    """Of I + delta (size, size): (size,) float64 on the CPU, one matrix at a time for the sake of memory."""
    whole = delta.double().cpu()
    whole.diagonal().add_(1)
    return whole.norm(dim=0)


def random_scores(group: Group, increment: int, seed: int) -> Tensor:
    """Uniform scores (size,) float64, a pure function of the group's name, the increment and the seed."""
    digest = hashlib.sha256(f"{seed}/{group.name}/{increment}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.rand(group.size, dtype=torch.float64, generator=generator)


class TaylorScores:
    """Running mean over optimizer steps of the squared gate gradients.

    Square only the gradient of the global-batch mean loss: accumulated over micro-batches, averaged over ranks and
    unscaled. Squaring any part of it measures noise instead.

    Sums stay where the gradients are, so that the host waits for a device only when a choice or a checkpoint is due.
    """

    def __init__(self, gates: Gates) -> None:
        self._split = gates.split_whole
        self._sums = gates.whole(torch.float64)
        self._steps = torch.zeros((), dtype=torch.int64)

    def add(self, gradient: Tensor) -> None:
        """Take the gradient of all gates (dimensions,) of one optimizer step; one that is not finite does not count."""
        self._sums, self._steps = self._sums.to(gradient.device), self._steps.to(gradient.device)
        finite = gradient.isfinite().all()
        self._sums += torch.where(finite, gradient.double().square(), 0.0)
        self._steps += finite

    @property
    def steps(self) -> int:
        """Gradients that counted since the last reset."""
        return int(self._steps)

    def scores(self) -> dict[str, Tensor]:
        """The mean over the steps seen: name -> (size,) float64 on the CPU."""
        return self._split(self._sums.cpu() / max(self.steps, 1))

    def reset(self) -> None:
        """Start the next interval."""
        self._steps.zero_()
        self._sums.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        sums = self._split(self._sums.cpu())
        return {"steps": self._steps.cpu(), **{f"sums.{name}": total for name, total in sums.items()}}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._steps.copy_(state["steps"])
        for name, total in self._split(self._sums).items():
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
