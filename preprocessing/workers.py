"""Run tasks on the processes of this machine. Where tasks run is decided here and nowhere else."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from pipeline.errors import UserError
from preprocessing.inputs import Task

Result = TypeVar("Result")


def run_tasks(tasks: Iterable[Task], run: Callable[[Task], Result], workers: int) -> Iterator[tuple[Task, Result]]:
    """Yield each task with its result as it finishes, in any order; the first error ends the build."""
    # One process per core, each with one tokenizing thread: with several threads feeding one Python process, the
    # copy of the ids out of Rust holds all of them up.
    os.environ["RAYON_NUM_THREADS"] = "1"
    if workers <= 1:
        yield from ((task, run(task)) for task in tasks)
        return
    # Not fork: the parent may hold locks of the libraries' threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent) as pool:
        futures = {pool.submit(run, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            hint = "out of memory? The same command continues where it stopped"
            raise UserError(f"a worker process was killed ({hint})") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _die_with_parent() -> None:
    """End this worker when its parent is killed: orphans would wait for ever, or write beside the next run."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
