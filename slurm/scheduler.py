"""All talk with SLURM: sbatch, squeue, scontrol, scancel, and sacct where there is one."""

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.stages import ROOT

WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
"""States of a job that may still run. One that is pre-empted and put back into the queue is pending again."""
RUNNING = ("RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT")
NEVER = "DependencyNeverSatisfied"
"""Reason of a job that waits for one that failed."""
_FIELDS = ("%i", "%T", "%r", "%S", "%L", "%N")
_SECONDS = 60
"""A controller under load answers late; one that is down makes its commands try again for about this long."""
_ACCOUNTING_SECONDS = 5
"""sacct is only asked for what nobody else knows."""


@dataclass(frozen=True)
class JobState:
    """What SLURM says of a job, or of one of an array.

    `start` is when it began, or is expected to; `left` until its limit; both as SLURM writes them, empty if unknown.
    """

    number: str
    state: str
    reason: str = ""
    start: str = ""
    left: str = ""
    nodes: str = ""

    @property
    def job(self) -> str:
        """The number without that of the array's task."""
        return self.number.partition("_")[0]

    @property
    def pending(self) -> bool:
        return self.state in WAITING

    @property
    def running(self) -> bool:
        return self.state in RUNNING


def submit(batch_file: Path, options: Sequence[str]) -> str:
    """Queue a batch file; the job's number.

    Raises:
        UserError: SLURM refuses it.
    """
    done = _run("sbatch", "--parsable", *options, str(batch_file))
    if done.returncode:
        raise UserError(f"sbatch refuses {batch_file}: {_complaint(done)}")
    return done.stdout.strip().splitlines()[-1].partition(";")[0]


def check(batch_file: Path) -> str | None:
    """What SLURM has against a batch file, without queueing it; None if nothing."""
    done = _run("sbatch", "--test-only", str(batch_file))
    return _complaint(done) if done.returncode else None


def named(name: str) -> list[str]:
    """Numbers of the jobs of this name that wait or run."""
    done = _run("squeue", "--noheader", f"--name={name}", "--format=%A")
    if done.returncode:
        raise UserError(f"squeue does not answer: {_complaint(done)}")
    return sorted(set(done.stdout.split()))


def states(numbers: Iterable[str]) -> list[JobState]:
    """What SLURM knows of these jobs: those that wait or run, and those that ended a few minutes ago.

    Raises:
        UserError: SLURM does not answer.
    """
    asked = sorted(set(numbers))
    if not asked:
        return []
    # A number that nobody knows is an error if it stands alone, and is left out among others.
    command = ("squeue", "--noheader", "--states=all", "--array", f"--jobs={','.join(asked)}")
    done = _run(*command, f"--format={'|'.join(_FIELDS)}")
    if done.returncode:
        if "Invalid job id" in done.stderr:
            return []
        raise UserError(f"squeue does not answer: {_complaint(done)}")
    return [_parsed(line) for line in done.stdout.splitlines() if line.strip()]


def active(numbers: Iterable[str]) -> list[JobState]:
    """Those of the jobs that wait or run."""
    return [state for state in states(numbers) if state.pending or state.running]


def _parsed(line: str) -> JobState:
    number, state, reason, start, left, nodes = line.split("|", 5)
    unknown = ("N/A", "None", "(null)", "INVALID")
    start, left, reason = ("" if value in unknown else value for value in (start, left, reason))
    return JobState(number, state, reason, start, left, nodes.strip())


def remembered(numbers: Iterable[str]) -> dict[str, str]:
    """How jobs ended, as accounting says, by number; nothing where there is none, or where it is slow."""
    asked = sorted(set(numbers))
    if not asked:
        return {}
    command = ("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(asked)}")
    try:
        done = _run(*command, "--format=JobID,State", seconds=_ACCOUNTING_SECONDS)
    except UserError:
        return {}
    pairs = (line.split("|") for line in done.stdout.splitlines() if "|" in line and not done.returncode)
    return {number: state.split()[0] for number, state, *_ in pairs if state.split()}


def cancel(numbers: Iterable[str]) -> None:
    """End jobs; those that have ended already do not matter.

    Raises:
        UserError: SLURM does not answer.
    """
    if asked := sorted(set(numbers)):
        done = _run("scancel", *asked)
        if done.returncode and "Invalid job id" not in done.stderr:
            raise UserError(f"scancel does not answer: {_complaint(done)}")


def _run(*command: str, seconds: float = _SECONDS) -> "subprocess.CompletedProcess[str]":
    """A command of SLURM, from the repository's root, which the batch files expect to be submitted from."""
    try:
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds
        )
    except FileNotFoundError as error:
        raise UserError(f"{command[0]} is not on PATH: run this where SLURM's commands are, on a login node") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} has not answered within {seconds:.0f} s: try again later") from error


def _complaint(done: "subprocess.CompletedProcess[str]") -> str:
    """What a command said against what it was given, in one line."""
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    shown = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in lines]
    return "; ".join(shown) or f"it ended with code {done.returncode} and said nothing"
