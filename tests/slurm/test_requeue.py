"""What becomes of a training job when its ranks have ended. SLURM's answers are the test's."""

import fcntl
import json
import subprocess

import pytest

from slurm import requeue
from tests.support.runs import run_main

RUNNING = "JobId=4711 JobState=RUNNING Reason=None"


class Scontrol:
    """Plays scontrol and squeue, and notes what was asked for."""

    def __init__(self, state: str = RUNNING, refusal: str = "", pending: str = "") -> None:
        self.state, self.refusal, self.pending, self.asked = state, refusal, pending, []

    def __call__(self, command, **options):
        name, *arguments = command
        if name == "squeue":
            return subprocess.CompletedProcess(command, 0, self.pending, "")
        if "show" in arguments:
            return subprocess.CompletedProcess(command, 0, self.state, "")
        self.asked.append(" ".join(arguments))
        refused = self.refusal if arguments[0] == "requeue" else ""
        return subprocess.CompletedProcess(command, 1 if refused else 0, "", refused)


@pytest.fixture
def job(monkeypatch, tmp_path):
    """End a job with a code, before an optional SLURM; begin one."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    for name in ("SLURM_JOB_DEPENDENCY", "SLURM_RESTART_COUNT", "MAX_CRASHES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(requeue.signal, "signal", lambda *arguments: None)
    (tmp_path / "slurm").mkdir()

    def play(code=None, slurm=None, **variables):
        slurm = slurm or Scontrol()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(requeue.subprocess, "run", slurm)
            for name, value in variables.items():
                patch.setenv(name, value)
            options = [] if code is None else ["--code", code]
            ended, out, err = run_main(patch, requeue.main, tmp_path, *options)
        return ended, out + err, slurm.asked

    return play


def stopped_by(run, reason):
    (run / "stopped.json").write_text(json.dumps({"reason": reason, "rank": 0, "step": 3}))


def checkpoint(run, step):
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "checkpoints" / "latest").write_text(f"step_{step}\n")


def test_signals_requeue_for_ever(job, tmp_path):
    stopped_by(tmp_path, "SIGUSR2")
    for _ in range(10):
        code, said, asked = job(75)
        assert (code, asked) == (75, ["requeue 4711"]) and "stopped by SIGUSR2: the job is requeued" in said


@pytest.mark.parametrize("record", ["", "{}", "[]"])
def test_a_stop_without_a_readable_record_requeues(job, tmp_path, record):
    (tmp_path / "stopped.json").write_text(record)
    assert job(75)[1:] == (
        "stopped by an unknown request: the job is requeued and goes on from the checkpoint\n",
        ["requeue 4711"],
    )


def test_a_stop_file_is_the_end_of_the_chain_but_not_of_the_next_submission(job, tmp_path):
    stopped_by(tmp_path, "stop file")
    code, said, asked = job(75)
    assert (code, asked) == (75, []) and f"stopped by the file {tmp_path}/stop: the job ends" in said
    assert job(SLURM_JOB_DEPENDENCY="afternotok:4711") == (75, "not run: stopped by the user\n", [])
    assert job()[0] == 0
    assert job(SLURM_JOB_DEPENDENCY="afternotok:4711")[0] == 0


def test_nothing_runs_or_is_requeued_after_a_cancel(job, tmp_path):
    (tmp_path / "slurm" / "cancelled").touch()
    stopped_by(tmp_path, "SIGTERM")
    for code in (75, 70, 1):
        ended, said, asked = job(code)
        assert (ended, asked) == (code, []) and "stopped by slurm/cancel.py: the job ends" in said
    assert job() == (75, "not run: stopped by the user\n", [])


@pytest.mark.parametrize("state", ["COMPLETING Reason=None", "CANCELLED Reason=None"])
def test_a_job_that_scancel_ends_stays_ended(job, tmp_path, state):
    stopped_by(tmp_path, "SIGTERM")
    code, said, asked = job(75, Scontrol(f"JobState={state}"))
    assert (code, asked) == (75, []) and "the job was cancelled and ends" in said
    assert job(75, Scontrol("JobState=COMPLETING Reason=TimeLimit"))[2] == ["requeue 4711"]


@pytest.mark.parametrize("code", [2, 3])
def test_what_another_try_would_not_change_is_the_end(job, code):
    ended, said, asked = job(code)
    assert (ended, asked) == (code, []) and "which another try would not change: the job ends" in said
    ended, said, _ = job(SLURM_JOB_DEPENDENCY="afternotok:4711")
    assert ended == 2 and said == f"not run: exit code {code}, which another try would not change\n"


def test_crashes_without_a_newer_checkpoint_are_counted_and_signals_between_them_are_free(job, tmp_path):
    stopped_by(tmp_path, "SIGUSR2")
    assert [job(code)[2] != [] for code in (137, 75, 1, 75, 70)] == [True, True, True, True, False]
    assert (
        "3 crashes without a newer checkpoint than step 0 (exit code 70)"
        in job(SLURM_JOB_DEPENDENCY="afternotok:4711")[1]
    )
    assert job()[0] == 0 and job(1)[2] == ["requeue 4711"]


def test_a_newer_checkpoint_begins_the_count_anew(job, tmp_path):
    for step in (10, 20, 30, 40):
        checkpoint(tmp_path, step)
        assert "crash 1 of at most 3 after step" in job(1)[1]
    assert "crash 2 of at most 3 after step 40" in job(1)[1]
    assert job(1)[2] == []


def test_max_crashes_is_a_variable(job):
    assert job(1, MAX_CRASHES="1")[1:] == (
        "1 crashes without a newer checkpoint than step 0 (exit code 1): the job ends\n",
        [],
    )
    assert job(MAX_CRASHES="none") == (
        2,
        "error: MAX_CRASHES=none: a whole number of at least 1 was expected\n",
        [],
    )


def test_where_requeue_is_forbidden_the_job_behind_goes_on_without_the_bad_nodes(job, tmp_path):
    stopped_by(tmp_path, "SIGUSR1")
    (tmp_path / "slurm" / "bad_nodes").write_text("n2: a\nn1: b\nn2: c\n")
    pending = "4712 afternotok:4711(unfulfilled)\n4713 afterok:4711(unfulfilled)\n4714 afternotok:47110(unfulfilled)\n"
    code, said, asked = job(1, Scontrol(refusal="Requested operation is presently disabled\n", pending=pending))
    assert code == 75 and asked == ["requeue 4711", "update JobId=4712 ExcNodeList=n2"]
    assert "it cannot be requeued (Requested operation is presently disabled): it ends with 75" in said
    assert job(75)[2] == ["requeue 4711", "update JobId=4711 ExcNodeList=n2"]


def test_a_restart_keeps_the_record_of_crashes_and_a_new_job_does_not(job, tmp_path):
    job(1)
    (tmp_path / "slurm" / "bad_nodes").write_text("n2: a\n")
    assert job(SLURM_RESTART_COUNT="1")[0] == 0 and "crash 2 of" in job(1)[1]
    assert (tmp_path / "slurm" / "bad_nodes").exists()
    assert job()[0] == 0 and not (tmp_path / "slurm" / "bad_nodes").exists() and "crash 1 of" in job(1)[1]


@pytest.fixture
def trained_by_another(tmp_path):
    """Somebody else holds the run directory."""
    with open(tmp_path / "lock", "w") as stream:
        stream.write("process 1 on n1\n")
        stream.flush()
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream


def test_a_start_waits_until_nobody_trains_in_the_run_directory(job, tmp_path, trained_by_another, monkeypatch):
    monkeypatch.setattr(requeue.time, "sleep", lambda seconds: trained_by_another.close())
    assert job() == (0, f"{tmp_path} is in use by another run, process 1 on n1: this job waits for its end\n", [])


def test_a_start_that_has_waited_too_long_tries_again_like_after_a_crash(
    job, tmp_path, trained_by_another, monkeypatch
):
    monkeypatch.setattr(requeue, "PATIENCE", 0)
    what = f"({tmp_path} is still in use by another run, process 1 on n1)"
    restarted = {"SLURM_RESTART_COUNT": "1"}
    for count in (1, 2):
        code, said, asked = job(**restarted)
        assert (code, asked) == (75, ["requeue 4711"]) and f"crash {count} of at most 3 after step 0 {what}" in said
    code, said, asked = job(**restarted)
    assert (code, asked) == (2, []) and f"3 crashes without a newer checkpoint than step 0 {what}: the job ends" in said


@pytest.mark.parametrize("state", ["JobState=RUNNING Restarts=1", "JobState=PENDING Restarts=1", "JobState=NODE_FAIL"])
def test_a_start_that_slurm_has_given_up_has_no_say(job, tmp_path, state):
    code, said, asked = job(1, Scontrol(state))
    assert (code, asked) == (1, []) and "SLURM had given this start of the job up" in said
    assert not (tmp_path / "slurm" / "attempts.json").exists()
    assert job(1, Scontrol("JobState=RUNNING Restarts=1"), SLURM_RESTART_COUNT="1")[2] == ["requeue 4711"]
