"""Real process trees: a job under its launcher, the ranks in it, and whether anything of it is left."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from pipeline.launch import free_port

ROOT = Path(__file__).resolve().parent.parent.parent.parent
TRAIN = ROOT / "pipeline" / "train.py"
_RANK_NAMES = ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
_HIDDEN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")


def environment(**variables: str) -> dict[str, str]:
    """Nothing of a surrounding job; one thread per rank, so that sums come out the same everywhere."""
    inherited = {name: value for name, value in os.environ.items() if name not in _HIDDEN}
    return {**inherited, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}


def launch(launcher: str, script: Path, *arguments: object, ranks: int = 2) -> list[str]:
    """The command line that starts `script` on some ranks of this machine under `torchrun`, `deepspeed` or `mpirun`.

    mpirun tells its ranks no address: they read MASTER_PORT from the environment.
    """
    beside = Path(sys.executable).parent
    start = {
        "torchrun": [beside / "torchrun", "--nproc_per_node", ranks, "--master_port", free_port()],
        "deepspeed": [beside / "deepspeed", "--num_accelerators", ranks, "--master_port", free_port()],
        "mpirun": [shutil.which("mpirun") or "mpirun", "--oversubscribe", "-n", ranks, sys.executable],
    }[launcher]
    return [str(part) for part in (*start, script, *arguments)]


def wait_until(condition: Callable[[], object], what: str, seconds: float = 300, pause: float = 0.02) -> None:
    """Return as soon as `condition` holds; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(pause)


class Job:
    """A command in a session of its own, its output in a file, and every process that came of it.

    Args:
        log: what the job prints, both streams.
    """

    def __init__(self, command: list[str], log: Path, **variables: str) -> None:
        self.log = log
        with open(log, "wb") as stream:
            self.process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=environment(**variables),
                start_new_session=True,
            )
        self._family = {self.process.pid: psutil.Process(self.process.pid)}

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def running(self) -> bool:
        return self.process.poll() is None

    def family(self) -> list[psutil.Process]:
        """Every process of the job that was ever seen here and still runs. Look before the launcher dies."""
        with suppress(psutil.Error):
            children = psutil.Process(self.process.pid).children(recursive=True)
            self._family.update((child.pid, child) for child in children)
        return [process for process in self._family.values() if alive(process)]

    def ranks(self) -> dict[int, psutil.Process]:
        """Rank -> process, of those that have begun."""
        found: dict[int, psutil.Process] = {}
        for process in self.family():
            with suppress(psutil.Error, ProcessLookupError):
                variables = process.environ()
                rank = next((variables[name] for name in _RANK_NAMES if name in variables), None)
                if rank is not None and any("train" in part for part in process.cmdline()):
                    found.setdefault(int(rank), process)
        return found

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Let no process of the job go on (SIGSTOP) before the block has ended."""
        send(signal.SIGSTOP, list(self._family.values()))  # those known, at once: looking takes a while
        processes = self.family()
        send(signal.SIGSTOP, processes)
        try:
            # One that waits for the disk stops when that is done.
            wait_until(lambda: not any(map(moves, processes)), "the job's processes to stop", 30, pause=0.001)
            yield
        finally:
            send(signal.SIGCONT, processes)

    def kill(self, victims: str) -> None:
        """SIGKILL to `rank 0`, `rank 1` or `all`: the ranks and their launcher, as when the machine goes away."""
        send(signal.SIGKILL, self.family() if victims == "all" else [self.ranks()[int(victims.removeprefix("rank "))]])

    def wait(self, seconds: float = 300) -> int:
        """The launcher's exit code, once no process of the job is left; AssertionError after `seconds`."""
        self.family()
        deadline = time.monotonic() + seconds
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the job still runs after {seconds:.0f} s:\n{self.text()[-4000:]}") from None
        wait_until(lambda: not self.family(), "the job's processes to end", max(deadline - time.monotonic(), 5))
        return code

    def end(self) -> None:
        """Kill what is left, whatever happened before."""
        self.kill("all")
        self.process.wait(30)


def send(number: int, processes: Iterable[psutil.Process]) -> None:
    """A signal to those that are still there."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def alive(process: psutil.Process) -> bool:
    """Whether it runs; one that has ended but was not waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def moves(process: psutil.Process) -> bool:
    """Whether it runs and is not stopped."""
    try:
        return alive(process) and process.status() != psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False
