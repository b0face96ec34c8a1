"""A node that fails its check on a real SLURM: named, tried once more, and then left out."""

import pytest

from tests.support.runs import prepare

BREAK = """import os, sys
if os.environ.get("SLURMD_NODENAME") == "n2" and any("check_node" in word for word in sys.orig_argv):
    os._exit(1)
"""
"""What Python imports at its start: on n2, the check gives no answer."""


@pytest.mark.slow
def test_a_node_that_fails_twice_is_excluded(slurm, tmp_path, monkeypatch):
    inputs = prepare(tmp_path)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BREAK)
    monkeypatch.setitem(slurm.variables, "PYTHONPATH", str(tmp_path / "site"))
    log, run = tmp_path / "log", tmp_path / "run"
    options = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--open-mode=append", f"--output={log}")
    job = slurm.submit(*options, "slurm/train.sbatch", inputs["deepspeed"], inputs["recipe"], run)
    slurm.wait_until_empty(240)
    said, shown = log.read_text(), slurm.job(job)
    assert said.count("error: node n2: its check gave no answer") == 2, said[-3000:]
    assert (shown["JobState"], shown["Restarts"], shown["ExcNodeList"]) == ("COMPLETED", "2", "n2"), said[-3000:]
    assert "n2 failed 2 checks: job" in said and "done: python pipeline/fold.py" in said
