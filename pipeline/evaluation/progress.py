"""How far a task is: a bar on a terminal, a line a minute elsewhere."""

import sys
import time
from datetime import timedelta
from types import TracebackType
from typing import Self

from tqdm import tqdm

LINE_SECONDS = 60.0


class Progress:
    """Shows how many of `total` units (windows, steps) are done while the block runs.

    `on_terminal` is whether a bar may be drawn where stdout is a terminal.
    """

    on_terminal = True

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._bar: tqdm | None = None

    def __enter__(self) -> Self:
        self._began = self._said = time.monotonic()
        if self.on_terminal and sys.stdout.isatty():
            self._bar = tqdm(desc=self._title, total=self._total, unit=f" {self._unit}", file=sys.stdout, leave=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def reached(self, done: int) -> None:
        """Say that `done` units are done."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif now - self._said >= LINE_SECONDS and done:
            left = timedelta(seconds=round((now - self._began) / done * (self._total - done)))
            print(f"{self._title}: {done:,} of {self._total:,} {self._unit}, {left} left", flush=True)
            self._said = now
