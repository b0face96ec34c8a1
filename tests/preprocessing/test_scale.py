"""One build on many processes: under mpirun, killed at any moment, and what it says on the way."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time

import psutil
import pytest

from pipeline.data.manifest import quick_check
from preprocessing.build.output import Work
from preprocessing.build.plan import Task
from preprocessing.build.progress import Progress
from preprocessing.build.ranks import Ranks
from preprocessing.build.workers import Workforce
from tests.engine.faults.processes import alive, wait_until
from tests.support import ROOT
from tests.support.shards import contents, run_script, sentences, write_vocabulary

SCRIPT = [sys.executable, str(ROOT / "preprocessing" / "build_shards.py")]
needs_mpi = pytest.mark.skipif(shutil.which("mpirun") is None, reason="there is no mpirun on PATH")


def under_mpi(ranks: int) -> list[str]:
    return ["mpirun", "--oversubscribe", "-n", str(ranks)]


@pytest.fixture(autouse=True)
def _as_any_user(monkeypatch):
    """Open MPI asks before it runs as root, as a container may."""
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")


@pytest.fixture
def corpus(tmp_path) -> list[str]:
    """The common part of the command line; every fourth line occurs in the first file and in the third."""
    for index in range(3):
        lines = sentences(600, seed=index)
        lines[::4] = sentences(600, seed=index % 2)[::4]
        (tmp_path / f"in{index}.txt").write_text("\n".join(lines) + "\n")
    write_vocabulary(tmp_path / "vocab.txt")
    return ["--input", f"lines:{tmp_path}/in*.txt", "--tokenizer", f"{tmp_path}/vocab.txt", "--shard-tokens", "5000"]


@pytest.fixture
def whole(corpus, tmp_path) -> dict[str, bytes]:
    """What one worker makes of the corpus."""
    done = run_script("build_shards", *corpus, "--workers", 1, "--output", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    assert quick_check(tmp_path / "whole").skipped == {"duplicate": 150}
    return contents(tmp_path / "whole")


@needs_mpi
def test_same_bytes_from_two_ranks(corpus, whole, tmp_path):
    """Two ranks, the second time with two workers each; the second rank must have worked."""
    out = tmp_path / "out"
    done = subprocess.run([*under_mpi(2), *SCRIPT, *corpus, "--output", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert contents(out) == whole
    assert done.stdout.count("tokenizing") == 1, "both ranks talk"
    more = [*under_mpi(2), *SCRIPT, *corpus, "--workers", "2", "--output", str(tmp_path / "more")]
    assert subprocess.run(more, capture_output=True).returncode == 0
    assert contents(tmp_path / "more") == whole


@needs_mpi
def test_an_error_on_any_rank_ends_all_with_its_sentence_and_code(corpus, tmp_path):
    with open(tmp_path / "in2.txt", "ab") as stream:
        stream.write(b"\xfe\n")
    command = [*under_mpi(2), *SCRIPT, *corpus, "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3
    assert len(re.findall(rf"error: {tmp_path}/in2.txt, line 601", done.stderr)) == 1
    assert "Traceback" not in done.stderr
    done = subprocess.run([*command[:-1], str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("is not empty; choose another directory") == 1


@needs_mpi
def test_a_killed_rank_ends_the_others_and_another_number_of_ranks_goes_on(corpus, whole, tmp_path):
    (tmp_path / "in3.txt").write_text("\n".join(sentences(4_000, seed=3)) + "\n")
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*under_mpi(2), *SCRIPT, *corpus, "--output", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: len(list(out.glob(".build/read_*.json"))) >= 3, "three tasks")
    family_of(process)[-1].kill()
    assert process.wait(timeout=60) != 0
    documents = [json.loads(path.read_bytes())["documents"] for path in out.glob(".build/read_*.json")]
    command = [*under_mpi(3), *SCRIPT, *corpus, "--output", str(out)]
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"tasks {len(documents)} are read" in again.stdout
    everything = quick_check(out).documents + quick_check(out).skipped["duplicate"]
    assert f" tasks, {everything - sum(documents):,} documents" in again.stdout, "tasks that were read ran again"
    fresh = tmp_path / "fresh"
    assert run_script("build_shards", *corpus, "--workers", 1, "--output", fresh).returncode == 0
    assert contents(out) == contents(fresh)


def test_processes_that_mpi_does_not_connect_are_refused(corpus, tmp_path, monkeypatch):
    """srun without MPI starts processes that each believe to be alone: they would write over each other."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    done = run_script("build_shards", *corpus, "--output", tmp_path / "out")
    assert done.returncode == 2 and done.stderr.startswith("error: 2 processes were started, but")
    assert not (tmp_path / "out").exists()


