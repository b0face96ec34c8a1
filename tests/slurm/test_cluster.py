"""The SLURM that the tests start: it runs jobs, requeues or refuses to, loses nodes, and leaves nothing behind."""

import pytest

from tests.engine.faults.processes import alive, wait_until
from tests.slurm import cluster as harness
from tests.slurm.cluster import cluster, require_slurm


def script(path, *lines):
    path.write_text("\n".join(["#!/bin/bash", *lines]) + "\n")
    return path


REQUEUE_ONCE = 'if [ -z "$SLURM_RESTART_COUNT" ]; then scontrol requeue "$SLURM_JOB_ID" && sleep 60; fi'


def test_jobs_run_on_several_nodes_and_are_requeued_and_depend_on_each_other(slurm, tmp_path):
    job = script(tmp_path / "job", REQUEUE_ONCE, "srun bash -c 'echo $SLURMD_NODENAME $SLURM_PROCID'")
    first = slurm.submit("--nodes=2", f"--output={tmp_path}/first.log", job)
    copy = script(tmp_path / "copy", f"cp {tmp_path}/first.log {tmp_path}/copied.log")
    slurm.submit(f"--dependency=afterok:{first}", "--output=/dev/null", copy)
    slurm.wait_until_empty()
    assert set((tmp_path / "copied.log").read_text().splitlines()) >= {"n1 0", "n2 1"}
    assert slurm.job(first)["Restarts"] == "1"


def test_what_a_job_left_running_ends_with_the_cluster(tmp_path):
    with cluster(nodes=1, requeue=False) as slurm:
        first = slurm.submit(f"--output={tmp_path}/first.log", script(tmp_path / "job", REQUEUE_ONCE, "true"))
        slurm.wait_for(first, "COMPLETED")
        assert "Requested operation is presently disabled" in (tmp_path / "first.log").read_text()
        sleep = script(tmp_path / "sleep", "trap '' TERM", "setsid sleep 1000 & srun sleep 1000")
        second = slurm.submit("--output=/dev/null", sleep)
        slurm.wait_for(second, "RUNNING")
        wait_until(lambda: sum(p.name() == "sleep" for p in slurm.processes()) == 2, "both to sleep", 30)
        seen = slurm.processes()
    names = {process.info["name"] for process in seen}
    assert {"munged", "slurmctld", "slurmd", "srun"} <= names and any(name.startswith("slurmstepd") for name in names)
    assert not any(map(alive, seen)) and not slurm.directory.exists()


@pytest.mark.slow
def test_a_job_whose_node_is_lost_goes_on_elsewhere(slurm, tmp_path):
    body = script(tmp_path / "job", "srun bash -c 'echo $SLURMD_NODENAME; [ $SLURM_RESTART_COUNT ] || sleep 1000'")
    job = slurm.submit("--nodes=2", f"--output={tmp_path}/log", "--open-mode=append", body)
    wait_until(lambda: (tmp_path / "log").exists() and "n2" in (tmp_path / "log").read_text(), "the job to begin", 60)
    slurm.kill_node("n2")
    try:
        slurm.wait_until_empty()
    finally:
        slurm.start_node("n2")
    assert slurm.job(job)["Restarts"] == "1" and "n3" in (tmp_path / "log").read_text().splitlines()


@pytest.mark.parametrize("required", ["0", "1"])
def test_where_slurm_is_missing_its_tests_are_skipped_or_fail(monkeypatch, required):
    monkeypatch.setattr(harness, "COMMANDS", ("slurmctld", "no-such-command"))
    monkeypatch.setenv(harness.REQUIRED, required)
    expected = pytest.skip.Exception if required == "0" else pytest.fail.Exception
    with pytest.raises(expected, match="no-such-command missing"):
        require_slurm()
