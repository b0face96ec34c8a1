"""What a run leaves in RUN/slurm: what was submitted, from which code, and what its jobs say of themselves.

recipe.yaml, ds_config.json, site.yaml   as the jobs read them       changes.diff    uncommitted changes, if allowed
STAGE.sbatch       the batch file of a stage                         jobs.json       every job ever submitted
logs/STAGE_N.log   what job N said                                   states/N.begun, N.ended    written by job N
cancelled          left by cancel.py until the next submit.py        lock            held by the submit.py at work
"""

import dataclasses
import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, UserError
from pipeline.files import write_atomically, writing

FOLDER = "slurm"
"""Its name in the run directory."""
CANCELLED = "cancelled"


@dataclass(frozen=True)
class JobRecord:
    """One job, or one array of jobs, as it was submitted.

    Attributes:
        stage: what it does.
        name: the job's, which no other job has; it finds a job whose number was not recorded any more.
        number: empty while sbatch is at work.
        array: how many jobs share the stage.
        after: numbers of the jobs that it waits for.
        work: hash of what its batch file runs.
        submission: counts the calls of submit.py.
        revision: of the code at submission.
        owner: the run that submitted it, if it is another one that makes the same shards.
    """

    stage: str
    name: str
    number: str = ""
    array: int = 1
    after: tuple[str, ...] = ()
    work: str = ""
    submission: int = 1
    revision: str = ""
    owner: str = ""


@dataclass
class Record:
    """RUN/slurm."""

    run: Path
    jobs: list[JobRecord] = field(default_factory=list)
    shards: str = ""
    """The directory in the cache that the run shares with others of the same text."""

    @property
    def folder(self) -> Path:
        return self.run / FOLDER

    @property
    def marker(self) -> Path:
        """The user has stopped the run."""
        return self.folder / CANCELLED

    @property
    def own(self) -> list[JobRecord]:
        """The jobs that this run submitted."""
        return [job for job in self.jobs if not job.owner]

    def batch_file(self, stage: str) -> Path:
        return self.folder / f"{stage}.sbatch"

    def latest(self, stage: str) -> list[JobRecord]:
        """The jobs of a stage's last submission; several only where training is a chain."""
        of_stage = [job for job in self.jobs if job.stage == stage]
        return [job for job in of_stage if job.submission == of_stage[-1].submission]

    def log(self, job: JobRecord, task: int = 1) -> Path:
        """Where a job writes what it says."""
        folder = Path(job.owner or self.run) / FOLDER / "logs"
        return folder / f"{job.stage}_{job.number}{f'_{task}' if job.array > 1 else ''}.log"

    def ended(self, job: JobRecord, task: int = 1) -> dict[str, int] | None:
        """What a job wrote at its end: `code` and `time`; None if it did not get that far."""
        return self._state(job, task, "ended")

    def succeeded(self, job: JobRecord, task: int = 1) -> bool:
        """Whether a job said at its end that all went well."""
        return (self.ended(job, task) or {}).get("code") == 0

    def begun(self, job: JobRecord, task: int = 1) -> dict[str, int] | None:
        """What a job wrote at its latest start: `time`, and `restarts`."""
        return self._state(job, task, "begun")

    def _state(self, job: JobRecord, task: int, what: str) -> dict[str, int] | None:
        folder = Path(job.owner or self.run) / FOLDER / "states"
        try:
            found = json.loads((folder / f"{job.number}{f'_{task}' if job.array > 1 else ''}.{what}").read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def note(self, job: JobRecord) -> None:
        """Record a job, in place of what was recorded under its name."""
        self.jobs = [*(known for known in self.jobs if known.name != job.name), job]
        self.save()

    def save(self) -> None:
        """Write jobs.json, whole."""
        jobs = [dataclasses.asdict(job) for job in self.jobs]
        content = {"jobs": jobs, "shards": self.shards}
        write_atomically(self.folder / "jobs.json", (json.dumps(content, indent=1) + "\n").encode())


def read_record(run: Path, must_exist: bool = True) -> Record:
    """What is recorded of a run.

    Raises:
        UserError: it was never submitted.
        DataError: jobs.json is no record of jobs.
    """
    record, path = Record(run), run / FOLDER / "jobs.json"
    if not path.is_file():
        if must_exist:
            raise UserError(f"{run} was not submitted: it has no {FOLDER}/jobs.json, which slurm/submit.py writes")
        return record
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        record.jobs = [JobRecord(**{**job, "after": tuple(job["after"])}) for job in content["jobs"]]
        record.shards = content["shards"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected a list of jobs, found {error!r}") from error
    return record


@contextmanager
def locked(path: Path, meaning: str) -> Iterator[None]:
    """Hold a lock file for the block.

    Args:
        path: of the file, in a folder that exists.
        meaning: what it means if somebody else holds it, in a sentence.

    Raises:
        UserError: somebody does.
    """
    with writing(path):
        stream = open(path, "a", encoding="utf-8")  # noqa: SIM115 (held to the end of the block)
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(meaning) from error
        except OSError:
            pass  # a file system without locks
        yield
