"""slurm/status.py and slurm/cancel.py without SLURM: what jobs leave is written by hand, SLURM's answers are given."""

import json
import types

import pytest

from slurm import cancel, progress, scheduler, status, submit
from slurm.record import read_record
from slurm.scheduler import JobState
from tests.slurm.runs import write_deepspeed, write_recipe, write_site
from tests.slurm.test_submit import Queue
from tests.support.runs import run_main


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose jobs 11 to 16 are queued; `says` is what squeue answers, None if it does not."""
    queue, own = Queue(monkeypatch), types.SimpleNamespace(folder=tmp_path / "run", says=[], remembers={})
    site, recipe = write_site(tmp_path / "site.yaml", tmp_path / "cache"), write_recipe(tmp_path / "run.yaml")
    how = ("--run", own.folder, "--deepspeed_config", write_deepspeed(tmp_path / "ds.json"), "--site", site)
    code, _, err = run_main(monkeypatch, submit.main, recipe, *how, "--allow-dirty")
    assert code == 0, err

    def states(numbers):
        if own.says is None:
            raise scheduler.UserError("squeue is not on PATH")
        return own.says

    def rows():
        code, out, own.said = run_main(monkeypatch, status.main, own.folder, "--json")
        assert code == 0, own.said
        return {row["stage"]: row for row in json.loads(out)}

    monkeypatch.setattr(scheduler, "states", states)
    monkeypatch.setattr(scheduler, "remembered", lambda numbers: own.remembers)
    own.rows, own.queue, own.monkeypatch = rows, queue, monkeypatch
    return own


def begin(run, number, log=None, stage="train", restarts=0):
    (run.folder / "slurm" / "states" / f"{number}.begun").write_text(json.dumps({"time": 1, "restarts": restarts}))
    if log is not None:
        (run.folder / "slurm" / "logs" / f"{stage}_{number}.log").write_text(log)


def end(run, number, code):
    (run.folder / "slurm" / "states" / f"{number}.ended").write_text(json.dumps({"time": 2, "code": code}))


def succeed_up_to_training(run):
    for number in ("11_1", "11_2", "12", "13"):
        begin(run, number)
        end(run, number, 0)


def test_a_fresh_chain_waits(run):
    run.says = [
        JobState("11_1", "PENDING", "Resources", "2026-11-27T10:24:52"),
        *(JobState(str(number), "PENDING", "Dependency") for number in range(12, 17)),
    ]
    rows = run.rows()
    assert rows["fetch"]["state"] == "done" and rows["evaluate"]["state"].startswith("left out: the recipe has no")
    assert rows["shards"]["state"] == "queued" and rows["shards"]["start"] == "expected 11-27 10:24"
    assert {rows[name]["state"] for name in ("merge", "verify", "train", "fold", "report")} == {"waits"}


def test_training_shows_how_far_it_is(run):
    succeed_up_to_training(run)
    begin(run, 14, "step 2/4\n")
    lines = [
        {"step": step, "loss": 3.5, "tokens_per_s": 249.0, "time_ms": {"step": 60000.0}, "tokens": 1} for step in (1, 2)
    ]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.says = [JobState("14", "RUNNING"), JobState("15", "PENDING", "Dependency")]
    row = run.rows()["train"]
    assert (row["state"], row["step"], row["steps"], row["loss"], row["left"]) == ("runs", 2, 4, 3.5, 120.0)
    assert row["log"].endswith("slurm/logs/train_14.log")
    _, out, _ = run_main(run.monkeypatch, status.main, run.folder)
    line = next(line for line in out.splitlines() if line.startswith("train"))
    assert line.split() == ["train", "14", "runs", *line.split()[3:5], "2", "of", "4", "3.5000", "249", "0:02", "h"]


def test_output_counts_before_slurm(run):
    marker = run.folder / "checkpoints" / "step_4" / "complete.json"
    marker.parent.mkdir(parents=True)
    marker.write_text("{}")
    begin(run, 14)
    run.says = [JobState("14", "NODE_FAIL")]
    assert run.rows()["train"]["state"] == "done"


@pytest.mark.parametrize(
    "log,state,code,words",
    [
        ("error: the disk of n1 is full\nbye\n", "FAILED", 1, "error: the disk of n1 is full"),
        ("Traceback\nValueError: no\n", None, 1, "ValueError: no"),
        ("slurmstepd: error: *** JOB 14 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT ***\n", None, None, "its time limit"),
        ("x\n", "TIMEOUT", None, "its time limit was reached"),
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=14.0\n", None, 137, "it ran out of memory"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried\n", None, 1, "it ran out of memory"),
        ("x\n", "NODE_FAIL", None, "a node failed"),
        (None, None, None, "it is gone, and its log does not say why"),
        (None, None, 9, "it ended with code 9"),
    ],
)
def test_what_went_wrong_is_one_sentence(run, log, state, code, words):
    succeed_up_to_training(run)
    begin(run, 14, log)
    if code is not None:
        end(run, 14, code)
    run.says = [JobState("14", state)] if state else []
    rows = run.rows()
    assert rows["train"]["state"] == "failed" and words in rows["train"]["problem"]
    assert rows["fold"]["problem"] == rows["report"]["problem"] == "not run: stage train failed"


def test_accounting_is_asked_only_where_nobody_else_knows(run):
    succeed_up_to_training(run)
    begin(run, 14)
    run.remembers = {"14": "OUT_OF_MEMORY"}
    assert run.rows()["train"]["problem"] == "it ran out of memory"


def test_requeued_and_pre_empted_are_not_failed(run):
    succeed_up_to_training(run)
    begin(run, 14)
    end(run, 14, 75)
    (run.folder / "stopped.json").write_text('{"reason": "SIGUSR2"}')
    run.says = [JobState("14", "PENDING", "BeginTime"), JobState("15", "PENDING", "Dependency")]
    rows = run.rows()
    assert rows["train"]["state"] == "requeued" and rows["train"]["problem"] == "goes on by itself after SIGUSR2"
    assert rows["fold"]["state"] == "waits"
    run.says = [JobState("14", "PREEMPTED")]
    end(run, 14, 143)
    rows = run.rows()
    assert rows["train"]["state"] == "pre-empted"
    assert rows["fold"]["problem"] == "not run: stage train was pre-empted"


def test_stopped_by_the_user(run):
    succeed_up_to_training(run)
    begin(run, 14)
    end(run, 14, 75)
    (run.folder / "stopped.json").write_text('{"reason": "stop file"}')
    rows = run.rows()
    assert rows["train"]["state"] == "stopped" and rows["train"]["problem"] == "stopped by the user"
    assert rows["fold"]["problem"] == rows["report"]["problem"] == "not run: stopped by the user"


def test_one_failed_job_of_an_array_is_named(run):
    begin(run, "11_1")
    end(run, "11_1", 0)
    begin(run, "11_2", "error: no space\n", stage="shards")
    end(run, "11_2", 3)
    row = run.rows()["shards"]
    assert (row["state"], row["problem"], row["step"], row["steps"]) == ("failed", "task 2: error: no space", 1, 2)
    assert row["log"].endswith("shards_11_2.log")


def test_an_array_of_which_some_jobs_have_yet_to_begin_is_not_requeued(run):
    begin(run, "11_1")
    end(run, "11_1", 0)
    run.says = [JobState("11_2", "PENDING", "Resources")]
    row = run.rows()["shards"]
    assert (row["state"], row["step"], row["steps"], row["problem"]) == ("queued", 1, 2, "Resources")


def test_without_slurm_files_tell(run):
    run.says = None
    succeed_up_to_training(run)
    begin(run, 14)
    rows = run.rows()
    assert "squeue is not on PATH; this is what files say" in run.said
    assert (rows["verify"]["state"], rows["train"]["state"], rows["fold"]["state"]) == ("done", "began", "submitted")


def test_watch_ends_when_nothing_is_left_to_wait_for(run):
    naps = []
    run.monkeypatch.setattr(status.time, "sleep", lambda seconds: naps.append(seconds) or run.says.clear())
    run.says = [JobState(str(number), "PENDING", "Dependency") for number in range(12, 17)]
    begin(run, "11_1")
    end(run, "11_1", 1)
    code, out, _ = run_main(run.monkeypatch, status.main, run.folder, "--watch")
    assert code == 0 and len(naps) == 1 and out.count("fetch") == 2


def test_cancel_stops_what_is_there_and_says_what_is_left(run):
    run.monkeypatch.setattr(scheduler, "cancel", lambda numbers: [run.queue.waiting.pop(number) for number in numbers])
    succeed_up_to_training(run)
    for number in ("11", "12", "13"):
        del run.queue.waiting[number]
    code, out, err = run_main(run.monkeypatch, cancel.main, run.folder)
    assert code == 0, err
    assert out.splitlines()[:3] == [
        "stopped: 14, 15, 16",
        "done: fetch, shards, merge, verify",
        "left: train, fold, report",
    ]
    assert read_record(run.folder).marker.exists()
    assert run.rows()["train"]["problem"] == "not run: stopped by the user"


def test_a_directory_that_was_not_submitted_is_said(tmp_path, monkeypatch):
    code, _, err = run_main(monkeypatch, status.main, tmp_path)
    assert code == 2 and "was not submitted" in err


@pytest.mark.parametrize("text", ["", "\n\n", "\x00\xff\n"])
def test_logs_of_any_kind_are_read(tmp_path, text):
    (tmp_path / "log").write_text(text)
    assert "\n" not in progress.last_words(tmp_path / "log")
    assert progress.last_words(tmp_path / "none") == ""


@pytest.mark.parametrize(
    ("sacct", "told"),
    [
        (None, {}),
        ("sleep 10", {}),
        ("echo 'Slurm accounting storage is disabled'; exit 1", {}),
        ("echo '7|TIMEOUT'; exit 1", {}),
        ("echo; echo 'x|'; echo '7|CANCELLED by 0'", {"7": "CANCELLED"}),
    ],
)
def test_accounting_may_be_missing_slow_or_wrong(tmp_path, monkeypatch, sacct, told):
    if sacct:
        (tmp_path / "sacct").write_text(f"#!/bin/bash\n{sacct}\n")
        (tmp_path / "sacct").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if sacct else str(tmp_path))
    monkeypatch.setattr(scheduler, "_ACCOUNTING_SECONDS", 0.5)
    assert scheduler.remembered(["7"]) == told
