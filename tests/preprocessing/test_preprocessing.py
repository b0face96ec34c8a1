"""Building shards: the right tokens, the same bytes for any number of workers and restarts, one-sentence errors."""

import os
import resource
import signal
import subprocess
import sys
import time
from itertools import product

import numpy as np
import pytest

from pipeline.data.indexed import IndexedReader
from pipeline.data.manifest import quick_check
from pipeline.errors import DataError, UserError
from preprocessing import build_shards
from preprocessing.build.output import BuildDirectory
from preprocessing.build.sharding import TaskWriter, shard_bounds
from preprocessing.tokenizing.tokenizer import load_fast
from tests.support import ROOT
from tests.support.shards import contents, run_script, sentences, write_vocabulary


@pytest.fixture
def corpus(tmp_path):
    """Three files of 400 lines, some blank, and a vocabulary; returns the common part of the command line."""
    for index in range(3):
        lines = sentences(400, seed=index)
        lines[7] = lines[200] = ""
        (tmp_path / f"in{index}.txt").write_text("\n".join(lines) + "\n")
    write_vocabulary(tmp_path / "vocab.txt")
    return ["--input", f"lines:{tmp_path}/in*.txt", "--tokenizer", f"{tmp_path}/vocab.txt"]


def build(monkeypatch, arguments, output, workers=1, shard_tokens=5000):
    """Run the entry point in this process."""
    options = ["--output", str(output), "--workers", str(workers), "--shard-tokens", str(shard_tokens)]
    monkeypatch.setattr(sys, "argv", ["build_shards.py", *map(str, arguments), *options])
    return build_shards.main()


def assert_one_sentence(done, code, *parts):
    assert done.returncode == code
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert all(part in done.stderr for part in parts)


def test_shards_hold_the_documents_in_order_without_special_tokens(corpus, tmp_path, monkeypatch):
    assert build(monkeypatch, corpus, tmp_path / "out") == 0
    manifest = quick_check(tmp_path / "out")
    tokenizer = load_fast(tmp_path / "out" / "tokenizer")
    readers = [IndexedReader(tmp_path / "out" / shard.name) for shard in manifest.shards]
    found = [list(reader[i]) for reader in readers for i in range(len(reader))]
    lines = [line for i in range(3) for line in (tmp_path / f"in{i}.txt").read_text().splitlines() if line]
    assert found == [tokenizer.encode(line, add_special_tokens=False).ids for line in lines]
    assert manifest.skipped == {"empty": 6}
    assert len(readers) > 3 and all(reader.token_count < 5000 + 40 for reader in readers)
    assert sorted(os.listdir(tmp_path / "out")) == sorted(
        ["manifest.json", "tokenizer", *(f"{s.name}{suffix}" for s in manifest.shards for suffix in (".bin", ".idx"))]
    )


def test_a_shard_is_closed_at_its_size_within_a_task(corpus, tmp_path, monkeypatch):
    """A text of one file is one task, however few tokens a shard may have."""
    monkeypatch.setattr("preprocessing.build.plan.BYTES_PER_TOKEN", 1000)
    build(monkeypatch, corpus, tmp_path / "out")
    names = [shard.name for shard in quick_check(tmp_path / "out").shards]
    assert names == [f"shard_00000_{i:03d}" for i in range(len(names))] and len(names) > 3


def bounds_one_by_one(lengths, shard_tokens):
    """Document after document: a shard ends with the one that fills it, and what holds no token is no shard."""
    found, first, tokens = [], 0, 0
    for place, length in enumerate(lengths):
        tokens += length
        if tokens >= shard_tokens:
            found.append((first, place + 1))
            first, tokens = place + 1, 0
    return [*found, (first, len(lengths))] if tokens else found


def test_no_document_is_cut_and_a_shard_ends_with_the_one_that_fills_it():
    draw = np.random.default_rng(0)
    for _ in range(300):
        lengths = draw.integers(0, 4, int(draw.integers(0, 9)))
        size = int(draw.integers(1, 8))
        assert list(shard_bounds(lengths, size)) == bounds_one_by_one(lengths.tolist(), size), (lengths, size)


