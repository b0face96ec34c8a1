"""What a run tells while it runs: the console line, metrics.jsonl and TensorBoard. Rank 0 only."""

import statistics
from collections import deque
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.config import TrainConfig
from pipeline.engine.board import Board
from pipeline.errors import give_up_stdout
from pipeline.files import writing
from pipeline.methods.method import Method
from pipeline.records import JsonLines


class TimeLeft:
    """Estimates how long the rest of a run takes, from how long its recent steps took.

    The first interval is not counted: libraries load and compile in it. The median of the last few forgives a single
    slow one and follows soon when steps become faster, as they do once the model is narrowed.

    Args:
        first_step: completed steps at the start.
    """

    _RECENT = 5
    """Intervals between logged steps."""

    def __init__(self, first_step: int, train: TrainConfig) -> None:
        self._steps, self._first, self._last = train.steps, first_step, first_step
        self._recent: deque[float] = deque(maxlen=self._RECENT)
        self._every = {"evaluate": train.evaluate_every, "checkpoint": train.checkpoint_interval}
        self._seconds = dict.fromkeys(self._every, 0.0)

    def note(self, step: int, time_ms: dict[str, float]) -> None:
        """One logged step.

        Args:
            step: steps completed.
            time_ms: milliseconds per step since the last call, by phase, see `Telemetry.interval`.
        """
        first, self._last = self._last, step
        if first == self._first:
            return
        self._recent.append((time_ms["step"] - sum(time_ms[phase] for phase in self._every)) / 1000)
        for phase in self._every:
            if time_ms[phase]:
                times = max(self._done(phase, step) - self._done(phase, first), 1)
                self._seconds[phase] = time_ms[phase] / 1000 * (step - first) / times

    def seconds(self) -> float | None:
        """The estimate; None while there is nothing to base one on."""
        if self._last == self._steps:
            return 0.0
        if not self._recent:
            return None
        training = statistics.median(self._recent) * (self._steps - self._last)
        return training + sum(self._due(phase) * seconds for phase, seconds in self._seconds.items())

    def _due(self, phase: str) -> int:
        """How often `phase` is to come; it is done after the last step in any case."""
        return -(-self._steps // self._every[phase]) - self._done(phase, self._last)

    def _done(self, phase: str, step: int) -> int:
        """How often `phase` came before the line of `step`: its evaluation did, its checkpoint comes after."""
        return (step - (phase == "checkpoint")) // self._every[phase]


class RunLog:
    """Writes logged steps in three places.

    Args:
        directory: of the run.
        first_step: completed steps at the start; later records of an earlier attempt are dropped.
    """

    def __init__(self, directory: Path, first_step: int, train: TrainConfig) -> None:
        self.metrics = JsonLines(directory / "metrics.jsonl", first_step)
        # A selection belongs to the step it comes before, which a resumed run takes again.
        self.selections = JsonLines(directory / "selection.jsonl", first_step - 1)
        self.events = directory / "tensorboard"
        with writing(self.events):
            self.board = Board(directory, first_step)
        self.steps = train.steps
        self._left = TimeLeft(first_step, train)

    def step(self, record: dict[str, Any], rates: dict[str, float]) -> None:
        """One logged step.

        Args:
            record: at least step, tokens, loss, accuracy, kept, and what `Telemetry.interval` returns.
            rates: the learning rate of each role.
        """
        self.metrics.append(**record)
        with writing(self.events):
            self.board.step(record, rates)
        self._left.note(record["step"], record["time_ms"])
        self.say(self._line(record))

    def selection(self, choices: list[dict[str, Any]], method: Method) -> None:
        """One increment, with what it retired in each group; scores keep six digits, the choice itself is exact."""
        for choice in choices:
            self.selections.append(**{**choice, "scores": [float(f"{score:.6g}") for score in choice["scores"]]})
        if method.schedule:
            with writing(self.events):
                self.board.selection(choices, method.schedule)

    def compaction(self, step: int, method: Method, norms: dict[str, Tensor]) -> None:
        """The gates, and what the method's `norms` returned, after `step` optimizer steps."""
        if method.schedule:
            with writing(self.events):
                self.board.gates(step, method.schedule.gates)
                self.board.compactors(step, norms)

    def say(self, sentence: str) -> None:
        """Print a line. Whoever read it may be gone (tee, head, a launcher): the run goes on without."""
        try:
            print(sentence, flush=True)
        except OSError:
            give_up_stdout()

    def sync(self) -> None:
        """Make what was recorded so far durable: a checkpoint must not outlive the records of what led to it."""
        self.metrics.sync()
        self.selections.sync()

    def close(self) -> None:
        with writing(self.events):
            self.board.close()

    def _line(self, record: dict[str, Any]) -> str:
        step, width = record["step"], len(str(self.steps))
        parts = [
            f"step {step:{width}}/{self.steps}",
            f"loss {record['loss']:.4f}",
            *([] if record["accuracy"] is None else [f"acc {100 * record['accuracy']:.1f} %"]),
            f"{record['tokens_per_s']:,.0f} tokens/s",
        ]
        if record["kept"]:
            parts.append(f"residual {record['kept']['residual']}")
        if "heldout_loss" in record:
            parts.append(f"held-out loss {record['heldout_loss']:.4f} acc {100 * record['heldout_accuracy']:.1f} %")
        if "heldout_relation_loss" in record:
            parts.append(f"held-out relation loss {record['heldout_relation_loss']:.4f}")
        if (left := self._left.seconds()) is not None:
            minutes, seconds = divmod(round(left), 60)
            parts.append(f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left")
        return "  ".join(parts)
