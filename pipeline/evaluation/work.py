"""The task list of one command at work: what is checked before, in which order items run, and what is said of it."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain

from pipeline.errors import UserError
from pipeline.evaluation.glue.average import glue_average
from pipeline.evaluation.glue.tasks import WITH_WNLI
from pipeline.evaluation.items import DivergedError, Item, Outcome, When
from pipeline.evaluation.pool import Pool
from pipeline.evaluation.store import ResultStore
from pipeline.evaluation.task import Request, Task
from pipeline.evaluation.tasks import NAMES, make_tasks
from pipeline.launch import keep_freed_memory

AVERAGES = {
    "glue_average": glue_average,
    "glue_average_with_wnli": lambda results: glue_average(results, WITH_WNLI),
}
"""What `results.json` says of several tasks together."""


@dataclass(frozen=True)
class Failure:
    """Why an item could not be done."""

    kind: type[UserError]
    sentence: str


class Work:
    """A model, the tasks of one command, and the directory that takes their results."""

    def __init__(self, asked: str, request: Request) -> None:
        """Read the model and all data, and find everything that can be wrong. Nothing is written.

        Raises:
            UserError: something does not fit.
            DataError: data cannot be read.
        """
        self.asked, self.request = asked, request
        self.tasks = make_tasks(asked, request)

        # The libraries take seconds to import; mistakes in the arguments do not wait for them.
        import torch

        from pipeline.evaluation.encoder import fingerprint, load_encoder
        from pipeline.evaluation.finetune import check_precision

        torch.set_num_threads(request.settings.threads)
        keep_freed_memory()
        check_precision(request.settings.precision)
        self.model = load_encoder(request.model)
        if request.max_length is not None or not all(task.own_length for task in self.tasks):
            request.settings.check_fits(self.model.config.max_position_embeddings)
        self.store = ResultStore(
            request.output, request.model, fingerprint(request.model), request.settings.record(), NAMES, AVERAGES
        )
        self._task_of: dict[str, Task] = {}
        for task in self.tasks:
            for item in task.check(self.model):
                self.store.plan(item)
                self._task_of[item.name] = task

    @property
    def items(self) -> list[Item]:
        """All items of the command, those first that nothing else may run beside, the quickest tasks before others."""
        order = {When.ALONE: 0, When.ANY: 1, When.LAST: 2}
        quick = {id(task): -number for number, task in enumerate(self.tasks)}
        return sorted(self.store.items, key=lambda item: (order[item.when], quick[id(self._task_of[item.name])]))

    def open(self) -> None:
        """Measure the speed of this process, and write down what is to be done.

        Raises:
            UserError: the directory cannot be made.
        """
        from pipeline.evaluation.estimate import flops_per_second

        left = any(not self.store.is_done(item) for item in self.store.items)
        self.store.open(flops_per_second(self.model, self.request.settings.precision) if left else 1.0)

    def run(self, name: str) -> Failure | None:
        """Do an item unless that was done, or another process is at it, and say so."""
        import torch

        item = next(item for item in self.store.items if item.name == name)
        try:
            with self.store.claim(item) as free:
                if free:
                    start = time.monotonic()
                    outcome = self._do(item)
                    seconds = time.monotonic() - start
                    self.store.finish(item, outcome, self._how(seconds))
                    print(f"{item.label}: done in {seconds:.0f} s", flush=True)
                elif self.store.is_done(item):
                    print(f"{item.label}: already done", flush=True)
                else:
                    print(f"{item.label}: another process is at it", flush=True)
                    return None
        except UserError as error:
            return Failure(type(error), str(error))
        except torch.OutOfMemoryError:
            return Failure(UserError, f"{item.label}: the GPU has too little memory: lower --batch-size or --jobs")
        self.store.say(item)
        return None

    def _do(self, item: Item) -> Outcome:
        """What an item finds; a point of a grid may diverge, as one with too high a learning rate."""
        try:
            return self._task_of[item.name].run(item, self.model)
        except DivergedError as error:
            if not item.point:
                raise
            print(f"{error}; other points may do", flush=True)
            return Outcome(failure=str(error))

    def _how(self, seconds: float) -> dict[str, object]:
        from pipeline.evaluation.encoder import device

        settings = self.request.settings
        return {"seconds": round(seconds, 1), "threads": settings.threads, "device": device()}


class Countdown:
    """Says after every item how many are done and how long the rest will take."""

    def __init__(self, store: ResultStore, items: Sequence[Item]) -> None:
        self._store = store
        self._left = {item.name: item for item in items if not store.is_done(item)}
        self._total, self._estimated, self._began = len(items), 0.0, time.monotonic()

    def done(self, name: str) -> None:
        """Take note that an item of this name is behind us."""
        item = self._left.pop(name, None)
        if item is None or not self._left:
            return
        self._estimated += self._store.estimate(item)
        rest = sum(map(self._store.estimate, self._left.values()))
        # What was thought and what was needed so far, all processes together.
        left = rest * (time.monotonic() - self._began) / self._estimated if self._estimated else 0.0
        print(f"{self._total - len(self._left)} of {self._total} items, about {clock(left)} left", flush=True)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


def run_all(work: Work, items: Sequence[Item], jobs: int) -> None:
    """Do a list of items: those that must be alone first, the others in `jobs` processes, and the last ones at the end.

    Raises:
        UserError: some failed; the others are done.
    """
    countdown, failures = Countdown(work.store, items), list[Failure]()
    shared = [item for item in items if item.when is When.ANY]
    for item, failure in chain(
        _one_by_one(work, [item for item in items if item.when is When.ALONE]),
        _in_processes(work, shared, jobs) if jobs > 1 else _one_by_one(work, shared),
        _one_by_one(work, _ready(work, items)),
    ):
        if failure:
            failures.append(failure)
        countdown.done(item.name)
    work.store.refresh()
    if failures:
        others = f"; {len(failures) - 1} more failed" if failures[1:] else ""
        raise failures[0].kind(f"{failures[0].sentence}{others}")


def _one_by_one(work: Work, items: Iterable[Item]) -> Iterator[tuple[Item, Failure | None]]:
    for item in items:
        yield item, work.run(item.name)


def _in_processes(work: Work, items: Sequence[Item], jobs: int) -> Iterator[tuple[Item, Failure | None]]:
    """The longest first, so that no process is left alone with one at the end."""
    yield from _one_by_one(work, [item for item in items if work.store.is_done(item)])
    left = sorted((item for item in items if not work.store.is_done(item)), key=work.store.estimate, reverse=True)
    if left:
        by_name = {item.name: item for item in left}
        with Pool(min(jobs, len(left)), _prepare, work.asked, work.request) as pool:
            for name, failure in pool.run(_run, list(by_name)):
                yield by_name[name], failure


_own: Work | Failure
"""Of a process of the pool; why there is none, where data or model have gone since."""


def _prepare(asked: str, request: Request) -> None:
    global _own
    try:
        _own = Work(asked, request)
    except UserError as error:
        _own = Failure(type(error), str(error))


def _run(name: str) -> Failure | None:
    return _own if isinstance(_own, Failure) else _own.run(name)


def _ready(work: Work, items: Sequence[Item]) -> Iterator[Item]:
    """The items that need all others, if those are there when it is their turn."""
    last = [item for item in items if item.when is When.LAST]
    if last:
        work.store.refresh()
        if all(work.store.is_done(item) for item in work.store.items if item.when is not When.LAST):
            yield from last
