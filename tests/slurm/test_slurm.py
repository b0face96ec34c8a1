"""slurm/train.sbatch on a real SLURM: however a run is cut, its student is that of the uninterrupted run, bit for bit.

There is no accounting. Run by `make test-slow`; benchmarks/slurm.py writes what these tests found to a file.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engine.faults.processes import send, wait_until
from tests.slurm.cluster import Cluster, cluster
from tests.slurm.runs import pending, ranks
from tests.support import ROOT
from tests.support.runs import prepare, recipe_values, write_recipe

pytestmark = pytest.mark.slow
STEPS, CHECKPOINT_EVERY = 200, 20


@dataclass
class Run:
    """A training run that is submitted with plain `sbatch`."""

    slurm: Cluster
    inputs: dict[str, Path]
    directory: Path

    @property
    def log(self) -> Path:
        return self.directory.with_suffix(".log")

    def submit(self, *options: str) -> str:
        files = (self.inputs["deepspeed"], self.inputs["recipe"], self.directory)
        own = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--open-mode=append", f"--output={self.log}")
        return self.slurm.submit(*own, *options, "slurm/train.sbatch", *files)

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.is_file() else ""

    def wait_for(self, text: str, seconds: float = 120) -> None:
        try:
            wait_until(lambda: text in self.text(), repr(text), seconds, 0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{self.text()[-4000:]}") from None

    def student(self) -> dict[str, bytes]:
        """The files of the student that comes of it; source_run is left out of fold.json."""
        output = self.directory.with_name(f"{self.directory.name}-student")
        command = [sys.executable, ROOT / "pipeline" / "fold.py", "--run", self.directory, "--output", output]
        done = subprocess.run(command, env=self.slurm.variables, capture_output=True, text=True)
        assert done.returncode == 0, self.text()[-3000:] + done.stderr
        files = {path.name: path.read_bytes() for path in output.iterdir() if path.name != "README.md"}
        record = json.loads(files.pop("fold.json"))
        return {**files, "fold.json": json.dumps({**record, "source_run": ""}).encode()}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("inputs")
    found = prepare(directory)
    train = {"steps": STEPS, "checkpoint_every": CHECKPOINT_EVERY, "log_every": 5}
    write_recipe(found["recipe"], recipe_values(found["shards"], found["teacher"], train=train))
    return found


@pytest.fixture(scope="module")
def expected(slurm, inputs, tmp_path_factory) -> dict[str, bytes]:
    """The student of the uninterrupted run."""
    run = Run(slurm, inputs, tmp_path_factory.mktemp("uninterrupted") / "run")
    run.submit()
    slurm.wait_until_empty()
    assert "2 nodes are fit to train" in run.text() and "requeued" not in run.text(), run.text()[-3000:]
    student = run.student()
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(student)
    return student


@pytest.fixture
def cut(record_property) -> Callable[[Run, str, Callable[[], object]], int]:
    """Cut a run once it trains; the step that it then went on from, when it has finished."""

    def cut_run(run: Run, job: str, how: Callable[[], object]) -> int:
        run.wait_for("step  25/")
        how()
        run.wait_for("resumed from")
        run.slurm.wait_until_empty()
        shown = run.slurm.job(job)
        assert shown["JobState"] == "COMPLETED", run.text()[-3000:]
        step = int(run.text().split("resumed from ")[-1].split("step_")[1].split()[0])
        record_property("resumed_from_step", step)
        record_property("restarts", shown["Restarts"])
        return step

    return cut_run


def test_a_job_that_is_signalled_goes_on(cut, slurm, inputs, expected, tmp_path):
    run = Run(slurm, inputs, tmp_path / "run")
    job = run.submit()
    step = cut(run, job, lambda: slurm.run("scancel", "--signal=USR1", job))
    assert f"stopped on request at step {step}, checkpoint written (SIGUSR1)" in run.text()
    assert "stopped by SIGUSR1: the job is requeued" in run.text()
    assert run.student() == expected and slurm.job(job)["Restarts"] == "1"


def test_a_job_at_its_time_limit_is_warned_by_usr2_and_goes_on(cut, slurm, inputs, expected, tmp_path):
    """SLURM (22.05) sends the warning up to a minute early: here 50 to 80 seconds after the start."""
    run = Run(slurm, inputs, tmp_path / "run")
    job = run.submit("--time=2", "--signal=USR2@40")

    def stand_still_until_warned() -> None:
        training = list(ranks(slurm).values())
        assert len(training) == 2
        send(signal.SIGSTOP, training)
        # SLURM lets them go on when it signals them.
        wait_until(lambda: "stopping after" in run.text() or all(map(pending, training)), "the warning", 110, 0.2)
        send(signal.SIGCONT, training)

    cut(run, job, stand_still_until_warned)
    assert {f"rank {rank}: SIGUSR2, stopping after the next step" for rank in (0, 1)} <= set(run.text().splitlines())
    assert "stopped by SIGUSR2: the job is requeued" in run.text() and "SIGTERM" not in run.text()
    assert "TIME LIMIT" not in run.text()
    assert run.student() == expected and slurm.job(job)["Restarts"] == "1"


def test_a_job_whose_node_is_lost_goes_on_elsewhere(cut, slurm, inputs, expected, tmp_path):
    run = Run(slurm, inputs, tmp_path / "run")
    job = run.submit()
    try:
        assert cut(run, job, lambda: slurm.kill_node("n2")) % CHECKPOINT_EVERY == 0
    finally:
        slurm.start_node("n2")
    assert "Node failure on n2" in run.text() and slurm.job(job)["Restarts"] == "1"
    assert run.student() == expected


def test_a_job_whose_rank_dies_goes_on(cut, slurm, inputs, expected, tmp_path):
    run = Run(slurm, inputs, tmp_path / "run")
    job = run.submit()
    assert cut(run, job, lambda: ranks(slurm)["1"].kill()) % CHECKPOINT_EVERY == 0
    assert "crash 1 of at most 3 after step" in run.text() and slurm.job(job)["Restarts"] == "1"
    assert run.student() == expected


def test_a_job_that_is_pre_empted_goes_on(cut, inputs, expected, tmp_path):
    with cluster(nodes=2, preemption=True) as slurm:
        run = Run(slurm, inputs, tmp_path / "run")
        job = run.submit()
        urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
        cut(run, job, lambda: slurm.submit(*urgent))
        assert "stopped by SIGUSR2: the job is requeued" in run.text(), run.text()[-3000:]
        assert run.student() == expected


def test_where_requeue_is_forbidden_the_next_job_goes_on_and_a_stop_file_ends_both(cut, inputs, expected, tmp_path):
    with cluster(nodes=2, requeue=False) as slurm:
        run = Run(slurm, inputs, tmp_path / "run")
        first = run.submit()
        second = run.submit(f"--dependency=afternotok:{first}")
        cut(run, second, lambda: slurm.run("scancel", "--signal=USR2", first))
        assert slurm.job(first)["ExitCode"] == "75:0" and "it cannot be requeued (" in run.text()
        assert run.student() == expected

        stopped = Run(slurm, inputs, tmp_path / "stopped")
        first = stopped.submit()
        second = stopped.submit(f"--dependency=afternotok:{first}")
        stopped.wait_for("step  25/")
        (stopped.directory / "stop").touch()
        slurm.wait_until_empty()
        assert stopped.text().count("the job ends") == 1 and "not run: stopped by the user" in stopped.text()
        assert slurm.job(second)["ExitCode"] == "75:0"


def test_a_stop_file_ends_the_job_and_the_same_command_goes_on(slurm, inputs, expected, tmp_path):
    run = Run(slurm, inputs, tmp_path / "run")
    job = run.submit()
    run.wait_for("step  25/")
    (run.directory / "stop").touch()
    slurm.wait_until_empty()
    assert "the job ends" in run.text() and not (run.directory / "stop").exists()
    assert slurm.job(job)["Restarts"] == "0" and slurm.job(job)["ExitCode"] == "75:0"
    run.submit()
    slurm.wait_until_empty()
    assert run.student() == expected


def test_a_job_that_is_cancelled_is_not_requeued(slurm, inputs, tmp_path):
    run = Run(slurm, inputs, tmp_path / "run")
    job = run.submit()
    run.wait_for("step  25/")
    slurm.run("scancel", job)
    slurm.wait_until_empty()
    assert "requeued" not in run.text() and slurm.job(job)["JobState"] == "CANCELLED"
