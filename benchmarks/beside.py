"""The steps of another checkout of this repository, timed in turn with those of this one."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.errors import UserError

WORKER = Path(__file__).resolve().parent / "beside_worker.py"


class Beside:
    """A process of `beside_worker.py`: both checkouts are warm, and neither runs while the other one is timed.

    Args:
        checkout: the other checkout's directory.
        options: of step_time.py, without `--beside` and `--json`.

    Attributes:
        commit: of the checkout.
        seconds: of every row, step by step.
    """

    def __init__(self, checkout: Path, options: Sequence[str]) -> None:
        command = [sys.executable, str(WORKER), str(checkout.resolve()), *options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.commit: str = self._read()
        self.seconds: dict[str, list[float]] = {}

    def __enter__(self) -> "Beside":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()  # an end of its input is the process's end

    def step(self, name: str) -> None:
        """Time one step of a row, if the other checkout has it."""
        assert self._process.stdin
        print(name, file=self._process.stdin, flush=True)
        seconds = self._read()
        if seconds is not None:
            self.seconds.setdefault(name, []).append(seconds)

    def _read(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise UserError(f"--beside: the other checkout ended with exit code {self._process.returncode}, see above")
        return json.loads(line)
