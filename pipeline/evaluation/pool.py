"""Several processes on one machine that take items from one list.

Each is a new interpreter that prepares for itself, so that nothing but names of items and sentences goes between them.
They end with the process that started them, however that ends.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Self, TypeVar

from pipeline.errors import UserError, escape_unprintable
from pipeline.evaluation.progress import Progress

Result = TypeVar("Result")


class Pool:
    """A number of processes; none is left behind at the end of the block."""

    def __init__(self, processes: int, prepare: Callable[..., None], *setup: Any) -> None:
        """Every process calls `prepare` with `setup` before anything else; both must be of a module."""
        self._processes, self._setup = processes, (prepare, *setup)

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")  # a forked child cannot use a GPU that its parent has used
        self._executor = ProcessPoolExecutor(self._processes, context, _begin, self._setup)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for process in multiprocessing.active_children():
                process.terminate()
        self._executor.shutdown(cancel_futures=True)

    def run(self, do: Callable[[str], Result], names: Sequence[str]) -> Iterator[tuple[str, Result]]:
        """What `do` makes of every name, as it is finished; they are begun in the order given.

        Raises:
            UserError: a process was killed.
        """
        futures = {self._executor.submit(do, name): name for name in names}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a process of --jobs was killed, perhaps for want of memory: run the same command again, with fewer"
            ) from error


def _begin(prepare: Callable[..., None], *setup: Any) -> None:
    """What a new process does before its first item."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of them; who started them ends them
    threading.Thread(target=_end_with_parent, daemon=True).start()
    escape_unprintable()
    Progress.on_terminal = False  # bars of several processes would write over each other
    prepare(*setup)


def _end_with_parent() -> None:
    """End this process when the one that started it has ended, be it killed."""
    parent = multiprocessing.parent_process()
    if parent:
        wait([parent.sentinel])
        os._exit(1)
