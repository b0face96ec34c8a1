"""Run tasks on the processes of this machine, beside other ranks. Where tasks run is decided here and nowhere else."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from pipeline.errors import UserError
from pipeline.files import writing
from preprocessing.build.plan import Task
from preprocessing.build.ranks import Ranks

Result = TypeVar("Result")


class Workforce:
    """All processes of the build: `workers` on each of the ranks. Each rank needs all the tasks.

    A context: the processes of this rank start with the first tasks and end with the block.

    Args:
        claims: directory, the same for all ranks and empty at the start, for the names of tasks that were begun.
    """

    def __init__(self, ranks: Ranks, workers: int, claims: Path) -> None:
        self._ranks, self._claims = ranks, claims
        # One process per core, each with one tokenizing thread: with several threads feeding one Python process, the
        # copy of the ids out of Rust holds all of them up.
        os.environ["RAYON_NUM_THREADS"] = "1"
        # Not fork: the parent may hold locks of the libraries' threads.
        context = multiprocessing.get_context("spawn")
        self._pool = (
            ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent) if workers > 1 else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, name: str, tasks: list[Task], run: Callable[[Task], Result]) -> dict[int, Result]:
        """Run each task once, somewhere, and return the results by task index, on every rank, when all are done.

        `name` tells one call from another. The first error ends the build.
        """
        take: Callable[[Task], Result | None] = run
        if self._ranks.size > 1:
            take = _Claiming(run, self._claims, name)
            # Each rank begins at another place, so that they meet late.
            first = len(tasks) * self._ranks.rank // self._ranks.size
            tasks = tasks[first:] + tasks[:first]
        own = {task.index: result for task, result in self._own_share(tasks, take)}
        everyone = self._ranks.gather({index: result for index, result in own.items() if result is not None})
        return {index: result for results in everyone for index, result in results.items()}

    def _own_share(self, tasks: list[Task], run: Callable[[Task], Result]) -> Iterator[tuple[Task, Result]]:
        """Yield each task with its result as it finishes, in any order."""
        if self._pool is None:
            yield from ((task, run(task)) for task in tasks)
            return
        futures = {self._pool.submit(run, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            hint = "out of memory? The same command continues where it stopped"
            raise UserError(f"a worker process was killed ({hint})") from error


@dataclass(frozen=True)
class _Claiming(Generic[Result]):
    """Runs a task, or returns None if another process has begun it."""

    run: Callable[[Task], Result]
    claims: Path
    name: str

    def __call__(self, task: Task) -> Result | None:
        claim = self.claims / f"{self.name}_{task.index:05d}"
        with writing(claim):
            try:
                # Of several who try this, exactly one succeeds, on network file systems too.
                os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError:
                return None
        return self.run(task)


def _die_with_parent() -> None:
    """End this worker when its parent is killed: orphans would wait for ever, or write beside the next run."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
