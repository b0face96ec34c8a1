"""slurm/train.sbatch without SLURM: `srun` and `scontrol` are scripts of the test, first on PATH.

What a stop means for the job: a stop file ends it, a signal requeues it. And what the ranks are told.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.engine.run_directory import record_start
from pipeline.recipe import load_recipe
from tests.engine.faults.processes import environment
from tests.support import ROOT
from tests.support.runs import prepare

SCONTROL = """#!/bin/bash
case "$*" in
    "show hostnames n[1-2]") echo n1 ;;
    "show node n1") echo "   NodeAddr=127.0.0.9 NodeHostName=host Port=1" ;;
    *"show job"*) echo "JobState=RUNNING Reason=None" ;;
    requeue*) echo "$2" >> "$SUBMITTED/requeued" ;;
esac
"""
SRUN = """#!/bin/bash
while [ "$1" != python ]; do shift; done
[ "$2" != slurm/check_node.py ] || exec "$@"
"""
"""Checks of the node run here; what the ranks do follows."""


class Batch:
    """A directory to submit from, and what came of a job."""

    def __init__(self, directory: Path, ranks: str) -> None:
        self.directory = directory
        self.inputs = prepare(directory)
        (directory / ".venv" / "bin").mkdir(parents=True)
        (directory / ".venv" / "bin" / "activate").touch()
        for name in ("pipeline", "slurm"):
            (directory / name).symlink_to(ROOT / name)
        commands = directory / "commands"
        commands.mkdir()
        python = f'#!/bin/bash\nexec "{sys.executable}" "$@"\n'
        for name, content in (("srun", SRUN + ranks), ("scontrol", SCONTROL), ("python", python)):
            (commands / name).write_text(content)
            (commands / name).chmod(0o755)

    def submit(self, run: str, *options: str) -> subprocess.CompletedProcess[str]:
        variables = {
            "PATH": f"{self.directory / 'commands'}{os.pathsep}{os.environ['PATH']}",
            "SUBMITTED": str(self.directory),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURMD_NODENAME": "n1",
        }
        files = map(str, (self.inputs["deepspeed"], self.inputs["recipe"], run))
        command = ["bash", str(ROOT / "slurm" / "train.sbatch"), *files, *options]
        return subprocess.run(
            command, cwd=self.directory, env=environment(**variables), capture_output=True, text=True, timeout=300
        )

    def requeued(self) -> list[str]:
        path = self.directory / "requeued"
        return path.read_text().splitlines() if path.exists() else []


def leave(run: Path, reason: str) -> None:
    run.mkdir(parents=True)
    (run / "stopped.json").write_text(json.dumps({"reason": reason, "rank": 0, "step": 12}))


@pytest.mark.parametrize("name", ["run", 'läufe of mine/it\'s $HOME "1"'])
def test_a_stop_file_ends_the_job(tmp_path, name):
    batch = Batch(tmp_path, "exit 75\n")
    leave(tmp_path / name, "stop file")
    done = batch.submit(name)
    assert done.returncode == 75 and batch.requeued() == []
    assert f"stopped by the file {name}/stop: the job ends" in done.stdout and done.stderr == ""


def test_a_signal_requeues_the_job_which_told_its_ranks_where_to_meet(tmp_path):
    batch = Batch(tmp_path, 'echo "meet at $MASTER_ADDR:$MASTER_PORT"\necho "${@:2}"\nexit 75\n')
    leave(tmp_path / "run", "SIGUSR2")
    done = batch.submit("run", "--train.steps", "5")
    assert done.returncode == 75 and batch.requeued() == ["4711"] and done.stderr == ""
    assert "stopped by SIGUSR2: the job is requeued" in done.stdout
    assert "1 nodes are fit to train\nmeet at 127.0.0.9:" in done.stdout
    recipe, deepspeed = batch.inputs["recipe"], batch.inputs["deepspeed"]
    command = f"pipeline/train.py --deepspeed_config {deepspeed} --config {recipe} --output run --train.steps 5\n"
    assert command in done.stdout


def test_a_finished_run_ends_its_job_without_a_word(tmp_path):
    done = Batch(tmp_path, "exit 0\n").submit("run")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 nodes are fit to train\n", "")


def test_a_node_that_is_not_fit_does_not_train(tmp_path):
    batch = Batch(tmp_path, "echo trained\n")
    (batch.inputs["shards"] / "s0.bin").unlink()
    done = batch.submit("run")
    assert done.returncode == 2 and "trained" not in done.stdout and batch.requeued() == []
    assert "s0.bin" in done.stderr and "Traceback" not in done.stderr


def test_a_job_that_is_called_wrongly_says_how(tmp_path):
    batch = Batch(tmp_path, "exit 0\n")
    script = str(ROOT / "slurm" / "train.sbatch")
    done = subprocess.run(["bash", script, "a", "b"], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: usage: sbatch slurm/train.sbatch ")
    (batch.directory / ".venv" / "bin" / "activate").unlink()
    (tmp_path / "commands" / "python").write_text("#!/bin/bash\nexit 1\n")
    done = batch.submit("run")
    assert done.returncode == 2 and "has no .venv, and no environment with deepspeed is active" in done.stderr


def test_a_real_run_with_a_stop_file_from_before_its_start_ends_its_job(tmp_path):
    batch = Batch(tmp_path, 'MASTER_ADDR=127.0.0.1 exec "$@"\n')
    run = tmp_path / "run"
    record_start(run, load_recipe(batch.inputs["recipe"], []), {}, ["train.py"])
    (run / "stop").touch()
    done = batch.submit("run")
    assert done.returncode == 75 and batch.requeued() == [], done.stderr
    assert "stopped on request at step 0, no step taken yet (stop file)\n" in done.stdout
    assert "stopped by the file run/stop: the job ends" in done.stdout
    assert json.loads((run / "stopped.json").read_text()) == {"reason": "stop file", "rank": 0, "step": 0}
    assert not (run / "stop").exists()