def test_same_bytes_from_one_and_two_workers(corpus, tmp_path, monkeypatch):
    build(monkeypatch, corpus, tmp_path / "one")
    build(monkeypatch, corpus, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_restart_redoes_unfinished_tasks_only(corpus, tmp_path, monkeypatch):
    build(monkeypatch, corpus, tmp_path / "whole")
    original, done = TaskWriter.__call__, []

    def failing(writer, task):
        if len(done) == 3:
            raise OSError("power cut")
        done.append(task.index)
        return original(writer, task)

    def counting(writer, task):
        done.append(task.index)
        return original(writer, task)

    monkeypatch.setattr(TaskWriter, "__call__", failing)
    with pytest.raises(OSError, match="power cut"):
        build(monkeypatch, corpus, tmp_path / "out")
    assert done == [0, 1, 2] and not (tmp_path / "out" / "manifest.json").exists()
    (tmp_path / "out" / ".shard_00003_000.bin.1.tmp").write_bytes(b"half")
    monkeypatch.setattr(TaskWriter, "__call__", counting)
    build(monkeypatch, corpus, tmp_path / "out")
    tasks = len({shard.name[:11] for shard in quick_check(tmp_path / "out").shards})
    assert done == list(range(tasks))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_killed_run_leaves_only_whole_files_and_is_continued(corpus, tmp_path, monkeypatch):
    (tmp_path / "in3.txt").write_text("\n".join(sentences(4_000, seed=3)))
    out = tmp_path / "out"
    script = ROOT / "preprocessing" / "build_shards.py"
    command = [sys.executable, script, *corpus, "--output", out, "--workers", "2", "--shard-tokens", "5000"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(out.glob(".build/read_*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (out / "manifest.json").exists()
    for path in out.glob("*.idx"):
        IndexedReader(path.with_suffix(""))
    build(monkeypatch, corpus, out)
    build(monkeypatch, corpus, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_a_finished_directory_is_left_alone(corpus, tmp_path, monkeypatch, capsys):
    build(monkeypatch, corpus, tmp_path / "out")
    before = contents(tmp_path / "out")
    assert build(monkeypatch, corpus, tmp_path / "out") == 0 and "already finished" in capsys.readouterr().out
    with pytest.raises(UserError, match="finished shards of other input"):
        build(monkeypatch, corpus, tmp_path / "out", shard_tokens=6000)
    (tmp_path / "in1.txt").write_text("another text\n")
    with pytest.raises(UserError, match="finished shards of other input"):
        build(monkeypatch, corpus, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_a_foreign_or_half_built_directory_is_refused(corpus, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="is not empty"):
        build(monkeypatch, corpus, tmp_path / "mine")
    (tmp_path / "in9.txt").write_bytes(b"\xff\n")
    with pytest.raises(DataError, match=r"in9\.txt, line 1"):
        build(monkeypatch, corpus, tmp_path / "out")
    (tmp_path / "in9.txt").write_text("mended\n")
    with pytest.raises(UserError, match="unfinished build of other input"):
        build(monkeypatch, corpus, tmp_path / "out")


def test_an_empty_corpus_leaves_nothing(tmp_path):
    write_vocabulary(tmp_path / "vocab.txt")
    (tmp_path / "a.txt").write_text("\n \n\x00\n")
    common = ["--input", f"lines:{tmp_path}/a.txt", "--tokenizer", tmp_path / "vocab.txt"]
    done = run_script("build_shards", *common, "--output", tmp_path / "out")
    assert_one_sentence(done, 3, "no document", "3")
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "vocab.txt"]


def test_bad_data_in_a_worker_ends_the_build_with_its_sentence(corpus, tmp_path):
    with open(tmp_path / "in2.txt", "ab") as stream:
        stream.write(b"\xfe\n")
    where = f"{tmp_path}/in2.txt, line 401 (byte {(tmp_path / 'in2.txt').stat().st_size - 2})"
    options = ["--output", tmp_path / "out", "--workers", 2, "--shard-tokens", 5000]
    assert_one_sentence(run_script("build_shards", *corpus, *options), 3, where)
    assert not (tmp_path / "out" / "manifest.json").exists()


SHORT = ["".join(letters) for letters in product("abcdefghij", repeat=3)]


# A document costs 2 bytes an id and 16 for its digest in the first pass, and 20 in the index of the second.
@pytest.mark.parametrize(
    ("texts", "limit", "name"),
    [(sentences(1000), 22_000, "ids_00000.bin"), (SHORT, 18_000, "shard_00000_000.idx")],
    ids=["first pass", "second pass"],
)
def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch, texts, limit, name):
    """A limit on the file size fails writes as a full disk does."""
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
    corpus = ["--input", f"lines:{tmp_path}/in.txt", "--tokenizer", write_vocabulary(tmp_path / "vocab.txt")]
    monkeypatch.setattr("preprocessing.build.plan.BYTES_PER_TOKEN", 1000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(UserError, match=rf"{name}: cannot write") as caught:
            build(monkeypatch, corpus, tmp_path / "full", shard_tokens=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.exit_code == 2
    assert sorted(os.listdir(tmp_path / "full")) == [".build"]
    assert not list((tmp_path / "full").rglob("*.tmp"))


def test_a_run_killed_before_its_manifest_needs_no_task_again(corpus, tmp_path, monkeypatch):
    build(monkeypatch, corpus, tmp_path / "whole")
    original = BuildDirectory.finish

    def killed(_build, _results):
        raise KeyboardInterrupt

    monkeypatch.setattr(BuildDirectory, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        build(monkeypatch, corpus, tmp_path / "out")
    monkeypatch.setattr(BuildDirectory, "finish", original)
    monkeypatch.setattr(TaskWriter, "__call__", None)
    build(monkeypatch, corpus, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("module", [False, True])
def test_missing_input_and_help_as_script_and_as_module(tmp_path, module):
    common = ["--tokenizer", tmp_path, "--output", tmp_path / "out", "--local_rank=0"]
    done = run_script("build_shards", "--input", "text:/nowhere.txt", *common, module=module)
    assert_one_sentence(done, 2, "text:/nowhere.txt")
    assert not (tmp_path / "out").exists()
    done = run_script("build_shards", "--help", module=module)
    assert done.returncode == 0 and "--shard-tokens" in done.stdout and "local_rank" not in done.stdout


def test_other_ranks_of_a_launcher_do_nothing(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert build(monkeypatch, corpus, tmp_path / "out") == 0
    assert not (tmp_path / "out").exists()


def test_inputs_add_up_however_they_are_given(tmp_path):
    """`--input A --input B` is `--input A B`; an option that silently replaced the first would lose text."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("\n".join(sentences(3, seed=ord(name))) + "\n")
    a, b = f"lines:{tmp_path / 'a.txt'}", f"lines:{tmp_path / 'b.txt'}"
    vocabulary = write_vocabulary(tmp_path / "vocab.txt")
    for name, inputs in (("once", ["--input", a, b]), ("twice", ["--input", a, "--input", b])):
        result = run_script("build_shards", *inputs, "--tokenizer", vocabulary, "--output", tmp_path / name)
        assert result.returncode == 0, result.stderr
    assert quick_check(tmp_path / "twice").documents == 6
    assert quick_check(tmp_path / "once") == quick_check(tmp_path / "twice")
