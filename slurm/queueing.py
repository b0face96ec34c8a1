"""A submission: which stages are queued, behind which jobs, and who makes shards that several runs need."""

import contextlib
import fcntl
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.files import write_atomically, writing
from slurm import checks, scheduler
from slurm.batch import batch_file
from slurm.chain import Chain, Link
from slurm.fetch import hub_variables
from slurm.record import JobRecord, Record
from slurm.resources import SHARDING, STAGES, Site


@dataclass
class Submission:
    """One call of submit.py.

    Attributes:
        record: of the run.
        chain: all that its recipe asks for.
        site: the cluster.
        cache: the site's.
        revision: of the code.
    """

    record: Record
    chain: Chain
    site: Site
    cache: Path
    revision: str = ""

    def __post_init__(self) -> None:
        self._count = max((job.submission for job in self.record.jobs), default=0) + 1

    def links(self, first: str | None) -> list[Link]:
        """The stages to queue: from `first` on, and those that are not done, with what depends on them."""
        asked = STAGES.index(first) if first else len(STAGES)
        trained = all(link.done(self.record) for link in self.chain.links if link.name in ("train", "fold"))
        chosen = list[Link]()
        for link in self.chain.links:
            if STAGES.index(link.name) >= asked:
                chosen.append(link)
            elif first or (trained and link.name in (*SHARDING, "verify")):
                continue  # what only training reads is not made again for a student that is there
            elif not link.done(self.record) or (chosen and any(stage.always for stage in link.stages)):
                chosen.append(link)
        return chosen

    def say_what_is_left_out(self, first: str | None) -> None:
        """A line for every stage that is not queued."""
        queued = {link.name for link in self.links(first)}
        for name in STAGES:
            if name not in queued:
                print(f"{name}: not queued, {self.chain.left_out.get(name, 'done already')}")

    def batch_file(self, link: Link) -> str:
        """The text of a stage's batch file."""
        variables = {"HF_HUB_OFFLINE": "1", **hub_variables(self.cache)}
        if len(names := self._names(link)) > 1:
            variables["SUCCESSORS"] = " ".join(names[1:])
        return batch_file(link, self.record.run, names[0], variables, self.site.requeue)

    def queue(self, first: str | None) -> None:
        """Queue what is to be queued, and say so.

        Raises:
            UserError: SLURM refuses a stage, or stages do not find what they need.
        """
        links = self.links(first)
        self.say_what_is_left_out(first)
        if not links:
            print("nothing is left to do")
        checks.refuse_links(links)
        for link in links:
            write_atomically(self.record.batch_file(link.name), self.batch_file(link).encode())
        checks.refuse_resources(self.record, links)
        with writing(self.record.marker):
            self.record.marker.unlink(missing_ok=True)
        after: tuple[str, ...] = ()
        with self._sharing(links) as shared:
            if shared:
                print(f"{shared.stage}: job {shared.number} of {shared.owner} makes the same shards, this run waits")
                self.record.note(shared)
                after = (shared.number,)
            for link in (link for link in links if link.name in SHARDING and not shared):
                after = self._submit(link, after)
        for link in (link for link in links if link.name not in SHARDING):
            after = self._submit(link, after)
        self.record.save()

    def _names(self, link: Link) -> list[str]:
        """Of the stage's jobs: one, or where jobs may not be requeued those that train one after another."""
        run = self.record.run
        place = hashlib.sha256(str(run).encode()).hexdigest()[:6]
        name = re.sub(r"[^\w.-]", "_", f"{link.name}-{run.name}-{place}-{self._count}", flags=re.ASCII)
        if link.name != "train" or self.site.requeue:
            return [name]
        return [f"{name}.{number}" for number in range(1, self.site.train_jobs + 1)]

    def _submit(self, link: Link, after: tuple[str, ...]) -> tuple[str, ...]:
        """Queue a stage behind jobs of which one must have ended well; the numbers of its own."""
        numbers = list[str]()
        for name in self._names(link):
            waits = "?".join(f"afterok:{number}" for number in after)
            if numbers:  # one of a chain: it runs if none before it has finished the training
                waits = ",".join(f"afternotok:{number}" for number in numbers)
            options = [f"--dependency={waits}", "--kill-on-invalid-dep=yes"] if waits else []
            job = JobRecord(
                link.name,
                name,
                array=link.resources.array,
                after=tuple(numbers or after),
                work=link.work,
                submission=self._count,
                revision=self.revision,
            )
            # Recorded by its name first: whoever ends this process now must not lose the job.
            self.record.note(job)
            number = scheduler.submit(self.record.batch_file(link.name), [f"--job-name={name}", *options])
            self.record.note(JobRecord(**{**vars(job), "number": number}))
            numbers.append(number)
        print(f"{link.name}: job {', '.join(numbers)}{f', {job.array} side by side' if job.array > 1 else ''}")
        return tuple(numbers)

    @contextlib.contextmanager
    def _sharing(self, links: list[Link]) -> Iterator[JobRecord | None]:
        """Keep others from submitting the same shards for the block; the job of one that has, if it is not done."""
        mine = [link for link in links if link.name in SHARDING]
        self.record.shards = self.chain.recipe.data.shards if self.chain.recipe.sources.specs else ""
        if not mine:
            yield None
            return
        place = Path(self.record.shards)
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
        with open(place.with_suffix(".lock"), "a", encoding="utf-8") as lock:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            makers = Makers(place)
            shared = makers.job(self.record.run, self._count)
            if shared:
                makers.add(self.record.run)
            else:
                makers.begin(self.record.run, mine[-1].name, self._names(mine[-1])[0])
            yield shared


@dataclass(frozen=True)
class Makers:
    """Beside a shard directory in the cache: which run makes it, and which wait for it."""

    directory: Path

    @property
    def _path(self) -> Path:
        return self.directory.with_suffix(".json")

    def read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def begin(self, run: Path, stage: str, name: str) -> None:
        """`run` makes the shards, and its job `name` of `stage` is the last that does."""
        self._write({"run": str(run), "stage": stage, "name": name, "waiting": []})

    def add(self, run: Path) -> None:
        """`run` waits for the shards."""
        known = self.read()
        self._write({**known, "waiting": sorted({*known["waiting"], str(run)})})

    def job(self, run: Path, submission: int) -> JobRecord | None:
        """The job of another run that makes the shards and has not ended, as a job of this submission of `run`."""
        known = self.read()
        if not known or known["run"] == str(run) or not (numbers := scheduler.named(known["name"])):
            return None
        return JobRecord(known["stage"], known["name"], numbers[0], submission=submission, owner=known["run"])

    def _write(self, content: dict[str, Any]) -> None:
        write_atomically(self._path, (json.dumps(content) + "\n").encode())
