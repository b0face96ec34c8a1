"""Stopping on request: a stop file in the run directory, SIGTERM or SIGUSR1 to any rank, at any moment.

From its first line on the program notes a signal instead of dying of it. The ranks agree on it once per step. A
launcher that is gone counts as a request too: nobody would end its ranks any more.
"""

import contextlib
import os
import signal
from pathlib import Path
from types import FrameType

STOP_FILE = "stop"
"""Its name in the run directory; whoever may write there can ask for a stop."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What batch systems send before a time limit or a pre-emption."""

_requested = False


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
    global _requested
    if not _requested:
        with contextlib.suppress(OSError):  # whoever read it may be gone
            # Not print: a signal may have come in the middle of one, and that buffer takes no second writer.
            os.write(2, f"rank {os.environ.get('RANK', '0')}: {reason}, stopping after the next step\n".encode())
    _requested = True


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
            stat = Path(f"/proc/{parent}/stat").read_text()
            return parent, int(stat.rpartition(")")[2].split()[1])
    except OSError:  # it ends just now
        return ()
    return (parent,) if "TORCHELASTIC_RUN_ID" in os.environ else ()


class StopRequest:
    """What this rank knows of requests to stop. The trainer makes them one decision of all ranks.

    The run then writes a checkpoint and exits with code 75, which asks a batch system to requeue it.
    """

    def __init__(self, directory: Path, is_main: bool) -> None:
        self._file = directory / STOP_FILE
        self._is_main = is_main
        listen()

    def received(self) -> bool:
        """Whether this rank was asked or, on rank 0, the stop file is there."""
        return _requested or (self._is_main and self._file.exists())

    def clear(self) -> None:
        """Remove the stop file, so that the next start goes on."""
        if self._is_main:
            self._file.unlink(missing_ok=True)