def test_a_claimed_task_is_run_once(tmp_path):
    """Two ranks that begin at different places share the tasks between them."""

    class Two(Ranks):
        def __init__(self, rank: int) -> None:
            self.rank, self.size = rank, 2

        def gather(self, value):
            return [value]

    ran: list[int] = []

    def run(task: Task) -> int:
        ran.append(task.index)
        if task.index == 3:  # the first rank comes to its end before the second begins its last task
            shares.append(Workforce(Two(0), 1, tmp_path).run("work", tasks, run))
        return task.index * 10

    tasks = [Task(index, ()) for index in range(6)]
    shares: list[dict[int, int]] = []
    shares.append(Workforce(Two(1), 1, tmp_path).run("work", tasks, run))
    assert ran == [3, 0, 1, 2, 4, 5] and shares[0].keys() == {0, 1, 2, 4, 5} and shares[1] == {3: 30}
    assert Workforce(Two(0), 1, tmp_path).run("other", tasks[:1], run) == {0: 0}


def test_without_a_terminal_progress_is_a_line_a_minute_and_one_at_the_end(capsys, monkeypatch):
    monkeypatch.setattr("preprocessing.build.progress._LINE_SECONDS", 0.2)
    news = [[Work(100, 2_000_000)], [], [Work(50, 1_000_000), Work(50, 1_000_000)]]
    with Progress("reading", 4, 1, lambda: news.pop(0) if news else [], Ranks()):
        wait_until(lambda: len(news) < 2, "a line on the way")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("reading: 2/4 tasks, 100 documents (") and re.search(r"0:00:0\d left$", lines[0])
    assert re.match(r"reading: 4/4 tasks, 200 documents \([\d,]+/s\), 4\.0 MB \(\d+\.\d\d MB/s\)$", lines[-1])


def test_on_a_terminal_progress_is_a_bar(corpus, tmp_path):
    """A real terminal: the sizes, the rates and the time left are on it, and lines do not pile up."""
    pty = pytest.importorskip("pty")
    import fcntl
    import struct
    import termios

    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [*SCRIPT, *corpus, "--workers", "1", "--output", str(tmp_path / "out")])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 150, 0, 0))
    shown = b""
    while block := read_terminal(terminal):
        shown += block
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    text = shown.decode()
    bar = re.findall(r"\rtokenizing: (\d+)/(\d+) tasks \|[^|]+\|, [\d,]+ documents \([\d,]+/s\), [\d.]+ MB", text)
    assert bar and bar[-1][0] == bar[-1][1]
    assert text.count("\n") <= 4


@pytest.mark.slow
@pytest.mark.parametrize("start", [[], under_mpi(2)], ids=["workers", "mpirun"])
def test_a_run_killed_at_ten_random_moments_gives_the_same_bytes(corpus, tmp_path, start):
    if start and shutil.which("mpirun") is None:
        pytest.skip("there is no mpirun on PATH")
    (tmp_path / "in3.txt").write_text("\n".join(sentences(40_000, seed=3)) + "\n")
    corpus[-1] = "20000"
    began = time.monotonic()
    whole = run_script("build_shards", *corpus, "--workers", 2, "--output", tmp_path / "whole")
    duration = time.monotonic() - began
    assert whole.returncode == 0, whole.stderr
    draw = random.Random(7)
    options = [] if start else ["--workers", "2"]
    out, kills = tmp_path / "out", 0
    while kills < 10:
        # A killed run keeps what it has done: begin anew rather than only ever kill the end.
        if (out / "manifest.json").exists():
            assert contents(out) == contents(tmp_path / "whole")
            shutil.rmtree(out)
        process = subprocess.Popen(
            [*start, *SCRIPT, *corpus, *options, "--output", str(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(draw.uniform(0.3, 1.1) * duration)
        except subprocess.TimeoutExpired:
            family = family_of(process)
            draw.choice(family).kill()
            kills += 1
            # Whoever was hit, the others must end by themselves.
            process.wait(60)
            wait_until(lambda family=family: not any(map(alive, family)), "the other processes to end")
    done = subprocess.run([*start, *SCRIPT, *corpus, *options, "--output", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(tmp_path / "whole")


def family_of(process: subprocess.Popen) -> list[psutil.Process]:
    """It and all its descendants."""
    own = psutil.Process(process.pid)
    return [own, *own.children(recursive=True)]


def read_terminal(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other side is closed
        return b""
