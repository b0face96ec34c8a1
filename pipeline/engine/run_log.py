"""What a run tells while it runs: the console line, metrics.jsonl and TensorBoard. Rank 0 only."""

import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from pipeline.engine.run_directory import JsonLines


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
        self.board = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step + 1 if first_step else None)
        self.steps = steps
        self._first = (first_step, time.monotonic())

    def step(self, record: dict[str, Any], rates: dict[str, float]) -> None:
        """One logged step; `record` has at least step, tokens, loss, accuracy, tokens_per_s, kept."""
        self.metrics.append(**record)
        step = record["step"]
        for tag in ("loss", "accuracy", "heldout_loss", "heldout_accuracy"):
            if tag in record:
                self.board.add_scalar(f"mlm/{tag}", record[tag], step)
        if record.get("gradient_norm") is not None:
            self.board.add_scalar("optimizer/gradient_norm", record["gradient_norm"], step)
        for role, rate in rates.items():
            self.board.add_scalar(f"optimizer/lr_{role}", rate, step)
        self.board.add_scalar("speed/tokens_per_s", record["tokens_per_s"], step)
        for group, kept in record["kept"].items():
            self.board.add_scalar(f"kept/{group}", kept, step)
        print(self._line(record), flush=True)

    def selection(self, step: int, increment: int, group: str, retired: list[int], scores: list[float]) -> None:
        """One group's retirement at `step`; scores keep six digits, the choice itself is exact."""
        rounded = [float(f"{score:.6g}") for score in scores]
        self.selections.append(step=step, increment=increment, group=group, retired=retired, scores=rounded)

    def say(self, sentence: str) -> None:
        print(sentence, flush=True)

    def close(self) -> None:
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
