"""Stopping on request: a stop file in the run directory, SIGTERM, SIGUSR1 or SIGUSR2 to any rank, at any moment.

From its first line on the program notes a signal instead of dying of it. The ranks agree on it once per step. A
launcher that is gone counts as a request too: nobody would end its ranks any more.

What asked is written to RUN/stopped.json. A signal comes from a batch system, which is to start the run again; a stop
file comes from the user, who wants it to end.
"""

import contextlib
import json
import os
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from pipeline.files import write_atomically, writing

if TYPE_CHECKING:  # it imports torch, and signals are to be noted before
    from pipeline.engine.distributed import World

STOP_FILE = "stop"
"""Its name in the run directory; whoever may write there can ask for a stop."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What batch systems send before a time limit or a pre-emption. slurm/train.sbatch asks for SIGUSR2, which no MPI and
no NCCL has for itself."""
STOPPED = "stopped.json"
"""Record in the run directory of a run that was stopped, until it is started again: reason (`stop file`, `SIGTERM`,
`SIGUSR1`, `SIGUSR2` or `launcher gone`), rank (the one that was asked) and step (completed)."""
_FILE_REASON = "stop file"

_reason: str | None = None
"""What asked this rank first."""


def listen() -> None:
    """Note the signals that ask for a stop. Cheap, and to be called before anything that takes time."""
    for number in SIGNALS:
        signal.signal(number, _remember)


def ignore() -> None:
    """Let further signals pass: the run ends anyway, with the exit code that says why."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def request(reason: str) -> None:
    """Ask for a stop, from this rank."""
    global _reason
    if _reason is None:
        with contextlib.suppress(OSError):  # whoever read it may be gone
            # Not print: a signal may have come in the middle of one, and that buffer takes no second writer.
            os.write(2, f"rank {os.environ.get('RANK', '0')}: {reason}, stopping after the next step\n".encode())
        _reason = reason


def _remember(number: int, frame: FrameType | None) -> None:
    request(signal.Signals(number).name)


def launcher() -> tuple[int, ...]:
    """The processes that must live for a launcher to live; other ones, or none, once it has died.

    `deepspeed` on one machine hands no signal on (0.19.8): ended by one, it leaves its helper and the ranks to
    themselves. Without a launcher nothing is watched, since a run may outlive the shell that started it.
    """
    parent = os.getppid()
    try:
        if b"deepspeed.launcher" in Path(f"/proc/{parent}/cmdline").read_bytes():
            stat = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8", errors="replace")
            return parent, int(stat.rpartition(")")[2].split()[1])
    except OSError:  # it ends just now
        return ()
    return (parent,) if "TORCHELASTIC_RUN_ID" in os.environ else ()


class StopRequest:
    """What this rank knows of requests to stop. The trainer makes them one decision of all ranks.

    The run then writes a checkpoint and exits with code 75, which asks a batch system to requeue it.
    """

    def __init__(self, directory: Path, world: "World") -> None:
        self._file, self._record = directory / STOP_FILE, directory / STOPPED
        self._file_was_there = False
        self._world = world
        listen()

    def received(self) -> bool:
        """Whether this rank was asked or, on rank 0, the stop file is there."""
        if self._world.is_main and self._file.exists():
            self._file_was_there = True
        return _reason is not None or self._file_was_there

    def settle(self, step: int, finished: bool) -> str:
        """End the request: record what asked, and remove the stop file, so that the next start goes on.

        To be called by all ranks, after the checkpoint. A stop file counts before a signal, also if it came later.

        Args:
            step: steps completed.
            finished: the run has reached its end, which leaves no stop to record.

        Returns:
            The reason, the same on every rank; empty if there was none.
        """
        self.received()  # a stop file may have come while the checkpoint was written
        reasons = self._world.gather(_FILE_REASON if self._file_was_there else _reason)
        rank, reason = next(((rank, reason) for rank, reason in enumerate(reasons) if reason), (0, ""))
        record = {"reason": reason, "rank": rank, "step": step}

        def write() -> None:
            if not finished:
                write_atomically(self._record, (json.dumps(record) + "\n").encode())
            with writing(self._file):
                self._file.unlink(missing_ok=True)

        self._world.on_main(write)
        return reason
