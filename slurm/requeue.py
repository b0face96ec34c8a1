"""Whether a training job goes on: before it trains, and with `--code N` when its ranks have ended.

    python slurm/requeue.py RUN [--code N]

1. A signal (time limit, pre-emption) requeues the job, as often as it comes. A stop file ends it, and so does
   `RUN/slurm/cancelled`, which slurm/cancel.py leaves.
2. A crash requeues it too, until MAX_CRASHES of them (3, an environment variable) have come without a newer checkpoint.
   Wrong settings and bad data (codes 2 and 3) end it: another try would not change them.
3. Where jobs may not be requeued, the job ends with 75: one that waits for it with `--dependency=afternotok` goes on.
   Such a one does not run if the one before it was to be the last.
4. Nodes that have failed their check twice are excluded from the next try.
5. A node that SLURM has lost sight of may train on, while the job is started again elsewhere. The new start waits until
   nobody holds the run directory, and tries again like after a crash if that takes too long. The old start, once it
   ends, has no say in what becomes of the job.

Its exit code is to be the job's. RUN/slurm/attempts.json remembers the crashes, and why the last job was the end.
"""

import argparse
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.errors import EXIT_DATA, EXIT_DONE, EXIT_STOPPED, EXIT_USAGE, UserError, run_entry_point
from pipeline.files import write_atomically, writing
from slurm.record import CANCELLED, FOLDER

ATTEMPTS, BAD_NODES = "attempts.json", "bad_nodes"
"""In RUN/slurm: left by this program, and by judge_nodes.py."""
FAILURES = 2
"""Checks that a node may fail before it is excluded."""
STOPPED_BY_USER = "stopped by the user"
LOCK = "lock"
"""In the run directory: held by the ranks that train there."""
PATIENCE = 1200
"""Seconds for which a held lock is waited for: twice as long as ranks may stand still by default."""


@dataclass
class Attempts:
    """What the jobs of a run remember of each other.

    Attributes:
        crashes: without a newer checkpoint between them.
        step: of the newest checkpoint at the last crash.
        ended: why no further job is to train, empty if one may.
    """

    crashes: int = 0
    step: int = 0
    ended: str = ""

    @classmethod
    def read(cls, run: Path) -> "Attempts":
        try:
            return cls(**json.loads((run / FOLDER / ATTEMPTS).read_bytes()))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, run: Path) -> None:
        write_atomically(run / FOLDER / ATTEMPTS, (json.dumps(asdict(self)) + "\n").encode())

    def crash(self, step: int) -> None:
        """Count one; `step` is that of the newest checkpoint now."""
        self.crashes = 1 if step > self.step else self.crashes + 1
        self.step = step


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Whether a training job goes on; for slurm/train.sbatch.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--code", type=int, help="exit code of the ranks (default: they are not started yet)")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    if arguments.code is None:
        return before(arguments.run)
    return after(arguments.run, arguments.code, most_crashes())


def most_crashes() -> int:
    """MAX_CRASHES of the environment.

    Raises:
        UserError: it is no number that counts something.
    """
    text = os.environ.get("MAX_CRASHES", "3")
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UserError(f"MAX_CRASHES={text}: a whole number of at least 1 was expected")
    return int(text)


def before(run: Path) -> int:
    """Whether to train at all; a job that continues no other one begins with a clean record."""
    most_crashes()
    with writing(run / FOLDER):
        (run / FOLDER).mkdir(parents=True, exist_ok=True)
    attempts = Attempts.read(run)
    if (run / FOLDER / CANCELLED).exists():
        return not_run(STOPPED_BY_USER)
    chained = "afternotok" in os.environ.get("SLURM_JOB_DEPENDENCY", "")
    if chained and attempts.ended:
        return not_run(attempts.ended)
    if attempts.ended or not (chained or int(os.environ.get("SLURM_RESTART_COUNT") or 0)):
        with writing(run / FOLDER):
            for name in (ATTEMPTS, BAD_NODES):
                (run / FOLDER / name).unlink(missing_ok=True)
    if holder := wait_for_lock(run):
        what = f"{run} is still in use by another run, {holder}"
        return crash(run, Attempts.read(run), what, EXIT_USAGE, most_crashes())
    return EXIT_DONE


def wait_for_lock(run: Path) -> str:
    """Return once nobody trains in the run directory: empty; or, out of patience, who does."""
    deadline, said = time.monotonic() + PATIENCE, False
    while (holder := lock_holder(run)) and time.monotonic() < deadline:
        if not said:
            print(f"{run} is in use by another run, {holder}: this job waits for its end", flush=True)
        said = True
        time.sleep(2)
    return holder


def lock_holder(run: Path) -> str:
    """Which process holds the lock of the run directory; empty if none does, or if locks are not to be had."""
    try:
        with open(run / LOCK, "r+", encoding="utf-8") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return stream.read().strip() or "an unknown process"
    except OSError:
        pass
    return ""


def not_run(reason: str) -> int:
    print(f"not run: {reason}", flush=True)
    return EXIT_STOPPED if reason == STOPPED_BY_USER else EXIT_USAGE


