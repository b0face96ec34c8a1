"""How far the stages of a run are: by what they left first, by what SLURM says second, by their logs where both end.

SLURM forgets a job minutes after its end, and its accounting may be missing, slow or wrong. So a stage whose output is
whole is done, whatever SLURM says.
"""

import json
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import EXIT_STOPPED
from pipeline.recipe import Recipe
from pipeline.records import read_json_lines
from slurm.chain import Chain, Link
from slurm.record import JobRecord, Record
from slurm.resources import SHARDING, STAGES
from slurm.scheduler import NEVER, JobState

ENDED_BADLY = {"failed": "failed", "stopped": "was stopped", "pre-empted": "was pre-empted"}
"""States of a stage behind which nothing runs, and how a sentence says so."""
_PREEMPTED = "it was pre-empted"
_TAIL = 1 << 16
"""Bytes at the end of a log that are searched for the reason of its end."""
_RECENT = 6
"""Logged steps from which the time left is estimated."""
_ENDS = (
    (r"DUE TO TIME LIMIT", "its time limit was reached"),
    (r"DUE TO PREEMPTION", _PREEMPTED),
    (r"DUE TO NODE FAILURE|Node failure", "a node failed"),
    (r"oom[-_ ]kill|[Oo]ut of memory|Out Of Memory|OUT_OF_MEMORY|OutOfMemoryError", "it ran out of memory"),
    (r"CANCELLED AT", "it was cancelled"),
)
"""What SLURM, the system and CUDA write into a log, and what it means. The first that is found counts."""
_STATES = {
    "TIMEOUT": "its time limit was reached",
    "PREEMPTED": _PREEMPTED,
    "NODE_FAIL": "a node failed",
    "BOOT_FAIL": "a node failed",
    "OUT_OF_MEMORY": "it ran out of memory",
    "CANCELLED": "it was cancelled",
    "DEADLINE": "its deadline passed",
}


