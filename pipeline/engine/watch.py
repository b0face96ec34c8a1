"""Watching over the ranks: where one hangs or dies, the job ends in bounded time and says where every rank stood.

1. The trainer calls `beat` wherever it has got on. A thread of each rank looks once a second how long ago that was.
2. Ranks wait for each other in every step, so one that hangs stops the beats of all. Each that has waited for
   `train.hang_minutes` writes the stacks of its threads to stderr and to RUN/stacks/rank_N.txt, and ends with
   exit code 70.
3. Before that it asks the other ranks of its machine for their stacks by signal, which works in a rank that waits
   inside a library. One that was stopped (SIGSTOP) is continued for it, and then killed: its own thread slept too.
4. Ranks whose launcher is gone stop as if they had been asked to.
5. A rank whose interpreter is stuck, thread and all, is ended by a timer that needs no interpreter.
"""

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TextIO

from pipeline.engine.distributed import World
from pipeline.engine.stopping import launcher, request
from pipeline.errors import EXIT_HUNG, UserError
from pipeline.files import writing

STARTUP_MINUTES = 10.0
"""What the first step may take at least: libraries load, compile and connect then."""
STACKS = "stacks"
"""Folder in the run directory, there while ranks run or when one hung or was lost."""
_DUMP = signal.SIGQUIT
"""Asks a rank for the stacks of its threads, as it does a Java machine. No batch system sends it."""
_TICK_SECONDS = 1.0
_GRACE_SECONDS = 3.0
"""Between asking the other ranks for their stacks and ending, which makes launchers end them too."""
_LAST_SECONDS = 120
"""For a rank to end after an error: libraries may wait then for ranks that are lost."""


@dataclass(frozen=True)
class Process:
    """A process and what tells it from a later one of the same number."""

    machine: str
    pid: int
    started: str

    @classmethod
    def own(cls) -> "Process":
        # Containers on one machine may share its name, but not the numbers of their processes.
        machine = f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
        return cls(machine, os.getpid(), _status(os.getpid())[1])

    def state(self) -> str:
        """The letter Linux shows, T for stopped; empty if it has ended."""
        state, started = _status(self.pid)
        return state if started == self.started else ""

    def signal(self, number: signal.Signals) -> None:
        if self.state():
            with contextlib.suppress(OSError):
                os.kill(self.pid, number)


def _status(pid: int) -> tuple[str, str]:
    """State and start time of a process, both empty if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]


class Watch:
    """A context in which this rank is watched. All ranks must enter it; it collects who they are.

    Args:
        directory: of the run, which must exist.
        minutes: without a beat before the job is ended.
    """

    def __init__(self, directory: Path, world: World, minutes: float) -> None:
        self._rank, self._minutes = world.rank, minutes
        self._path = directory / STACKS / f"rank_{world.rank}.txt"
        self._file: TextIO = world.on_all(self._open)
        faulthandler.register(_DUMP, file=self._file, all_threads=True)
        own = Process.own()
        processes = world.gather(own)
        self._peers = [p for p in processes if p != own and p.machine == own.machine]
        self._launcher = launcher()
        self._limit = 60 * max(minutes, STARTUP_MINUTES)
        self._last = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def _open(self) -> TextIO:
        with writing(self._path):
            self._path.parent.mkdir(exist_ok=True)
            return open(self._path, "w", encoding="utf-8")

    def beat(self) -> None:
        """The run has got on. The first call ends the longer time that the start has."""
        self._last = time.monotonic()
        self._limit = 60 * self._minutes

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        faulthandler.unregister(_DUMP)
        if error is not None and not isinstance(error, UserError):
            # Often that another rank was lost; where this one stood is half of the story.
            traceback.print_exception(error, file=self._file)
            faulthandler.dump_traceback_later(_LAST_SECONDS, exit=True)
        self._file.close()
        with contextlib.suppress(OSError):  # the directory stays while another rank's file is there
            if not self._path.stat().st_size:
                self._path.unlink()
                self._path.parent.rmdir()

    def _look(self) -> None:
        while not self._done.wait(_TICK_SECONDS):
            faulthandler.dump_traceback_later(self._limit + 60, exit=True, file=self._file)
            if launcher() != self._launcher:
                request("launcher gone")
            if time.monotonic() - self._last > self._limit:
                self._end_job()

    def _end_job(self) -> None:
        print(
            f"error: rank {self._rank} got no further for {self._limit / 60:g} minutes and ends the job: a rank hangs "
            f"or is lost; the stacks of all are in {self._path.parent}",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        if not self._path.stat().st_size:  # another rank may have asked for it already
            faulthandler.dump_traceback(file=self._file, all_threads=True)
        stopped = [peer for peer in self._peers if peer.state() == "T"]
        for peer in self._peers:
            peer.signal(_DUMP)
            peer.signal(signal.SIGCONT)
        time.sleep(_GRACE_SECONDS)
        for peer in stopped:
            peer.signal(signal.SIGKILL)
        os._exit(EXIT_HUNG)
