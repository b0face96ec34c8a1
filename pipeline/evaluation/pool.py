"""Several processes on one machine that take items from one list.

Each is a new interpreter that reads the model and the data for itself, so that nothing but names of items and sentences
goes between them. They end with the process that started them, however that ends.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pipeline.errors import UserError, escape_unprintable
from pipeline.evaluation.items import Item
from pipeline.evaluation.progress import Progress
from pipeline.evaluation.task import Request

if TYPE_CHECKING:
    from pipeline.evaluation.work import Work


@dataclass(frozen=True)
class Failure:
    """Why an item could not be done."""

    kind: type[UserError]
    sentence: str


class Pool:
    """A number of processes for the items of one command; none is left behind at the end of the block."""

    def __init__(self, processes: int, asked: str, request: Request) -> None:
        self._processes, self._setup = processes, (asked, request)

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")  # a forked child cannot use a GPU that its parent has used
        self._executor = ProcessPoolExecutor(max(1, self._processes), context, _prepare, self._setup)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(cancel_futures=True)

    def run(self, items: Sequence[Item]) -> Iterator[tuple[Item, Failure | None]]:
        """Every item as it is finished; they are begun in the order given.

        Raises:
            UserError: a process was killed.
        """
        futures = {self._executor.submit(_run, item.name): item for item in items}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a process of --jobs was killed, perhaps for want of memory: run the same command again, with fewer"
            ) from error


_work: "Work"


def _prepare(asked: str, request: Request) -> None:
    """What a new process does before its first item."""
    from pipeline.evaluation.work import Work

    threading.Thread(target=_end_with_parent, daemon=True).start()
    escape_unprintable()
    Progress.on_terminal = False  # bars of several processes would write over each other
    global _work
    _work = Work(asked, request)


def _run(name: str) -> Failure | None:
    return _work.run(name)


def _end_with_parent() -> None:
    """End this process when the one that started it has ended, be it killed."""
    parent = multiprocessing.parent_process()
    if parent:
        wait([parent.sentinel])
        os._exit(1)