def after(run: Path, code: int, limit: int) -> int:
    """What becomes of a job whose ranks ended with `code`; its own exit code."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a requeue ends the job, this process with it, and too soon
    if given_up():
        print("SLURM had given this start of the job up, and what becomes of the job is not its to say", flush=True)
        return code
    attempts = Attempts.read(run)
    if code == EXIT_DONE:
        return code
    if (run / FOLDER / CANCELLED).exists():
        return end(run, attempts, STOPPED_BY_USER, "stopped by slurm/cancel.py: the job ends", code)
    if code == EXIT_STOPPED:
        reason = stop_reason(run)
        if reason == "stop file":
            sentence = f"stopped by the file {run}/stop: the job ends, the same sbatch command goes on with the run"
            return end(run, attempts, STOPPED_BY_USER, sentence, code)
        return requeue(run, f"stopped by {reason}", code)
    if code in (EXIT_USAGE, EXIT_DATA):
        reason = f"exit code {code}, which another try would not change"
        return end(run, attempts, reason, f"ended with {reason}: the job ends", code)
    return crash(run, attempts, f"exit code {code}", code, limit)


def crash(run: Path, attempts: Attempts, what: str, code: int, limit: int) -> int:
    """Try again, if there were not too many crashes already."""
    attempts.crash(newest_step(run))
    if attempts.crashes >= limit:
        reason = f"{attempts.crashes} crashes without a newer checkpoint than step {attempts.step} ({what})"
        return end(run, attempts, reason, f"{reason}: the job ends", code)
    attempts.write(run)
    return requeue(run, f"crash {attempts.crashes} of at most {limit} after step {attempts.step} ({what})", code)


def end(run: Path, attempts: Attempts, reason: str, sentence: str, code: int) -> int:
    """Let no job after this one train."""
    attempts.ended = reason
    attempts.write(run)
    print(sentence, flush=True)
    return code


def stop_reason(run: Path) -> str:
    """What stopped the run, as its trainer recorded it."""
    try:
        return str(json.loads((run / "stopped.json").read_bytes())["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown request"


def newest_step(run: Path) -> int:
    """Of the newest checkpoint; 0 without one."""
    try:
        return int((run / "checkpoints" / "latest").read_text(encoding="utf-8").strip().removeprefix("step_"))
    except (OSError, ValueError):
        return 0


def requeue(run: Path, why: str, code: int) -> int:
    """Put this job back into the queue, or leave the run to the job that waits for this one's end."""
    job = os.environ["SLURM_JOB_ID"]
    if cancelled(job):
        print(f"{why}: the job was cancelled and ends", flush=True)
        return code
    print(f"{why}: the job is requeued and goes on from the checkpoint", flush=True)
    done = scontrol("requeue", job)
    if done.returncode == 0:
        exclude_bad_nodes(run, job)
        return EXIT_STOPPED
    refusal = (done.stderr.strip() or f"scontrol ends with {done.returncode}").splitlines()[-1]
    print(
        f"it cannot be requeued ({refusal}): it ends with {EXIT_STOPPED}, and a job behind it goes on "
        f"(sbatch --dependency=afternotok:{job})",
        flush=True,
    )
    for following in waiting_for(job):
        exclude_bad_nodes(run, following)
    return EXIT_STOPPED


def given_up() -> bool:
    """Whether SLURM lost the node of this start of the job, and has ended it or started it again without."""
    shown = scontrol("--oneliner", "show", "job", os.environ["SLURM_JOB_ID"]).stdout
    restarts = re.search(r"Restarts=(\d+)", shown)
    own = os.environ.get("SLURM_RESTART_COUNT") or "0"
    return "JobState=NODE_FAIL" in shown or (restarts is not None and restarts[1] != own)


def cancelled(job: str) -> bool:
    """Whether SLURM is ending the job, and not for its time limit. A requeue would bring it back."""
    shown = scontrol("--oneliner", "show", "job", job).stdout
    state = re.search(r"JobState=(\S+)", shown)
    return state is not None and state[1] != "RUNNING" and "Reason=TimeLimit" not in shown


def waiting_for(job: str) -> list[str]:
    """Jobs that go on if this one fails."""
    command = ["squeue", "--noheader", "--states=PENDING", "--format=%i %E"]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return [line.split()[0] for line in lines if re.search(rf"\bafternotok:{job}\b", line)]


def exclude_bad_nodes(run: Path, job: str) -> None:
    """Have SLURM give a pending job no node that failed twice."""
    try:
        failed = (run / FOLDER / BAD_NODES).read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    names = [line.split(":")[0] for line in failed]
    excluded = ",".join(sorted({name for name in names if names.count(name) >= FAILURES}))
    if excluded:
        done = scontrol("update", f"JobId={job}", f"ExcNodeList={excluded}")
        outcome = done.stderr.strip() or f"job {job} gets it no more"
        print(f"{excluded} failed {FAILURES} checks: {outcome}", flush=True)


def scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True)


if __name__ == "__main__":
    run_entry_point(main)
