"""Stopping on request: a stop file in the run directory, SIGTERM or SIGUSR1 to any rank."""

import signal
from pathlib import Path
from types import FrameType

from pipeline.engine.distributed import World

STOP_FILE = "stop"


class StopRequest:
    """Collects requests on every rank; `agreed` makes them one decision.

    The run then writes a checkpoint and exits with code 75, which asks a batch system to requeue it.
    """

    def __init__(self, directory: Path, world: World) -> None:
        self._file = directory / STOP_FILE
        self._world = world
        self._signalled = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def agreed(self) -> bool:
        """Whether any rank was asked to stop. All ranks must call, once per step."""
        return self._world.any(self._signalled or (self._world.is_main and self._file.exists()))

    def clear(self) -> None:
        """Remove the stop file, so that the next start goes on."""
        if self._world.is_main:
            self._file.unlink(missing_ok=True)
