"""When dimensions are retired, and along which curve their gates fall."""

import math

import torch
from torch import Tensor

from pipeline.compaction.groups import Gates
from pipeline.compaction.selection import choose
from pipeline.config import CompactionConfig, Decay

PENALTY_RATE = 30.0
"""c in g = exp(-c t lr_c): the exponential that the published momentum injection tends to, fitted to its emulated
decay (0.28 after 1,000 steps and 2e-4 after 4,000 at lr_c = 5e-5)."""


def gate_value(decay: Decay, steps_since: int, decay_steps: int, compactor_lr: float) -> float:
    """The gate `steps_since` optimizer steps after its dimension was selected; exactly 0 from `decay_steps` on."""
    if steps_since >= decay_steps:
        return 0.0
    if decay == "anneal":
        return 1.0 - steps_since / decay_steps
    return math.exp(-PENALTY_RATE * steps_since * compactor_lr)


class Schedule:
    """The record of what was retired when; sets the gates for any step from it.

    The record is all the state there is: gates are a function of it and of the step.

    Args:
        gates: whose values are set; not once they are narrowed.
        compactor_lr: the recipe's peak `train.compactor_lr`, the time scale of decay `penalty`.
    """

    def __init__(self, config: CompactionConfig, gates: Gates, compactor_lr: float) -> None:
        self.config = config
        self.gates = gates
        self.compactor_lr = compactor_lr
        # All groups in one buffer, like the gates; a view for each.
        self._selected_at = gates.whole(torch.int64, fill=-1)
        self.selected_at = gates.split_whole(self._selected_at)

    def choose(self, increment: int, scores: dict[str, Tensor]) -> dict[str, list[int]]:
        """What `increment` retires, per group, from scores (size,) float64. Changes nothing."""
        return {
            name: choose(group, scores[name], self.selected_at[name] >= 0, increment, self.config.increments)
            for name, group in self.gates.groups.items()
        }

    def retire(self, step: int, choices: dict[str, list[int]]) -> None:
        """Record that these dimensions start to close at `step`."""
        for name, indices in choices.items():
            self.selected_at[name][indices] = step

    def set_gates(self, step: int) -> None:
        """Set every gate to its value for optimizer step `step`."""
        value = torch.ones(len(self._selected_at))
        for start in self._selected_at.unique().tolist():
            if start >= 0:
                value[self._selected_at == start] = gate_value(
                    self.config.decay, step - start, self.config.decay_steps, self.compactor_lr
                )
        self.gates.set(value, self._selected_at >= 0)

    def open_count(self) -> dict[str, int]:
        """Dimensions not selected for retirement, per group."""
        return dict(self.gates.open_count)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.selected_at)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, selected_at in self.selected_at.items():
            selected_at.copy_(state[name])
