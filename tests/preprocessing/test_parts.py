"""A build in parts, as a job array runs it: the same bytes as in one process, and whatever is missing is named."""

import random
import signal
import subprocess
import sys

import pytest

from pipeline.data.manifest import quick_check
from preprocessing import build_shards, verify_shards
from preprocessing.build.output import BuildDirectory
from preprocessing.build.parts import listed_numbers
from preprocessing.build.reading import TaskReader
from preprocessing.build.sharding import TaskWriter
from tests.engine.faults.processes import wait_until
from tests.preprocessing.test_scale import SCRIPT, needs_mpi, under_mpi
from tests.support.runs import run_main
from tests.support.shards import contents, sentences, write_vocabulary


@pytest.fixture
def corpus(tmp_path) -> list[str]:
    """The common part of the command line: files share lines, within a part and across, and some lines are empty."""
    for index in range(3):
        lines = sentences(600, seed=index)
        lines[::4] = sentences(600, seed=index % 2)[::4]
        lines[7], lines[9] = "", "\x00"
        (tmp_path / f"in{index}.txt").write_text("\n".join(lines) + "\n")
    write_vocabulary(tmp_path / "vocab.txt")
    return ["--input", f"lines:{tmp_path}/in*.txt", "--tokenizer", f"{tmp_path}/vocab.txt", "--shard-tokens", "5000"]


@pytest.fixture
def build(monkeypatch, corpus, tmp_path):
    """Run the entry point in this process on one worker; returns exit code, stdout and stderr."""

    def run(*options: object, output: str = "out") -> tuple[int, str, str]:
        common = [*corpus, "--workers", 1, "--output", tmp_path / output]
        return run_main(monkeypatch, build_shards.main, *common, *options)

    return run


@pytest.fixture
def whole(build, tmp_path) -> dict[str, bytes]:
    """What one process makes of the corpus."""
    assert build(output="whole")[0] == 0
    assert quick_check(tmp_path / "whole").skipped == {"duplicate": 152, "empty": 4}
    return contents(tmp_path / "whole")


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """The tasks whose first pass was run, in order."""
    original, seen = TaskReader.__call__, list[int]()
    monkeypatch.setattr(TaskReader, "__call__", lambda reader, task: seen.append(task.index) or original(reader, task))
    return seen


def start(corpus, output, *options) -> subprocess.Popen:
    command = [*SCRIPT, *corpus, "--output", output, *options]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("count", [1, 4, 12])
def test_parts_in_any_order_and_a_merge_give_the_bytes_of_one_process(build, read, whole, tmp_path, monkeypatch, count):
    tasks = list(read)
    read.clear()
    for number in random.Random(count).sample(range(1, count + 1), count):
        code, out, err = build("--part", f"{number}/{count}")
        assert (code, err) == (0, "") and f"part {number}/{count} is built" in out
        assert not (tmp_path / "out" / "manifest.json").exists()
    assert sorted(read) == tasks
    assert build("--merge")[0] == 0 and len(read) == len(tasks)
    assert contents(tmp_path / "out") == whole
    assert run_main(monkeypatch, verify_shards.main, tmp_path / "out")[0] == 0


