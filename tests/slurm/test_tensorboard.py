"""TensorBoard on a cluster: the real server, runs by name, and nothing left of it."""

import json
import os
import re
import signal
import subprocess
import urllib.request
from contextlib import suppress

import psutil
import pytest
from torch.utils.tensorboard import SummaryWriter

from slurm import tensorboard
from tests.engine.faults.processes import alive, environment, wait_until
from tests.support import ROOT


def write_run(directory, tag="mlm/loss"):
    with SummaryWriter(str(directory / "tensorboard")) as writer:
        writer.add_scalar(tag, 1.0, 1)
    return directory


def served(port):
    """The runs that the page shows, with their tags."""
    address = f"http://127.0.0.1:{port}/data/plugin/scalars/tags"
    with suppress(OSError, ValueError), urllib.request.urlopen(address, timeout=5) as answer:
        return {run: sorted(tags) for run, tags in json.load(answer).items()}
    return {}


def wait_for_page(log, expected):
    """Until the page shows these runs; its port."""
    wait_until(lambda: log.exists() and "then open http" in log.read_text(), "directions", 60, 0.1)
    port = int(re.search(r"-L (\d+):", log.read_text())[1])
    wait_until(lambda: set(served(port)) == expected, f"{expected}, found {served(port)}", 60, 0.2)
    return port


def test_a_login_node_serves_runs_by_their_names_until_it_is_told_to_end(tmp_path):
    write_run(tmp_path / "runs" / "a" / "student")
    write_run(tmp_path / "runs" / "b" / "student")
    log = tmp_path / "log"
    with open(log, "wb") as stream:
        command = ["bash", "slurm/tensorboard.sbatch", str(tmp_path / "runs"), str(tmp_path / "later")]
        board = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=stream, stderr=subprocess.STDOUT)
    try:
        port = wait_for_page(log, {"a/student", "b/student"})
        assert f"ssh -N -L {port}:127.0.0.1:{port} {os.uname().nodename}\n" in log.read_text()
        family = [psutil.Process(board.pid), *psutil.Process(board.pid).children(recursive=True)]
        listening = [c.laddr.ip for p in family for c in p.net_connections("tcp") if c.status == "LISTEN"]
        assert listening and set(listening) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
        board.send_signal(signal.SIGTERM)
        assert board.wait(30) == 0
        wait_until(lambda: not any(map(alive, family)), "all of it to end", 30)
    finally:
        board.terminate()
        board.wait(30)


@pytest.mark.slow
def test_a_job_serves_a_run_that_begins_later_and_ends_with_it(slurm, tmp_path):
    write_run(tmp_path / "first")
    log = tmp_path / "log"
    arguments = ("slurm/tensorboard.sbatch", tmp_path / "first", tmp_path / "second")
    job = slurm.submit(f"--output={log}", "--mem=1G", *arguments)
    port = wait_for_page(log, {"first"})
    assert f"ssh -N -L {port}:{os.uname().nodename}:{port} {os.uname().nodename}\n" in log.read_text()
    write_run(tmp_path / "second")
    wait_for_page(log, {"first", "second"})
    slurm.run("scancel", job)
    slurm.wait_until_empty()
    wait_until(lambda: not served(port), "the page to be gone", 30)
    assert not any("tensorboard" in " ".join(process.cmdline()) for process in slurm.processes())


@pytest.mark.parametrize(
    ("runs", "names"),
    [
        (["/r/a"], ["a"]),
        (["/r/a", "/r/b"], ["a", "b"]),
        (["/r/a/x", "/r/b/x"], ["a/x", "b/x"]),
        (["/r/1/a/x", "/r/2/a/x", "/r/2/b/y"], ["1/a/x", "2/a/x", "2/b/y"]),
        ([], []),
    ],
)
def test_names_tell_runs_apart(runs, names):
    assert list(tensorboard.names_of([tensorboard.Path(run) for run in runs])) == names


def test_links_follow_the_runs(tmp_path):
    runs, folder = tmp_path / "runs", tmp_path / "links"
    folder.mkdir()
    for name in ("a/x", "b/deep/er"):
        (runs / name / "tensorboard").mkdir(parents=True)
    found = tensorboard.find_runs([runs, runs / "a", tmp_path / "none"])
    assert found == [runs / "a" / "x", runs / "b" / "deep" / "er"]
    tensorboard.link(folder, found[:1])
    tensorboard.link(folder, found)
    assert sorted(path.name for path in folder.iterdir()) == ["er", "x"]
    (runs / "c" / "x" / "tensorboard").mkdir(parents=True)
    tensorboard.link(folder, tensorboard.find_runs([runs]))
    links = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink()}
    assert links == {"a/x", "c/x", "deep/er"}
