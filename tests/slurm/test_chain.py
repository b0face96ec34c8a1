"""Whole runs on a real SLURM: from text to the report, on two nodes of one rank each."""

import json

import pytest

from tests.slurm.runs import Doors, student_files, write_site, write_task

LONG = {"steps": 2000, "checkpoint_every": 2000}
"""A training that lasts until it is stopped."""


def states(rows):
    return {name: row["state"] for name, row in rows.items()}


def test_from_text_to_the_report(slurm, tmp_path):
    task = write_task(tmp_path / "glue")
    doors = Doors(slurm, tmp_path, "it's 100% a run", evaluation={"tasks": "rte", "data": str(task), "seeds": "1,2"})
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
