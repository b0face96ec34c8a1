"""Stop all jobs of a run, and say what is left.

    python slurm/cancel.py RUN

It leaves RUN/slurm/cancelled, so that nothing of the run starts or is requeued; the next submit.py removes it and goes
on. A run that is training loses what came after its last checkpoint: `touch RUN/stop` ends it with one.
"""

import argparse
import sys
import time
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.errors import EXIT_DONE, run_entry_point
from pipeline.files import write_atomically
from slurm import scheduler
from slurm.queueing import Makers
from slurm.record import JobRecord, Record, read_record
from slurm.resources import SHARDING
from slurm.status import look

SECONDS = 60
"""How long jobs may take to end; SLURM gives their processes half a minute after SIGTERM by default."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Stop all jobs of a run, and say what is left.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory of slurm/submit.py")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    record = read_record(arguments.run.absolute())
    write_atomically(record.marker, b"")
    waiting = [run for run in waiting_runs(record) if run.is_dir() and _active(read_record(run).own)]
    jobs = [job for job in record.own if not (waiting and job.stage in SHARDING)]
    numbers = [number for job in jobs for number in ([job.number] if job.number else scheduler.named(job.name))]
    stopped = sorted({state.job for state in scheduler.active(numbers)}, key=int)
    scheduler.cancel(stopped)
    deadline = time.monotonic() + SECONDS
    while (left := scheduler.active(stopped)) and time.monotonic() < deadline:
        time.sleep(0.5)
    print(f"stopped: {', '.join(stopped) or 'no job, none waited or ran'}")
    if left:
        print(f"still ending: {', '.join(sorted({state.job for state in left}, key=int))}")
    if waiting and (going_on := _active([job for job in record.own if job.stage in SHARDING])):
        print(f"goes on: {', '.join(going_on)}, the shards, for which {waiting[0]} waits")
    rows, _ = look(arguments.run.absolute())
    print(f"done: {', '.join(row.stage for row in rows if row.state == 'done')}")
    unfinished = [row.stage for row in rows if row.state not in ("done",) and not row.state.startswith("left out")]
    print(f"left: {', '.join(unfinished) or 'nothing'}")
    print("submit.py with the same arguments goes on from there")
    return EXIT_DONE


def waiting_runs(record: Record) -> list[Path]:
    """The other runs that wait for the shards that this one makes."""
    if not record.shards:
        return []
    known = Makers(Path(record.shards)).read()
    return [Path(run) for run in known.get("waiting", []) if known.get("run") == str(record.run)]


def _active(jobs: list[JobRecord]) -> list[str]:
    return sorted({state.job for state in scheduler.active(job.number for job in jobs if job.number)}, key=int)


if __name__ == "__main__":
    run_entry_point(main)