@dataclass(frozen=True)
class Row:
    """One stage, in words. `left` is in seconds, of the stage; what is not known is empty or None."""

    stage: str
    jobs: str = ""
    state: str = ""
    start: str = ""
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    tokens_per_s: float | None = None
    left: float | None = None
    log: str = ""
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Observer:
    """What is known of a run's jobs.

    Attributes:
        record: of the run.
        states: what SLURM says, by the number of a job or of an array's task.
        remembered: asks accounting how jobs ended, by number.
        answered: whether SLURM was there to be asked; without, a job without an end may still run.
    """

    record: Record
    states: Mapping[str, JobState]
    remembered: Callable[[Iterable[str]], dict[str, str]]
    answered: bool = True

    def rows(self, chain: Chain) -> Iterator[Row]:
        """A row for every stage."""
        yield Row("fetch", state="done")
        links = {link.name: link for link in chain.links}
        before, stopped = "", self.stopped_by_user
        for name in STAGES:
            if name not in links:
                yield Row(name, state=f"left out: {chain.left_out.get(name, '')}")
                continue
            row = self._row(links[name], before, stopped)
            if name == "train":
                row = replace(row, **training(self.record.run, chain.recipe))
                row = row if row.state == "runs" else replace(row, left=None, tokens_per_s=None)
            if not before and row.state in ENDED_BADLY:
                before = f"stage {name} {ENDED_BADLY[row.state]}"
            yield row

    @property
    def stopped_by_user(self) -> bool:
        """Whether cancel.py or a stop file has ended the run, and nothing goes on by itself."""
        if self.record.marker.exists():
            return True
        try:
            reason = json.loads((self.record.run / "stopped.json").read_bytes())["reason"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return bool(reason == "stop file")

    def _row(self, link: Link, before: str, stopped: bool) -> Row:
        """The row of a stage; `before` says what became of an earlier one, if it ended badly."""
        jobs = self.record.latest(link.name)
        tasks = [(job, task) for job in jobs for task in range(1, job.array + 1)]
        row = Row(link.name, ", ".join(job.number for job in jobs if job.number))
        if link.done(self.record) or (tasks and all(self.record.succeeded(*pair) for pair in tasks)):
            return replace(row, state="done")
        if not jobs:
            return replace(row, state="waits" if self._others(link.name) else "not submitted")
        row = replace(row, start=self._start(tasks), log=self._log(tasks))
        over = [pair for pair in tasks if self._over(*pair) and self.record.begun(*pair)]
        failures = [pair for pair in over if not self.record.succeeded(*pair)]
        if link.resources.array > 1:
            row = replace(row, step=sum(self.record.succeeded(*pair) for pair in tasks), steps=len(tasks))
        living = {pair: state for pair in tasks if (state := self._state(*pair)) and not self._over(*pair)}
        if any(state.running for state in living.values()):
            return replace(row, state="runs", problem=self._why(failures) if link.name != "train" else "")
        if living and (link.name == "train" or not failures):
            # Training may go on in a job of its own.
            again = any(self.record.begun(*pair) for pair in (tasks if link.name == "train" else living))
            return self._waits(row, again, next(iter(living.values())))
        if not self.answered and not failures:
            return replace(row, state="began" if any(self.record.begun(*pair) for pair in tasks) else "submitted")
        return self._ended(row, failures, before, stopped)

    def _others(self, stage: str) -> bool:
        """Whether another run makes the shards of this one; the last of its jobs for them is known here."""
        return stage in SHARDING and any(job.owner for name in SHARDING for job in self.record.latest(name))

    def _ended(self, row: Row, failures: list[tuple[JobRecord, int]], before: str, stopped: bool) -> Row:
        """The row of a stage that neither runs nor waits; `failures` are the jobs that did not end well."""
        if stopped:
            by_user = "stopped by the user"
            return replace(row, state="stopped", problem=by_user) if failures else _not_run(row, by_user)
        if before or not failures:
            return _not_run(row, before or "its dependency was never satisfied")
        job, task = failures[-1]
        if (self.record.ended(job, task) or {}).get("code") == EXIT_STOPPED:
            asked = f"stopped by {stop_reason(self.record.run)}, and no further job waits: submit.py goes on"
            return replace(row, state="stopped", problem=asked)
        why = self._why([(job, task)])
        return replace(row, state="pre-empted" if why == _PREEMPTED else "failed", problem=why)

    def _state(self, job: JobRecord, task: int) -> JobState | None:
        # Until its first task starts, an array may stand there as one line: 12_[1-4].
        return self.states.get(f"{job.number}_{task}" if job.array > 1 else job.number) or self.states.get(job.number)

    def _over(self, job: JobRecord, task: int) -> bool:
        if not self.answered:
            return self.record.ended(job, task) is not None
        state = self._state(job, task)
        return not (state and (state.pending or state.running) and state.reason != NEVER)

    def _start(self, tasks: list[tuple[JobRecord, int]]) -> str:
        """When the latest of the jobs began; or when SLURM expects the first to."""
        begun = [found["time"] for job, task in tasks if (found := self.record.begun(job, task))]
        if begun:
            return time.strftime("%m-%d %H:%M", time.localtime(max(begun)))
        expected = [state.start for job, task in tasks if (state := self._state(job, task)) and state.start]
        return f"expected {min(expected)[5:16].replace('T', ' ')}" if expected else ""

    def _log(self, tasks: list[tuple[JobRecord, int]]) -> str:
        """Where to read on: what was written to last, failures first."""
        logs = [path for job, task in tasks if (path := self.record.log(job, task)).is_file()]
        bad = [self.record.log(*pair) for pair in tasks if (self.record.ended(*pair) or {}).get("code")]
        chosen = [path for path in bad if path.is_file()] or logs
        return str(max(chosen, key=lambda path: path.stat().st_mtime)) if chosen else ""

    def _waits(self, row: Row, again: bool, state: JobState) -> Row:
        """The row of a stage that waits, for the second time at least if it does so again."""
        if again:
            return replace(row, state="requeued", problem=f"goes on by itself after {self._stop(row)}")
        if state.reason in ("Dependency", ""):
            return replace(row, state="waits")
        return replace(row, state="queued", problem="" if state.reason in ("Priority", "None") else state.reason)

    def _stop(self, row: Row) -> str:
        return stop_reason(self.record.run) if row.stage == "train" else "an interruption"

    def _why(self, failures: list[tuple[JobRecord, int]]) -> str:
        """What went wrong, in one sentence."""
        if not failures:
            return ""
        job, task = failures[0]
        which = f"task {task}: " if job.array > 1 else ""
        state, code = self._state(job, task), (self.record.ended(job, task) or {}).get("code")
        if state and state.state in _STATES:
            return which + _STATES[state.state]
        if said := last_words(self.record.log(job, task)):
            return which + said
        number = f"{job.number}_{task}" if job.array > 1 else job.number
        ending = self.remembered([number]).get(number, "") if state is None else state.state
        if ending in _STATES:
            return which + _STATES[ending]
        unknown = "it is gone, and its log does not say why"
        return which + (unknown if code is None else f"it ended with code {code}")


def _not_run(row: Row, why: str) -> Row:
    return replace(row, state="not run", start="", problem=f"not run: {why}")


def last_words(log: Path) -> str:
    """Why the job of a log ended, in one sentence: what SLURM wrote, or the last error; empty if there is no log."""
    try:
        with open(log, "rb") as stream:
            stream.seek(max(log.stat().st_size - _TAIL, 0))
            lines = stream.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    lines = [line.strip() for line in lines if line.strip()]
    for line in reversed(lines):
        for pattern, meaning in _ENDS:
            if re.search(pattern, line):
                return meaning
    errors = [line for line in lines if re.match(r"(\w+(\.\w+)*(Error|Exception)|error|.*: error): ", line)]
    return (errors or lines or [""])[-1]


def stop_reason(run: Path) -> str:
    """What the trainer wrote of its last stop."""
    try:
        return str(json.loads((run / "stopped.json").read_bytes())["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return "a crash"


def training(run: Path, recipe: Recipe) -> dict[str, Any]:
    """Fields of the row of training: from the last lines of metrics.jsonl."""
    try:
        lines = read_json_lines(run / "metrics.jsonl")
    except OSError:
        lines = []
    if not lines:
        return {"steps": recipe.train.steps}
    last, recent = lines[-1], lines[-_RECENT:]
    per_step = [line["time_ms"]["step"] / 1000 for line in recent if "time_ms" in line]
    left = statistics.median(per_step) * (recipe.train.steps - last["step"]) if per_step else None
    shown = {"step": last["step"], "steps": recipe.train.steps, "loss": last.get("loss")}
    return {**shown, "tokens_per_s": last.get("tokens_per_s"), "left": left}
