"""The batch files of single stages: what each runs, alone and as a part of an array; and what all have in common."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.engine.faults.processes import environment, wait_until
from tests.support import ROOT

FILES = sorted((ROOT / "slurm").glob("*.sbatch"))
TWO_OF_THREE = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "3"}


@pytest.fixture
def run(tmp_path):
    """The command of a batch file, given its arguments."""
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    (tmp_path / "python").write_text('#!/bin/bash\n[ "$1" = -c ] || printf "%s|" "$@"\n')
    (tmp_path / "python").chmod(0o755)

    def command(name, *arguments, **variables):
        variables = environment(PATH=f"{tmp_path}:/usr/bin:/bin", SLURM_CPUS_PER_TASK="8", **variables)
        script = ["bash", ROOT / "slurm" / f"{name}.sbatch", *arguments]
        done = subprocess.run(script, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    return command


@pytest.mark.parametrize(
    ("name", "script", "own", "part"),
    [
        ("shards", "preprocessing/build_shards.py", ["--workers", "8"], ["--part", "2/3"]),
        ("evaluate", "pipeline/evaluate.py", [], ["--items", "2/3"]),
        ("report", "pipeline/report.py", [], []),
        ("tensorboard", "slurm/tensorboard.py", [], []),
    ],
)
def test_arguments_are_handed_on_as_they_are(run, name, script, own, part):
    arguments = ["--output", "a folder of $HOME's *"]
    assert run(name, *arguments) == (0, "|".join([script, *arguments, *own, ""]), "")
    assert run(name, *arguments, **TWO_OF_THREE)[1] == "|".join([script, *arguments, *own, *part, ""])
    code, _, said = run(name)
    assert code == 2 and said.startswith("error: usage: sbatch ")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_batch_files_have_one_form(path):
    head, _, body = path.read_text().partition("\n\n")
    assert head.startswith("#!/bin/bash\n# ") and body.startswith("source slurm/common.sh || exit 2\n")
    options = re.findall(r"^#SBATCH (--[a-z-]+)(?:=|$)", head, re.MULTILINE)
    assert {"--job-name", "--time", "--cpus-per-task", "--output"} <= set(options)
    assert subprocess.run(["bash", "-n", path]).returncode == 0


@pytest.fixture
def stage(tmp_path):
    """Starts a job of the stage verify with further lines; it leaves its states in `stage.states`."""

    def start(*lines):
        script = "\n".join([f"source slurm/stage.sh {tmp_path} verify", *lines])
        variables = environment(PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin", SLURM_JOB_ID="7")
        return subprocess.Popen(["bash", "-c", script], cwd=ROOT, env=variables, start_new_session=True)

    start.states = tmp_path / "slurm" / "states"
    start.states.mkdir(parents=True)
    return start


def test_a_job_that_slurm_ends_has_not_succeeded(stage):
    job = stage("true", "sleep 100", "true")
    wait_until((stage.states / "7.begun").exists, "the job to begin", 30)
    time.sleep(0.2)
    os.killpg(job.pid, signal.SIGTERM)
    assert job.wait(30) == 143
    assert json.loads((stage.states / "7.ended").read_text())["code"] == 143


@pytest.mark.parametrize("given_up", [False, True])
def test_only_the_latest_start_says_how_the_job_ended(stage, given_up):
    other = f"echo other > {stage.states}/7.begun" if given_up else ":"
    assert stage(other, "exit 3").wait(30) == 3
    left = {path.name for path in stage.states.iterdir()}
    assert left == ({"7.begun"} if given_up else {"7.begun", "7.ended"})
    assert given_up or json.loads((stage.states / "7.ended").read_text())["code"] == 3
