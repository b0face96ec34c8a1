"""Run the pipeline's commands one after another, as a user would type them, and keep what they say.

The demo and the benchmarks that train are written with it.
"""

import os
import shlex
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class StageRunner:
    """Starts commands from the repository's root on this machine.

    Attributes:
        logs: directory for one log file per script.
        ranks: processes of a training run.
        cpu: hide the GPUs and share the cores among the ranks.
    """

    logs: Path
    ranks: int = 2
    cpu: bool = True

    def run(self, script: str, *arguments: object, launcher: bool = False) -> None:
        """Run `script`, under the deepspeed launcher if asked, and show what it says. UserError if it fails."""
        start = [sys.executable, script]
        if launcher:
            start = ["deepspeed", "--num_accelerators", str(self.ranks), "--master_port", str(_free_port()), script]
        command = [*start, *map(str, arguments)]
        say(shlex.join([Path(command[0]).name, *command[1:]]))
        log = self.logs / f"{Path(script).stem}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with (
            open(log, "a", encoding="utf-8") as stream,
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._environment(launcher),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # A command may write in another encoding than this process.
                encoding="utf-8",
                errors="backslashreplace",
            ) as process,
        ):
            for line in process.stdout or ():
                stream.write(line)
                # The launcher's own messages start with their date and stay in the log.
                if not line.startswith("[20"):
                    print(f"  {line}", end="", flush=True)
        if process.returncode:
            raise UserError(f"{script} ended with code {process.returncode}; everything it said is in {log}")

    def _environment(self, launcher: bool) -> dict[str, str]:
        environment = dict(os.environ)
        if self.cpu:
            environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
            if launcher:
                environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // self.ranks))
        return environment


def cpu_precision() -> str:
    """bf16 where the processor multiplies it faster than fp32, as Linux says; emulated, it would be slower."""
    processor = Path("/proc/cpuinfo")
    return "bf16" if processor.is_file() and "bf16" in processor.read_text(encoding="utf-8") else "fp32"


def say(sentence: str) -> None:
    """A heading between the output of two commands."""
    print(f"\n== {sentence}", flush=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
