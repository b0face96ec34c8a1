"""A SLURM with accounting: it knows how jobs ended that SLURM itself has forgotten, and which accounts there are."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from slurm.record import JobRecord, Record
from slurm.scheduler import remembered
from slurm.status import look
from tests.engine.faults.processes import wait_until
from tests.slurm.cluster import Cluster, cluster
from tests.slurm.runs import Doors, write_recipe, write_site

pytestmark = pytest.mark.slow
STUBBORN = "trap '' TERM; sleep 1000"


@dataclass(frozen=True)
class Training:
    """A run of one job, which says nothing in its log."""

    slurm: Cluster
    record: Record
    number: str

    @classmethod
    def submit(cls, slurm: Cluster, run: Path, body: str, *options: str) -> "Training":
        record = Record(run)
        for folder in ("logs", "states"):
            (record.folder / folder).mkdir(parents=True)
        write_recipe(record.folder / "recipe.yaml", data={"shards": "nowhere"})
        write_site(record.folder / "site.yaml", run / "cache")
        record.batch_file("train").write_text(f"#!/bin/bash\nsource slurm/stage.sh {run} train\n{body}\n")
        number = slurm.submit("--output=/dev/null", *options, record.batch_file("train"))
        record.note(JobRecord("train", "train", number))
        return cls(slurm, record, number)

    def begin(self) -> "Training":
        wait_until(lambda: self.record.begun(self.record.jobs[0]), f"job {self.number} to begin", 60, 0.2)
        return self

    def row(self) -> tuple[str, str]:
        rows, notice = look(self.record.run)
        assert notice == ""
        return next((row.state, row.problem) for row in rows if row.stage == "train")


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster(preemption=True, kill_wait=2, accounting=True, remembers=2) as running:
        yield running


def test_an_account_that_does_not_exist_is_said_before_anything_is_queued(slurm, tmp_path):
    doors = Doors(slurm, tmp_path)
    write_site(doors.site, tmp_path / "cache", report={"account": "nobody"})
    refused = doors.submit()
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and slurm.jobs() == {}
    assert "SLURM refuses stage report (partition main, account nobody): " in refused.stderr
    assert "Invalid account or account/partition combination specified" in refused.stderr


def test_accounting_tells_how_jobs_ended_that_slurm_has_forgotten(slurm, tmp_path, monkeypatch):
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm.variables[name])
    start = lambda name, *job: Training.submit(slurm, tmp_path / name, *job)  # noqa: E731
    ended = {
        "failed": start("failed", "exit 3", "--nodelist=n3", "--no-requeue").begin(),
        "late": start("late", "sleep 1000", "--nodelist=n1", "--time=1").begin(),
        "cancelled": start("cancelled", "sleep 1000", "--nodelist=n1").begin(),
        "lost": start("lost", "sleep 1000", "--nodelist=n3", "--no-requeue").begin(),
        "displaced": start("displaced", STUBBORN, "--nodelist=n2", "--no-requeue").begin(),
    }
    again = f"[ $SLURM_RESTART_COUNT ] || {{ {STUBBORN}; }}"
    requeued = start("requeued", again, "--nodelist=n2", "--requeue").begin()
    slurm.run("scancel", ended["cancelled"].number)
    slurm.kill_node("n3")
    urgent = ("--partition=urgent", "--nodelist=n2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1000")
    first = slurm.submit(*urgent)

    forgotten = lambda: not {job.number for job in ended.values()} & known(slurm)  # noqa: E731
    wait_until(forgotten, "SLURM to forget the jobs", 240, 0.5)
    assert requeued.row() == ("requeued", "goes on by itself after a crash")
    assert {name: job.row() for name, job in ended.items()} == {
        "failed": ("failed", "it ended with code 3"),
        "late": ("failed", "its time limit was reached"),
        "cancelled": ("failed", "it was cancelled"),
        "lost": ("failed", "a node failed"),
        "displaced": ("pre-empted", "it was pre-empted"),
    }

    slurm.run("scancel", first)
    slurm.wait_until_empty()
    wait_until(lambda: requeued.number not in known(slurm), "SLURM to forget the last job", 60, 0.5)
    assert requeued.row() == ("done", "") and remembered([requeued.number]) == {requeued.number: "COMPLETED"}


def known(slurm: Cluster) -> set[str]:
    """Numbers of the jobs that SLURM still knows."""
    return set(slurm.run("squeue", "--noheader", "--states=all", "--format=%A").split())
