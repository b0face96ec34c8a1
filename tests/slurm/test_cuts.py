"""Runs of submit.py whose training is cut on a real SLURM: each ends with the student of the run that was not.

Every cut happens where jobs may be requeued, where they may not, and on a SLURM with accounting. Run by
`make test-slow`; benchmarks/slurm.py writes what these tests found to a file.
"""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.faults.processes import send, wait_until
from tests.slurm.cluster import Cluster, cluster
from tests.slurm.runs import Doors, pending, ranks, student_files, write_site
from tests.support.runs import prepare, recipe_values, write_recipe

pytestmark = pytest.mark.slow
STEPS, CHECKPOINT_EVERY, CUT_AT = 100, 20, 25


SITES = {"requeued": {}, "requeue_forbidden": {"requeue": False}, "with_accounting": {"accounting": True}}


@pytest.fixture(scope="module", params=SITES)
def site(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def slurm(site) -> Iterator[Cluster]:
    """Three nodes, of which training takes two; another partition pre-empts the jobs."""
    with cluster(preemption=True, **SITES[site]) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With shards and a teacher of a few seconds' training."""
    folder = tmp_path_factory.mktemp("runs")
    prepare(folder)
    return folder


def submitted(slurm: Cluster, folder: Path, name: str, requeue: bool = True) -> Doors:
    doors = Doors(slurm, folder, name)
    train = {"steps": STEPS, "checkpoint_every": CHECKPOINT_EVERY, "log_every": 5}
    write_recipe(doors.recipe, recipe_values(folder / "shards", folder / "teacher", train=train))
    write_site(doors.site, folder / "cache", requeue=requeue, train_jobs=3)
    done = doors.submit()
    assert done.returncode == 0, done.stderr
    return doors


@pytest.fixture(scope="module")
def expected(folder) -> dict[str, bytes]:
    """The student of the run that nobody cuts."""
    with cluster() as slurm:
        doors = submitted(slurm, folder, "whole")
        rows = doors.finish()
    assert rows["report"]["state"] == "done" and "resumed from" not in doors.logs(100_000), f"{rows}\n{doors.logs()}"
    files = student_files(doors.run)
    assert {"model.safetensors", "config.json", "tokenizer.json", "fold.json"} <= set(files)
    return files


def until_signalled(slurm: Cluster, doors: Doors) -> None:
    """Wait until ranks that stand still have a signal that waits for them. SLURM may let them go on to deliver it."""
    came = lambda: "stopping after" in doors.logs(100_000) or any(map(pending, ranks(slurm).values()))  # noqa: E731
    wait_until(came, "the signal", 200, 0.2)


def by_signal(slurm: Cluster, doors: Doors, job: str) -> None:
    slurm.run("scancel", "--signal=USR1", job)
    until_signalled(slurm, doors)


def by_time_limit(slurm: Cluster, doors: Doors, job: str) -> None:
    """SLURM 22.05 warns up to a minute early: here at once, or up to two minutes from now."""
    hours, minutes, _ = map(int, slurm.job(job)["RunTime"].split(":"))
    slurm.run("scontrol", "update", f"JobId={job}", f"TimeLimit={hours * 60 + minutes + 3}")
    until_signalled(slurm, doors)


def by_preemption(slurm: Cluster, doors: Doors, job: str) -> None:
    urgent = ("--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    slurm.submit(*urgent)
    until_signalled(slurm, doors)


def by_lost_node(slurm: Cluster, doors: Doors, job: str) -> None:
    slurm.kill_node("n2")
    doors.wait_for("Node failure on n2", "train")


def by_lost_daemon(slurm: Cluster, doors: Doors, job: str) -> None:
    """The first rank outlives its job's first start, and holds the run directory until the second is there.

    Then it finds the other rank gone, or the node comes back and ends it.
    """
    slurm.kill_daemon("n1")
    for words in ("this job waits for its end", CUTS[by_lost_daemon]):
        doors.wait_for(words, "train")


CUTS = {
    by_signal: "stopped by SIGUSR1: ",
    by_time_limit: "stopped by SIGUSR2: ",
    by_preemption: "stopped by SIGUSR2: ",
    by_lost_node: "",
    by_lost_daemon: "SLURM had given this start of the job up",
}
"""What the job says of each in its log."""


@pytest.mark.parametrize("how", CUTS, ids=lambda how: how.__name__)
def test_a_run_that_is_cut_ends_with_the_same_student(how: Callable, site, slurm, folder, expected, record_property):
    doors = submitted(slurm, folder, f"{site}_{how.__name__}", site != "requeue_forbidden")
    jobs = doors.rows()["train"]["jobs"].split(", ")
    doors.wait_for(f"step {CUT_AT:3}/", "train")
    assert slurm.job(jobs[0])["NodeList"] == "n[1-2]"
    training = ranks(slurm)
    assert set(training) == {"0", "1"}
    send(signal.SIGSTOP, training.values())
    try:
        how(slurm, doors, jobs[0])
        send(signal.SIGCONT, training.values())
    finally:
        for name in [name for name, daemon in slurm.daemons.items() if daemon.poll() is not None]:
            slurm.start_node(name)
    seen = states_until_resumed(doors)
    rows, log = doors.finish(), doors.logs(100_000)
    assert rows["report"]["state"] == "done", f"{rows}\n{doors.logs()}"
    assert CUTS[how] in log and "TIME LIMIT" not in log
    assert not seen & {"failed", "stopped", "not run"}
    step = int(log.split("resumed from ")[-1].split("step_")[1].split()[0])
    assert step % CHECKPOINT_EVERY == 0 if "lost" in how.__name__ else step >= CUT_AT
    restarts = int(slurm.job(jobs[0])["Restarts"])
    assert (restarts > 0) == (site != "requeue_forbidden")
    record_property("resumed_from_step", step)
    record_property("restarts", restarts)
    assert student_files(doors.run) == expected


def states_until_resumed(doors: Doors) -> set[str]:
    """What status.py says of training, until it goes on."""
    seen, deadline = set[str](), time.monotonic() + 240
    while "resumed from" not in doors.logs(100_000):
        assert time.monotonic() < deadline, doors.logs()
        seen.add(doors.rows()["train"]["state"])
        time.sleep(0.5)
    return seen
