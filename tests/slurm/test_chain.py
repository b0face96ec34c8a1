"""Whole runs on a real SLURM: from text to the report, on two nodes of one rank each."""

import json

import pytest

from tests.slurm.cluster import cluster
from tests.slurm.runs import Doors, student_files, write_site, write_task

LONG = {"steps": 2000, "checkpoint_every": 2000}
"""A training that lasts until it is stopped."""


def states(rows):
    return {name: row["state"] for name, row in rows.items()}


def test_from_text_to_the_report(slurm, tmp_path):
    task = write_task(tmp_path / "glue")
    doors = Doors(slurm, tmp_path, "it's a run", evaluation={"tasks": "rte", "data": str(task), "seeds": "1,2"})
    done = doors.submit()
    assert done.returncode == 0, done.stderr
    again = doors.submit()
    assert again.returncode == 2 and "has jobs that wait or run: " in again.stderr
    rows = doors.finish()
    assert set(states(rows).values()) == {"done"}, f"{rows}\n{doors.logs()}"
    assert (rows["train"]["step"], rows["train"]["steps"]) == (4, 4)
    results = json.loads((doors.run / "evaluation" / "results.json").read_text())
    assert set(results["tasks"]["rte"]["accuracy"]["seeds"]) == {"1", "2"}
    assert "rte accuracy" in (doors.run / "report" / "report.md").read_text()
    nothing = doors.submit()
    assert nothing.returncode == 0 and "nothing is left to do" in nothing.stdout

    (tmp_path / "wrong").mkdir()
    wrong = Doors(slurm, tmp_path / "wrong")
    write_site(wrong.site, tmp_path / "cache", report={"partition": "nowhere"})
    refused = wrong.submit()
    assert refused.returncode == 2 and slurm.jobs() == {}
    assert "SLURM refuses stage report (partition nowhere): invalid partition specified" in refused.stderr


@pytest.mark.slow
def test_two_runs_share_their_shards_and_nothing_else(slurm, tmp_path):
    first, second = Doors(slurm, tmp_path, "first"), Doors(slurm, tmp_path, "second", train={"seed": 2})
    assert first.submit().returncode == 0
    done = second.submit()
    assert done.returncode == 0 and "makes the same shards, this run waits" in done.stdout, done.stdout + done.stderr
    cancelled = first.call("cancel", first.run)
    assert cancelled.returncode == 0 and f"for which {second.run} waits" in cancelled.stdout, cancelled.stdout
    rows = second.finish()
    assert set(states(rows).values()) == {"done", "left out: the recipe has no section evaluation"}, second.logs()
    assert states(first.rows())["train"] == "not run"
    assert first.submit().returncode == 0
    assert states(first.finish())["report"] == "done", first.logs()
    assert len(list((tmp_path / "cache" / "shards").glob("*/manifest.json"))) == 1
    one, other = student_files(first.run), student_files(second.run)
    assert one["tokenizer.json"] == other["tokenizer.json"] and one["model.safetensors"] != other["model.safetensors"]


@pytest.mark.slow
def test_a_run_that_is_cancelled_goes_on_from_its_next_submission(slurm, tmp_path):
    doors = Doors(slurm, tmp_path, train=LONG)
    assert doors.submit().returncode == 0
    doors.wait_for("step    5/", "train")
    done = doors.call("cancel", doors.run)
    assert done.returncode == 0 and "left: train, fold, report" in done.stdout, done.stdout + done.stderr
    assert slurm.jobs() == {}
    rows = doors.rows()
    assert rows["train"]["state"] == "stopped"
    assert rows["fold"]["problem"] == rows["report"]["problem"] == "not run: stopped by the user"
    assert doors.submit().returncode == 0
    doors.wait_for("step   10/", "train")
    (doors.run / "stop").touch()
    rows = doors.finish()
    assert rows["train"]["state"] == "stopped" and rows["train"]["problem"] == "stopped by the user"
    assert rows["fold"]["problem"] == "not run: stopped by the user"


@pytest.mark.slow
def test_where_requeue_is_forbidden_the_next_job_goes_on_and_the_student_is_the_same(tmp_path):
    steps = {"steps": 100, "checkpoint_every": 100}
    with cluster(nodes=2, requeue=False) as slurm:
        whole = Doors(slurm, tmp_path, "whole", train=steps)
        write_site(whole.site, tmp_path / "cache", requeue=False, train_jobs=3)
        assert whole.submit().returncode == 0
        assert states(whole.finish())["report"] == "done", whole.logs()

        cut = Doors(slurm, tmp_path, "cut", train=steps)
        done = cut.submit()
        assert done.returncode == 0, done.stderr
        train = cut.rows()["train"]["jobs"].split(", ")
        cut.wait_for("step   5/", "train")
        slurm.run("scancel", "--signal=USR2", train[0])
        rows = cut.finish()
        assert states(rows)["report"] == "done", f"{rows}\n{cut.logs()}"
        logs = cut.logs(last=100_000)
        assert "stopped by SIGUSR2" in logs and "resumed from" in logs and len(train) == 3
        assert student_files(cut.run) == student_files(whole.run)


@pytest.mark.slow
def test_a_signalled_training_is_requeued_and_the_chain_waits_for_it(slurm, tmp_path):
    doors = Doors(slurm, tmp_path, train={"steps": 60, "checkpoint_every": 60})
    assert doors.submit().returncode == 0
    number = doors.rows()["train"]["jobs"]
    doors.wait_for("step  5/", "train")
    slurm.run("scancel", "--signal=USR2", number)
    doors.wait_for("the job is requeued", "train")
    seen = set()
    while slurm.jobs():
        rows = doors.rows()
        seen.add(rows["train"]["state"])
        assert "failed" not in states(rows).values(), rows
        if rows["train"]["state"] == "requeued":
            assert rows["train"]["problem"] == "goes on by itself after SIGUSR2" and rows["fold"]["state"] == "waits"
    assert "requeued" in seen and states(doors.rows())["report"] == "done", f"{seen}\n{doors.logs()}"
    assert "resumed from" in doors.logs(last=100_000)
