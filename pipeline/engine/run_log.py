"""What a run tells while it runs: the console line, metrics.jsonl and TensorBoard. Rank 0 only."""

import time
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.compaction.schedule import Schedule
from pipeline.engine.board import Board
from pipeline.errors import give_up_stdout
from pipeline.files import writing
from pipeline.records import JsonLines


class RunLog:
    """Writes logged steps in three places.

    Args:
        directory: of the run.
        first_step: completed steps at the start; later records of an earlier attempt are dropped.
        steps: of the whole run, for the time left.
    """

    def __init__(self, directory: Path, first_step: int, steps: int) -> None:
        self.metrics = JsonLines(directory / "metrics.jsonl", first_step)
        # A selection belongs to the step it comes before, which a resumed run takes again.
        self.selections = JsonLines(directory / "selection.jsonl", first_step - 1)
        self.events = directory / "tensorboard"
        with writing(self.events):
            self.board = Board(directory, first_step)
        self.steps = steps
        self._first = (first_step, time.monotonic())

    def step(self, record: dict[str, Any], rates: dict[str, float]) -> None:
        """One logged step.

        Args:
            record: at least step, tokens, loss, accuracy, kept, and what `Telemetry.interval` returns.
            rates: the learning rate of each role.
        """
        self.metrics.append(**record)
        with writing(self.events):
            self.board.step(record, rates)
        self.say(self._line(record))

    def selection(self, choices: list[dict[str, Any]], schedule: Schedule) -> None:
        """One increment, with what it retired in each group; scores keep six digits, the choice itself is exact."""
        for choice in choices:
            self.selections.append(**{**choice, "scores": [float(f"{score:.6g}") for score in choice["scores"]]})
        with writing(self.events):
            self.board.selection(choices, schedule)

    def compaction(self, step: int, schedule: Schedule, norms: dict[str, Tensor]) -> None:
        """The gates, and what `compactor_norms` returned, after `step` optimizer steps."""
        with writing(self.events):
            self.board.gates(step, schedule.gates)
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
            f"acc {100 * record['accuracy']:.1f} %",
            f"{record['tokens_per_s']:,.0f} tokens/s",
        ]
        if record["kept"]:
            parts.append(f"residual {record['kept']['residual']}")
        if "heldout_loss" in record:
            parts.append(f"held-out loss {record['heldout_loss']:.4f} acc {100 * record['heldout_accuracy']:.1f} %")
        return "  ".join([*parts, f"{self._time_left(step)} left"])

    def _time_left(self, step: int) -> str:
        first, started = self._first
        seconds = round((time.monotonic() - started) / max(step - first, 1) * (self.steps - step))
        hours, minutes = divmod(seconds // 60, 60)
        return f"{hours}:{minutes:02d}:{seconds % 60:02d}"
