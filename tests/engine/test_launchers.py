"""pipeline/train.py under every launcher: the same parameters, one exit code, and no process left behind.

Real process trees. `torchrun` itself ends with 1 whenever a rank does not end with 0, and reports the rank's code.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.engine.checkpoint import newest_complete, step_of
from pipeline.launch import free_port
from pipeline.records import read_json_lines
from tests.engine.faults.harness import differences
from tests.engine.faults.processes import TRAIN, Job, launch, wait_until
from tests.slurm.cluster import cluster
from tests.support import ROOT
from tests.support.runs import prepare, recipe_values, train_command, write_recipe

MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
STOPPED = 75
LAUNCHERS_PATIENCE = 30
"""Seconds that the `deepspeed` launcher and torchrun leave a rank between SIGTERM and SIGKILL."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    """A recipe of four steps on two ranks."""
    return prepare(tmp_path_factory.mktemp("launchers"))


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory) -> Path:
    """The run of two processes that no launcher started."""
    run = tmp_path_factory.mktemp("alone") / "run"
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, str(TRAIN), *train_command(inputs, run)]
    jobs = [Job(command, run.with_name(f"{rank}.log"), RANK=rank, LOCAL_RANK=rank, **world) for rank in "01"]
    try:
        assert [job.wait() for job in jobs] == [0, 0], jobs[0].text() + jobs[1].text()
    finally:
        for job in jobs:
            job.end()
    return run


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun", "mpirun"])
def test_every_launcher_trains_the_same(inputs, trained, tmp_path, launcher):
    if launcher == "mpirun" and shutil.which("mpirun") is None:
        pytest.skip("there is no mpirun on PATH")
    job = Job(
        launch(launcher, TRAIN, *train_command(inputs, tmp_path / "run")),
        tmp_path / "log",
        **MPI,
        MASTER_PORT=str(free_port()),
    )
    try:
        assert job.wait() == 0, job.text()
    finally:
        job.end()
    assert "Traceback" not in job.text()
    assert differences(tmp_path / "run", trained) == []


@pytest.mark.slow
def test_the_launchers_of_two_nodes_of_a_hostfile_train_the_same(inputs, trained, tmp_path):
    """Both nodes are this machine, under two names. One launcher each, as where no ssh goes from node to node."""
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("127.0.0.1 slots=1\nlocalhost slots=1\n")
    command = [
        str(Path(sys.executable).with_name("deepspeed")),
        "--hostfile",
        str(hostfile),
        "--no_ssh",
        "--master_addr",
        "127.0.0.1",
    ]
    command += ["--master_port", str(free_port()), "--node_rank"]
    train = [str(TRAIN), *train_command(inputs, tmp_path / "run")]
    jobs = [Job([*command, node, *train], tmp_path / f"node{node}.log") for node in "01"]
    try:
        assert [job.wait() for job in jobs] == [0, 0], jobs[0].text() + jobs[1].text()
    finally:
        for job in jobs:
            job.end()
    assert differences(tmp_path / "run", trained) == []


@pytest.mark.slow
def test_srun_trains_the_same(inputs, trained, tmp_path):
    command = ["srun", "--nodes=2", "--ntasks-per-node=1", sys.executable, str(TRAIN)]
    command += train_command(inputs, tmp_path / "run")
    with cluster(nodes=2) as slurm:
        variables = {**slurm.variables, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert differences(tmp_path / "run", trained) == []


class LongRun:
    """A run too long to end by itself, started again and again in one directory.

    Args:
        changes: to the recipe's `train` section.
    """

    def __init__(self, inputs: dict[str, Path], directory: Path, launcher: str, **changes: int) -> None:
        train = {"steps": 100_000, "checkpoint_every": 100_000, "evaluate_every": 100_000, **changes}
        values = recipe_values(inputs["shards"], inputs["teacher"], train=train)
        self.inputs = {**inputs, "recipe": write_recipe(directory / "recipe.yaml", values)}
        self.run, self.launcher, self.lives = directory / "run", launcher, 0

    def logged(self) -> int:
        lines = read_json_lines(self.run / "metrics.jsonl")
        return int(lines[-1]["step"]) if lines else 0

    def newest(self) -> int:
        """Step of the newest checkpoint, which must be whole, as must be those before it."""
        path, faults = newest_complete(self.run / "checkpoints")
        assert faults == [] and not list((self.run / "checkpoints").glob(".*.tmp"))
        return step_of(path) if path else 0

    def start(self) -> Job:
        """Start or go on; returns once a step was trained."""
        before, self.lives = self.newest(), self.lives + 1
        log = self.run.with_name(f"life_{self.lives}.log")
        job = Job(launch(self.launcher, TRAIN, *train_command(self.inputs, self.run)), log)

        def trains() -> bool:
            assert job.running(), job.text()
            return self.logged() >= before + 3

        try:
            wait_until(trains, "the first steps")
            if before:
                assert f"resumed from {self.run}/checkpoints/step_{before}\n" in job.text()
        except AssertionError:
            job.end()
            raise
        return job

    def stopped_by(self, request: Callable[[Job], object], code: int) -> None:
        """Start, ask to stop, and see a whole checkpoint of the last step and the launcher's exit code."""
        job = self.start()
        try:
            request(job)
            found = job.wait(90)
            assert found == code, job.text()
        finally:
            job.end()
        text = job.text()
        # torchrun shows its own traceback, no rank does.
        assert text.count("Traceback (most recent call last)") == (self.launcher == "torchrun"), text
        stopped_at = int(text.partition("stopped on request at step ")[2].partition(",")[0])
        assert self.newest() == self.logged() == stopped_at
        if self.launcher == "torchrun":  # its report names the first rank that ended, and the others
            assert set(re.findall(r"exitcode\s*: (-?\d+)", text)) == {str(STOPPED)}, text


def to_rank(rank: int, number: signal.Signals) -> Callable[[Job], object]:
    return lambda job: job.ranks()[rank].send_signal(number)


@pytest.mark.slow
@pytest.mark.parametrize("launcher,code", [("deepspeed", STOPPED), ("torchrun", 1)])
def test_stop_file_and_signals_to_one_rank_stop_all_ranks_with_75(inputs, tmp_path, launcher, code):
    run = LongRun(inputs, tmp_path, launcher)
    run.stopped_by(lambda job: (run.run / "stop").touch(), code)
    assert not (run.run / "stop").exists()
    run.stopped_by(to_rank(1, signal.SIGTERM), code)
    run.stopped_by(to_rank(0, signal.SIGUSR1), code)


@pytest.mark.slow
@pytest.mark.parametrize("launcher,to", [("deepspeed", "command"), ("deepspeed", "helper"), ("torchrun", "command")])
def test_sigterm_to_the_launcher_leaves_a_checkpoint_and_no_process(inputs, tmp_path, launcher, to):
    """`deepspeed` starts a helper (deepspeed.launcher.launch), and that the ranks; the exit code is the launcher's."""
    run = LongRun(inputs, tmp_path, launcher)
    job = run.start()
    try:
        ranks = job.ranks()
        assert len(ranks) == 2 and len(job.family()) == (4 if launcher == "deepspeed" else 3)
        reached = run.logged()
        os.kill(job.process.pid if to == "command" else ranks[0].ppid(), signal.SIGTERM)
        job.wait(LAUNCHERS_PATIENCE)
    finally:
        job.end()
    assert run.newest() >= reached, job.text()