@needs_mpi
def test_an_array_of_four_and_two_ranks_of_mpi_give_the_same_bytes(build, corpus, tmp_path, monkeypatch):
    """Real processes, all parts at once: whoever comes first makes the directory."""
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    parts = [start(corpus, tmp_path / "out", "--workers", 1, "--part", f"{number}/4") for number in range(1, 5)]
    for part in parts:
        assert part.wait() == 0, part.stderr.read()
    assert build("--merge")[0] == 0
    command = [*under_mpi(2), *SCRIPT, *corpus, "--output", str(tmp_path / "mpi")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(tmp_path / "mpi")


def test_missing_parts_are_named(build, tmp_path):
    out = tmp_path / "out"
    code, _, err = build("--merge")
    assert (code, err) == (
        2,
        f"error: {out} holds no parts to merge; build them first, --part 1/N to --part N/N\n",
    )
    assert not out.exists()
    build("--part", "2/5")
    before = contents(out)
    code, _, err = build("--merge")
    hint = "build them with --part I/5 and merge again"
    assert (code, err) == (2, f"error: {out}: of 5 parts these are missing or unfinished: 1,3-5; {hint}\n")
    assert before.items() <= contents(out).items()


def test_a_part_whose_files_are_gone_is_missing(build, tmp_path):
    for number in (1, 2, 3):
        build("--part", f"{number}/3")
    (tmp_path / "out" / ".build" / "ids_00004.bin").unlink()
    assert "unfinished: 2; build them" in build("--merge")[2]
    assert build("--part", "2/3")[0] == 0 and build("--merge")[0] == 0


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        (["--min-length", 3], "with --min-length 1;"),
        (["--cased", "--shard-tokens", 6000], "with another tokenizer and --shard-tokens 5000;"),
        (["--reflow", "off"], "with --reflow auto;"),
    ],
)
def test_a_part_of_other_options_is_refused(build, tmp_path, options, differs):
    build("--part", "1/2")
    before = contents(tmp_path / "out")
    for step in (["--part", "2/2"], ["--merge"]):
        code, _, err = build(*step, *options)
        assert code == 2 and f"holds an unfinished build {differs} delete it or choose another" in err
        assert err.count("\n") == 1
    assert contents(tmp_path / "out") == before


def test_a_part_of_other_input_is_refused_however_late_it_learns(build, tmp_path, monkeypatch):
    build("--part", "1/2")
    (tmp_path / "in1.txt").write_text("another text\n")
    refusal = "holds an unfinished build of other input;"
    assert refusal in build("--part", "2/2")[2]
    # Two that begin at the same moment see an empty directory both; who has the lock second looks again.
    original, looks = BuildDirectory.is_finished, list[int]()

    def late(directory):
        looks.append(1)
        return len(looks) > 1 and original(directory)

    monkeypatch.setattr(BuildDirectory, "is_finished", late)
    code, _, err = build("--part", "2/2")
    assert code == 2 and refusal in err and len(looks) == 2


def test_another_number_of_parts_is_refused(build, tmp_path):
    build("--part", "1/2")
    code, _, err = build("--part", "2/3")
    assert code == 2 and f"{tmp_path / 'out'} is being built in 2 parts, not 3; give --part I/2, or" in err


def test_a_finished_part_and_a_finished_build_are_left_alone(build, whole, read, tmp_path):
    build("--part", "1/2")
    count = len(read)
    code, out, _ = build("--part", "1/2")
    assert code == 0 and len(read) == count and "part 1/2 is built" in out
    build("--part", "2/2")
    build("--merge")
    for step in (["--part", "2/2"], ["--merge"]):
        code, out, _ = build(*step)
        assert code == 0 and "already finished" in out
    assert contents(tmp_path / "out") == whole


def test_the_tokenizer_of_other_parts_stays_unless_it_is_broken(build, whole, tmp_path):
    tokenizer = tmp_path / "out" / ".build" / "tokenizer"
    build("--part", "1/3")
    place = tokenizer.stat().st_ino
    build("--part", "2/3")
    assert tokenizer.stat().st_ino == place
    (tokenizer / "tokenizer.json").write_bytes(b"")
    assert build("--part", "3/3")[0] == build("--merge")[0] == 0
    assert contents(tmp_path / "out") == whole


