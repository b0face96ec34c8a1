"""slurm/train.sbatch on a real SLURM of two nodes on this host.

A job trains, stops on a signal, is requeued, goes on, and ends by a stop file. Needs root and
Debian's slurm-wlm and munge; run by `make test-slow`.
"""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.runs import prepare, recipe_values, write_recipe

pytestmark = pytest.mark.slow
NODES = ("n1", "n2")


@pytest.fixture
def cluster(tmp_path) -> Iterator[dict[str, str]]:
    """The environment in which SLURM's commands reach a controller and two nodes that run here."""
    if os.geteuid() or not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))):
        pytest.skip("needs root, and slurm-wlm and munge installed")
    if not all(_resolves(node) for node in NODES):
        pytest.skip(f"needs a line `127.0.0.1 {' '.join(NODES)}` in /etc/hosts")
    host = socket.gethostname()
    nodes = [
        f"NodeName={n} NodeHostname={host} NodeAddr=127.0.0.1 Port={17011 + i} CPUs=2 RealMemory=4000"
        for i, n in enumerate(NODES)
    ]
    daemons = [
        f"SlurmctldPidFile={tmp_path}/slurmctld.pid",
        f"SlurmctldLogFile={tmp_path}/slurmctld.log",
        f"SlurmdPidFile={tmp_path}/slurmd.%n.pid",
        f"SlurmdLogFile={tmp_path}/slurmd.%n.log",
        f"SlurmdSpoolDir={tmp_path}/spool.%n",
        f"StateSaveLocation={tmp_path}/state",
    ]
    fixed = """ClusterName=test\nSlurmUser=root\nSlurmdUser=root\nAuthInfo=cred_expire=5\nReturnToService=2
ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/linux
SelectType=select/cons_tres\nSelectTypeParameters=CR_Core\nSlurmdParameters=config_overrides"""
    partition = f"PartitionName=main Nodes={','.join(NODES)} Default=YES State=UP"
    conf = tmp_path / "slurm.conf"
    conf.write_text("\n".join([f"SlurmctldHost={host}(127.0.0.1)", fixed, *daemons, *nodes, partition]) + "\n")
    subprocess.run(["runuser", "-u", "munge", "--", "munged"], check=False)  # one that runs already is as good
    for command in (["slurmctld"], *(["slurmd", "-N", node] for node in NODES)):
        subprocess.run([*command, "-f", str(conf)], check=True)
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    try:
        yield environment
    finally:
        subprocess.run(["scancel", "--me"], env=environment, check=False)
        # A node whose job still runs does not end.
        deadline = time.monotonic() + 60
        while subprocess.run(["squeue", "-h"], env=environment, capture_output=True).stdout:
            assert time.monotonic() < deadline
            time.sleep(1)
        for pid in tmp_path.glob("slurm*.pid"):
            subprocess.run(["kill", pid.read_text().strip()], check=False)


def _resolves(name: str) -> bool:
    try:
        socket.gethostbyname(name)
    except OSError:
        return False
    return True


def wait_for(log: Path, text: str, seconds: int = 180) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        content = log.read_text() if log.is_file() else ""
        if text in content:
            return content
        time.sleep(1)
    raise AssertionError(f"{text!r} did not appear in {log}:\n{content[-3000:]}")


def test_a_job_that_is_signalled_goes_on_when_it_is_requeued_and_a_stop_file_ends_it(cluster, tmp_path):
    if not (ROOT / ".venv").is_dir():
        pytest.skip("the batch script wants the .venv of `make install`")
    inputs = prepare(tmp_path)
    train = {"steps": 100_000, "checkpoint_every": 100_000, "log_every": 5}
    values = recipe_values(inputs["shards"], inputs["teacher"], train=train)
    recipe = write_recipe(tmp_path / "recipe.yaml", values)
    run, log = tmp_path / "run", tmp_path / "job.log"
    script = ["slurm/train.sbatch", str(inputs["deepspeed"]), str(recipe), str(run)]
    options = ["--nodes=2", "--ntasks-per-node=1", f"--output={log}", "--parsable"]
    sbatch = subprocess.run(["sbatch", *options, *script], cwd=ROOT, env=cluster, capture_output=True, text=True)
    assert sbatch.returncode == 0, sbatch.stderr
    wait_for(log, "step     25/")
    subprocess.run(["scancel", "--signal=USR1", sbatch.stdout.strip()], env=cluster, check=True)
    content = wait_for(log, "resumed from")
    assert "stopped by SIGUSR1: the job is requeued" in content and "exit code 75" in content
    step = int(content.split("stopped on request at step ")[1].split(",")[0])
    assert f"resumed from {run / 'checkpoints' / f'step_{step}'}" in content

    (run / "stop").touch()
    content = wait_for(log, "the job ends")
    assert content.count("the job is requeued") == 1 and not (run / "stop").exists()
    assert json.loads((run / "stopped.json").read_text())["reason"] == "stop file"
    deadline = time.monotonic() + 60
    while subprocess.run(["squeue", "-h"], env=cluster, capture_output=True).stdout:
        assert time.monotonic() < deadline, "the job is still there, or was requeued"
        time.sleep(1)
