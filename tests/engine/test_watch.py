"""Watching over real 2-rank jobs: ranks that hang or die, signals at any moment, a second run, damaged text.

The ranks are started without a launcher, which would end the others by itself.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.errors import EXIT_HUNG
from pipeline.launch import free_port
from tests.support import ROOT
from tests.support.runs import prepare, recipe_values, train_command, write_recipe

HANG_MINUTES = 0.2


class Ranks:
    """Two ranks of one run, from the same arguments to Python."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        hidden = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.run = directory / "run"
        command = [sys.executable, *arguments]
        self.processes = [
            subprocess.Popen(
                command,
                env={**environment, "RANK": rank, "LOCAL_RANK": rank},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in "01"
        ]

    def wait_for_steps(self, count: int) -> None:
        metrics = self.run / "metrics.jsonl"
        self.wait_until(lambda: metrics.is_file() and metrics.read_text().count("\n") >= count)

    def wait_until(self, condition, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            ended = [process for process in self.processes if process.poll() is not None]
            assert not ended and time.monotonic() < deadline, [process.communicate() for process in ended]
            time.sleep(0.05)

    def end(self, seconds: float = 300) -> tuple[list[int], list[str], list[str]]:
        """Exit codes, stdout and stderr by rank, once both have ended by themselves."""
        deadline = time.monotonic() + seconds
        said = [process.communicate(timeout=max(deadline - time.monotonic(), 1)) for process in self.processes]
        return [p.returncode for p in self.processes], [out for out, _ in said], [err for _, err in said]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()


@pytest.fixture
def inputs(tmp_path) -> dict[str, Path]:
    return prepare(tmp_path)


@pytest.fixture
def start(inputs, tmp_path):
    """Start two ranks of the tiny recipe, which would go on for hours; what is left of them ends with the test."""
    started = []

    def begin(**train) -> Ranks:
        endless = {"steps": 1_000_000, "checkpoint_every": 100_000, "evaluate_every": 100_000}
        values = recipe_values(
            inputs["shards"], inputs["teacher"], data={"reader": "process"}, train={**endless, **train}
        )
        write_recipe(inputs["recipe"], values)
        script = str(ROOT / "pipeline" / "train.py")
        started.append(Ranks(tmp_path, script, *train_command(inputs, tmp_path / "run")))
        return started[-1]

    yield begin
    for ranks in started:
        ranks.kill()


def catches(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(mask >> (number - 1) & 1)


def stopped(run: Path) -> dict[str, object]:
    return json.loads((run / "stopped.json").read_text(encoding="utf-8"))


def errors(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("error: ")]


def test_a_rank_that_hangs_ends_the_job_with_the_stacks_of_all(start):
    ranks = start(hang_minutes=HANG_MINUTES)
    ranks.wait_for_steps(3)
    begun = time.monotonic()
    ranks.processes[1].send_signal(signal.SIGSTOP)
    codes, _, err = ranks.end()
    assert 60 * HANG_MINUTES - 1 <= time.monotonic() - begun <= 60 * HANG_MINUTES + 60
    assert codes[0] == EXIT_HUNG and codes[1] != 0
    assert len(errors(err[0])) == 1 and "got no further for 0.2 minutes" in errors(err[0])[0]
    assert "trainer.py" in err[0]  # the stacks of its own threads
    for rank in "01":
        assert "trainer.py" in (ranks.run / "stacks" / f"rank_{rank}.txt").read_text()


def test_a_rank_that_dies_ends_the_job(start):
    ranks = start(hang_minutes=HANG_MINUTES)
    ranks.wait_for_steps(3)
    begun = time.monotonic()
    ranks.processes[1].kill()
    codes, _, _ = ranks.end()
    assert time.monotonic() - begun <= 60 * HANG_MINUTES + 60
    assert codes[0] not in (0, 2, 3, 75)
    assert "trainer.py" in (ranks.run / "stacks" / "rank_0.txt").read_text()


def test_a_reader_that_dies_ends_both_ranks_with_one_sentence(start):
    """And what is left of the other reader and of what it shared with its rank is nothing."""
    ranks = start()
    ranks.wait_for_steps(3)
    readers = [child for process in ranks.processes for child in psutil.Process(process.pid).children()]
    assert [Path(reader.cmdline()[1]).name for reader in readers] == ["reader.py"] * 2
    readers[1].kill()
    codes, _, err = ranks.end()
    assert codes == [EXIT_HUNG] * 2 and "Traceback" not in err[0] + err[1], err
    assert errors(err[1]) == [] and len(errors(err[0])) == 1
    assert "the reader process of rank 1 is lost (SIGKILL): the machine may have run out of memory" in err[0]
    psutil.wait_procs(readers, timeout=30)
    assert not any(reader.is_running() for reader in readers)
    assert "resource_tracker" not in err[0] + err[1] and not (ranks.run / "stacks").exists()


def test_a_signal_before_the_first_step_is_heeded_by_both(start):
    ranks = start()
    ranks.wait_until(lambda: all(catches(process.pid, signal.SIGTERM) for process in ranks.processes))
    assert not ranks.run.exists()
    ranks.processes[1].send_signal(signal.SIGTERM)
    codes, out, err = ranks.end()
    assert codes == [75, 75] and "Traceback" not in err[0] + err[1]
    assert "rank 1: SIGTERM, stopping" in err[1] and "stopped on request at step 0, no step taken yet" in out[0]
    assert stopped(ranks.run) == {"reason": "SIGTERM", "rank": 1, "step": 0}
    assert not (ranks.run / "metrics.jsonl").read_text()


def test_a_reader_of_the_output_that_goes_away_does_not_end_the_run(start):
    ranks = start(steps=40, log_every=1)
    ranks.wait_for_steps(3)
    ranks.processes[0].stdout.close()
    assert [process.wait(timeout=300) for process in ranks.processes] == [0, 0]
    assert (ranks.run / "checkpoints" / "latest").read_text() == "step_40\n"
    assert "Traceback" not in ranks.processes[0].stderr.read()


def test_a_second_run_is_refused_and_a_signal_while_measuring_stops_the_first(start, inputs):
    """Every step measures the held-out loss, so that is where the signal finds the ranks, most likely."""
    ranks = start(evaluate_every=1)
    ranks.wait_for_steps(2)
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    command = [sys.executable, str(ROOT / "pipeline" / "train.py"), *train_command(inputs, ranks.run)]
    second = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert second.returncode == 2 and second.stderr.count("\n") == 1, second.stderr
    assert f"is in use by another run (process {ranks.processes[0].pid} on" in second.stderr
    assert (ranks.run / "stacks" / "rank_1.txt").read_text() == ""

    ranks.processes[1].send_signal(signal.SIGUSR1)
    codes, out, err = ranks.end()
    assert codes == [75, 75] and errors(err[0] + err[1]) == [] and "Traceback" not in err[0] + err[1]
    step = int((ranks.run / "checkpoints" / "latest").read_text().removeprefix("step_"))
    assert f"stopped on request at step {step}, checkpoint written" in out[0]
    assert stopped(ranks.run) == {"reason": "SIGUSR1", "rank": 1, "step": step}
    records = [json.loads(line) for line in (ranks.run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, step + 1))
    assert all(record["heldout_loss"] > 0 for record in records)
    assert not (ranks.run / "stacks").exists()


def test_text_that_one_rank_cannot_read_ends_both_with_one_sentence(start, inputs):
    path = inputs["shards"] / "s0.bin"
    damaged = bytearray(path.read_bytes())
    middle = len(damaged) // 4 * 2
    damaged[middle : middle + 2] = b"\xff\xff"
    path.write_bytes(damaged)
    ranks = start()
    codes, _, err = ranks.end()
    assert codes == [3, 3] and "Traceback" not in err[0] + err[1], err
    assert errors(err[1]) == [] and len(errors(err[0])) == 1
    assert f"s0.bin: byte {middle}: expected a token id below" in err[0]


def test_an_error_of_one_rank_at_the_start_does_not_keep_the_other_waiting(tmp_path):
    """No mistake of the user's, so the rank that met it shows its traceback, and the other says whose it was."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pipeline.engine import distributed\n"
        "world = distributed.start()\n"
        "world.on_all(lambda: 1 / (1 - world.rank))\n"
    )
    codes, _, err = Ranks(tmp_path, "-c", program).end()
    # gloo may abort the rank that waited while it ends, the other being gone.
    assert codes[0] in (1, -signal.SIGABRT) and codes[1] == 1
    assert "RuntimeError: rank 1 failed: ZeroDivisionError" in err[0] and "ZeroDivisionError: " in err[1]
