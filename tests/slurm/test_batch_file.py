"""slurm/train.sbatch without SLURM: `srun` and `scontrol` are scripts of the test, first on PATH.

What a stop means for the job: a stop file ends it, a signal requeues it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import load_recipe
from pipeline.engine.run_directory import record_start
from tests.engine.faults.processes import environment
from tests.support import ROOT
from tests.support.runs import prepare

SCONTROL = """#!/bin/bash
case $1 in
    show) echo 127.0.0.1 ;;
    requeue) echo "$2" >> "$SUBMITTED/requeued" ;;
esac
"""


class Batch:
    """A directory to submit from, and what came of a job."""

    def __init__(self, directory: Path, srun: str) -> None:
        self.directory = directory
        (directory / ".venv" / "bin").mkdir(parents=True)
        (directory / ".venv" / "bin" / "activate").touch()
        (directory / "pipeline").symlink_to(ROOT / "pipeline")
        commands = directory / "commands"
        commands.mkdir()
        python = f'#!/bin/bash\nexec "{sys.executable}" "$@"\n'
        for name, content in (("srun", srun), ("scontrol", SCONTROL), ("python", python)):
            (commands / name).write_text(content)
            (commands / name).chmod(0o755)

    def submit(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        variables = {
            "PATH": f"{self.directory / 'commands'}{os.pathsep}{os.environ['PATH']}",
            "SUBMITTED": str(self.directory),
            "SLURM_SUBMIT_DIR": str(self.directory),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "n[1-2]",
        }
        command = ["bash", str(ROOT / "slurm" / "train.sbatch"), *map(str, arguments)]
        return subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=300)

    def requeued(self) -> list[str]:
        path = self.directory / "requeued"
        return path.read_text().splitlines() if path.exists() else []


def ends_with(code: int) -> str:
    return f"#!/bin/bash\nexit {code}\n"


def leave(run: Path, content: str | None) -> None:
    run.mkdir()
    if content is not None:
        (run / "stopped.json").write_text(content)


@pytest.mark.parametrize("name", ["run", 'läufe of mine/it\'s $HOME "1"'])
def test_a_stop_file_ends_the_job(tmp_path, name):
    batch = Batch(tmp_path, ends_with(75))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    leave(tmp_path / name, json.dumps({"reason": "stop file", "rank": 0, "step": 12}))
    done = batch.submit("ds.json", "recipe.yaml", name)
    assert done.returncode == 75 and batch.requeued() == []
    assert f"stopped by the file {name}/stop: the job ends" in done.stdout and done.stderr == ""


@pytest.mark.parametrize("reason", ["SIGUSR1", "SIGTERM", "launcher gone"])
def test_a_signal_requeues_the_job(tmp_path, reason):
    batch = Batch(tmp_path, ends_with(75))
    leave(tmp_path / "run", json.dumps({"reason": reason, "rank": 1, "step": 12}))
    done = batch.submit("ds.json", "recipe.yaml", "run")
    assert done.returncode == 75 and batch.requeued() == ["4711"]
    assert f"stopped by {reason}: the job is requeued" in done.stdout and done.stderr == ""


@pytest.mark.parametrize("content", [None, "", "{}", "[]"])
def test_a_record_that_cannot_be_read_requeues_the_job(tmp_path, content):
    batch = Batch(tmp_path, ends_with(75))
    leave(tmp_path / "run", content)
    done = batch.submit("ds.json", "recipe.yaml", "run")
    assert done.returncode == 75 and batch.requeued() == ["4711"]
    assert "stopped by an unknown request: the job is requeued" in done.stdout and done.stderr == ""


@pytest.mark.parametrize("code", [0, 2, 3, 70, 137])
def test_no_other_end_looks_at_the_record(tmp_path, code):
    batch = Batch(tmp_path, ends_with(code))
    leave(tmp_path / "run", json.dumps({"reason": "SIGUSR1", "rank": 1, "step": 12}))
    done = batch.submit("ds.json", "recipe.yaml", "run")
    assert (done.returncode, done.stdout, batch.requeued()) == (code, "", [])


def test_a_real_run_with_a_stop_file_from_before_its_start_ends_its_job(tmp_path):
    batch = Batch(tmp_path, '#!/bin/bash\nshift\nexec "$@"\n')
    inputs = prepare(tmp_path)
    run = tmp_path / "run"
    record_start(run, load_recipe(inputs["recipe"], []), {}, ["train.py"])
    (run / "stop").touch()
    done = batch.submit(inputs["deepspeed"], inputs["recipe"], "run")
    assert done.returncode == 75 and batch.requeued() == [], done.stderr
    assert "stopped on request at step 0, no step taken yet (stop file)\n" in done.stdout
    assert "stopped by the file run/stop: the job ends" in done.stdout
    assert json.loads((run / "stopped.json").read_text()) == {"reason": "stop file", "rank": 0, "step": 0}
    assert not (run / "stop").exists()
