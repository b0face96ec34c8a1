"""Is the training sound? Steps without finite numbers are counted, and losses far above the usual are pointed out.

Every rank sees the same numbers, and so all ranks come to the same decision without asking.
"""

import math
from dataclasses import dataclass
from typing import Any

_MEMORY_STEPS = 100
"""Time constant of the running mean and variance of the loss."""
_FIRST_STEPS = 50
"""Steps seen before a loss can be called a spike."""
_SPIKE = 6.0
"""Standard deviations above the mean that make a spike."""
_LEAST_DEVIATION = 0.01
"""Of the mean: the standard deviation counts as at least this, or a loss that stands still would spike on noise."""


@dataclass(frozen=True)
class StepResult:
    """One optimizer step as all ranks see it.

    Attributes:
        loss, accuracy: means over the global batch.
        applied: False if the step was skipped.
        loss_scale: that the gradients had; None unless fp16.
        can_lower: the loss scale was above its least value, so that overflowing gradients are in order.
        stop: a rank was asked to stop.
    """

    loss: float
    accuracy: float
    applied: bool
    loss_scale: float | None
    can_lower: bool
    stop: bool


class Anomalies:
    """Counts skipped steps and finds loss spikes.

    Attributes:
        skipped: steps skipped since the run began.
        in_a_row: of those, the last ones without a step between them that went well. Overflows that lower fp16's loss
            scale are no part of it: that is how the scale is found.
    """

    def __init__(self) -> None:
        self.skipped = self.in_a_row = 0
        self._seen, self._mean, self._variance = 0, 0.0, 0.0

    def find(self, result: StepResult) -> str | None:
        """`overflow`, `skipped` or `spike`; None for an ordinary step."""
        if not result.applied:
            self.skipped += 1
            if math.isfinite(result.loss) and result.can_lower:
                return "overflow"
            self.in_a_row += 1
            return "skipped"
        self.in_a_row = 0
        return "spike" if self._is_spike(result.loss) else None

    def _is_spike(self, loss: float) -> bool:
        deviation = max(math.sqrt(self._variance), _LEAST_DEVIATION * abs(self._mean))
        spikes = self._seen >= _FIRST_STEPS and loss > self._mean + _SPIKE * deviation
        # A spike counts only as far as the limit: a new level is learned in some steps, one bad batch changes little.
        value = self._mean + _SPIKE * deviation if spikes else loss
        self._seen += 1
        weight = max(1 / self._seen, 1 / _MEMORY_STEPS)
        difference = value - self._mean
        self._mean += weight * difference
        self._variance = (1 - weight) * (self._variance + weight * difference**2)
        return spikes

    @property
    def usual_loss(self) -> float:
        """The running mean."""
        return self._mean

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {name.lstrip("_"): value for name, value in vars(self).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in vars(self):
            setattr(self, name, state[name.lstrip("_")])


def describe_windows(windows: list[list[int]], most: int = 12) -> str:
    """Window ids per source, as data.shards counts them, in a few words."""
    parts = []
    for number, ids in enumerate(windows, 1):
        if ids:
            more = f" and {len(ids) - most} more" if len(ids) > most else ""
            shown = ", ".join(map(str, ids[:most])) + more
            parts.append(f"windows {shown}" + (f" of source {number}" if len(windows) > 1 else ""))
    return "; ".join(parts)


def describe_event(event: str, result: StepResult, anomalies: Anomalies, windows: list[list[int]]) -> str:
    """What was wrong with a step.

    Args:
        event: as `find` returned it.
        result: of the step.
        anomalies: that found it.
        windows: of the step, per source; none for an overflow, with which they have nothing to do.
    """
    if event == "overflow":
        return f"the gradients overflow at loss scale {result.loss_scale:g}, step skipped"
    if event == "skipped":
        what = f"loss or gradient is no finite number, step skipped ({anomalies.in_a_row} in a row)"
    else:
        what = f"loss {result.loss:.4f} is far above the usual {anomalies.usual_loss:.4f}"
    return f"{what}; {describe_windows(windows)}"


def describe_unsound(in_a_row: int, step: int, windows: list[list[int]]) -> str:
    """Why a run ends whose last steps up to `step` were all skipped."""
    return (
        f"loss or gradient was no finite number in {in_a_row} steps in a row, up to step {step}, which had "
        f"{describe_windows(windows)}: lower the learning rates, or look for what is wrong with the text or the teacher"
    )