def test_a_killed_part_starts_again_and_touches_no_other(build, corpus, read, tmp_path):
    (tmp_path / "in3.txt").write_text("\n".join(sentences(4_000, seed=3)) + "\n")
    work = tmp_path / "out" / ".build"
    process = start(corpus, tmp_path / "out", "--workers", 2, "--part", "2/2")
    wait_until(lambda: len(list(work.glob("read_*.json"))) >= 2, "two tasks")
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the part ended before it could be killed"
    process.stderr.read()  # its workers hold it open until they have ended as well
    done = {int(path.name[5:10]) for path in work.glob("read_*.json")}
    own, other = work / ".ids_00001.bin.1.tmp", work / ".ids_00002.bin.1.tmp"
    own.touch(), other.touch()
    assert build("--merge")[0] == 2, "half a part was taken for a whole one"
    own.touch(), other.touch()
    assert build("--part", "2/2")[0] == 0
    assert not own.exists() and other.exists()
    assert not done & set(read) and all(index % 2 for index in {*done, *read})
    assert build("--part", "1/2")[0] == 0 and build("--merge")[0] == 0
    assert build(output="whole")[0] == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_killed_merge_goes_on(build, whole, tmp_path, monkeypatch):
    for number in (1, 2):
        build("--part", f"{number}/2")
    original, done = TaskWriter.__call__, []

    def failing(writer, task):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(task.index)
        return original(writer, task)

    monkeypatch.setattr(TaskWriter, "__call__", failing)
    with pytest.raises(KeyboardInterrupt):
        build("--merge")
    monkeypatch.setattr(TaskWriter, "__call__", original)
    assert build("--merge")[0] == 0
    assert contents(tmp_path / "out") == whole


def test_what_runs_at_once(build, corpus, tmp_path):
    """While a part runs, the same one, a merge and a build of all are refused; another part is not."""
    out = tmp_path / "out"
    build("--part", "1/100")
    process = hold(out, "2/100")
    try:
        code, _, err = build("--part", "2/100")
        assert (code, err) == (2, f"error: {out}: another process is building part 2/100 here\n")
        for step in (["--merge"], []):
            code, _, err = build(*step)
            assert (code, err) == (2, f"error: {out}: another process is building here\n")
        assert build("--part", "3/100")[0] == 0
    finally:
        process.kill()
        process.wait()
    assert build("--part", "2/100")[0] == 0
    process = hold(out, None)
    try:
        code, _, err = build("--part", "2/100")
        assert (code, err) == (2, f"error: {out}: another process is building here\n")
    finally:
        process.kill()
        process.wait()


def hold(output, part) -> subprocess.Popen:
    """A process that has begun a part, or all, of the build and does nothing more."""
    code = f"""
import sys, time
sys.path.insert(0, {str(SCRIPT[1]).rsplit("/", 2)[0]!r})
from pathlib import Path
from preprocessing.build.output import BuildDirectory
from preprocessing.build.parts import part_option
output, part = Path({str(output)!r}), {part!r}
build = BuildDirectory(output, (output / ".build" / "source_hash").read_text(), {{}}, part and part_option(part))
build.open(build.tokenizer)
print("held", flush=True)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("text", ["0/4", "5/4", "a/b", "1/0", "1", "/", "1/4/2", "-1/4", "1/4.0", "²/4", ""])
def test_other_spellings_are_refused(build, tmp_path, text):
    code, _, err = build(f"--part={text}")
    assert code == 2 and f"argument --part: {text!r} is not I/N with whole numbers, I from 1 to N" in err
    assert not (tmp_path / "out").exists()


def test_a_part_is_one_process_and_no_merge(build, tmp_path, monkeypatch):
    assert "not allowed with argument" in build("--part", "1/2", "--merge")[2]
    monkeypatch.setattr(
        "preprocessing.build.ranks.Ranks.__init__",
        lambda ranks, _=None: vars(ranks).update(rank=0, size=2, _communicator=None),
    )
    code, _, err = build("--part", "1/2")
    assert code == 2 and err.startswith("error: --part is for one process") and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_numbers_are_listed_as_a_job_array_takes_them():
    assert listed_numbers([3, 1, 2, 7, 9, 10, 2]) == "1-3,7,9-10"
