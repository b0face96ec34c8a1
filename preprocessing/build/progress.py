"""How far a pass over the tasks is: a bar on a terminal, a line a minute elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from types import TracebackType
from typing import Self

from tqdm import tqdm

from preprocessing.build.output import Work
from preprocessing.build.ranks import Ranks

_BAR_SECONDS, _LINE_SECONDS = 0.5, 60.0
_BAR = "{desc}: {n}/{total} tasks |{bar}|{postfix}"


class Progress:
    """Shows, while the block runs, what `news` tells of tasks that finished since it was asked last.

    A thread asks: the work of other processes and nodes counts too, and tasks may take minutes.
    """

    def __init__(self, title: str, tasks: int, done: int, news: Callable[[], Iterable[Work]], ranks: Ranks) -> None:
        self._title, self._tasks, self._before = title, tasks, done
        self._news, self._shown = news, ranks.rank == 0 and done < tasks
        # mpirun gives the first rank a terminal of its own, whatever stands behind.
        self._terminal = sys.stdout.isatty() and ranks.size == 1
        self._done = self._documents = self._bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._bar: tqdm | None = None

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if self._shown:
            if self._terminal:
                self._bar = tqdm(
                    desc=self._title, total=self._tasks, initial=self._before, file=sys.stdout, bar_format=_BAR
                )
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._shown:
            return
        self._ended.set()
        self._thread.join()
        if kind is None:
            self._show()
        if self._bar is not None:
            self._bar.close()

    def _watch(self) -> None:
        while not self._ended.wait(_BAR_SECONDS if self._bar is not None else _LINE_SECONDS):
            self._show()

    def _show(self) -> None:
        for work in self._news():
            self._done += 1
            self._documents += work.documents
            self._bytes += work.text_bytes
        if self._bar is not None:
            self._bar.n = self._before + self._done
            self._bar.set_postfix_str(self._rates())
        else:
            print(f"{self._title}: {self._before + self._done}/{self._tasks} tasks, {self._rates()}", flush=True)

    def _rates(self) -> str:
        """Documents and megabytes of text of this run, each with its rate, and the time that is left."""
        seconds = max(time.monotonic() - self._began, 1e-3)
        documents = f"{self._documents:,} documents ({self._documents / seconds:,.0f}/s)"
        text = f"{self._bytes / 1e6:,.1f} MB ({self._bytes / 1e6 / seconds:,.2f} MB/s)"
        left = self._tasks - self._before - self._done
        if not left or not self._done:
            return f"{documents}, {text}"
        return f"{documents}, {text}, {timedelta(seconds=round(seconds / self._done * left))} left"
