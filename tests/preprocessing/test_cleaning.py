"""Filters and faults, through the command line: what is left out is counted, and never depends on the workers."""

import json
import re
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.indexed import IndexedReader
from pipeline.data.manifest import quick_check
from pipeline.errors import DataError, UserError
from preprocessing import build_shards
from preprocessing.build import duplicates
from preprocessing.build.cleaning import Cleaning, clean_texts
from preprocessing.build.plan import plan_tasks, source_hash
from preprocessing.build.reading import TaskReader
from preprocessing.readers.documents import Tally
from preprocessing.readers.specs import expand_specs, read_documents
from preprocessing.tokenizing.tokenizer import load_fast
from tests.support.shards import contents, sentences, write_vocabulary


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Returns a function that builds shards in this process and gives their texts and what was left out."""
    write_vocabulary(tmp_path / "vocab.txt")

    def run(*specs, name="out", workers=1, shard_tokens=500, options=()):
        output = tmp_path / name
        sizes = ["--workers", str(workers), "--shard-tokens", str(shard_tokens)]
        arguments = ["--input", *map(str, specs), "--tokenizer", f"{tmp_path}/vocab.txt", "--output", str(output)]
        monkeypatch.setattr(sys, "argv", ["build_shards.py", *arguments, *sizes, *map(str, options)])
        assert build_shards.main() == 0
        manifest, tokenizer = quick_check(output), load_fast(output / "tokenizer")
        readers = [IndexedReader(output / shard.name) for shard in manifest.shards]
        texts = [tokenizer.decode(list(reader[i])) for reader in readers for i in range(len(reader))]
        return texts, manifest.skipped

    return run


def write_lines(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return f"lines:{path}"


def test_of_equal_documents_the_first_of_the_input_stays(build, tmp_path, monkeypatch):
    """Across files and tasks, in one round or several, with one worker or two."""
    monkeypatch.setattr(duplicates, "_ROUND", 100)
    distinct = sentences(300)
    drawn = np.random.default_rng(1).permutation(np.repeat(np.arange(300), 3))
    first = write_lines(tmp_path / "a.txt", [distinct[i] for i in drawn[:500]])
    second = write_lines(tmp_path / "b.txt", [distinct[i] for i in drawn[500:]])
    expected = list(dict.fromkeys(distinct[i] for i in drawn))
    assert build(first, second) == (expected, {"duplicate": 600})
    assert build(first, second, name="two", workers=2) == (expected, {"duplicate": 600})
    assert contents(tmp_path / "out") == contents(tmp_path / "two")
    swapped, _ = build(second, first, name="swapped")
    assert swapped != expected and sorted(swapped) == sorted(expected)


def test_short_and_empty_documents_are_counted_apart(build, tmp_path):
    spec = write_lines(tmp_path / "a.txt", ["the fox", "a", "", "the dog", "\x00", "sea"])
    assert build(spec) == (["the fox", "a", "the dog", "sea"], {"empty": 2})
    texts, left_out = build(spec, name="long", options=["--min-length", 4])
    assert (texts, left_out) == (["the fox", "the dog"], {"empty": 1, "short": 3})


def test_what_changes_the_output_is_another_build(build, tmp_path):
    spec = write_lines(tmp_path / "a.txt", sentences(5))
    build(spec)
    build(spec, options=["--on-error", "skip"])
    for options in (["--min-length", 3], ["--reflow", "off"]):
        with pytest.raises(UserError, match="other input, tokenizer or options"):
            build(spec, options=options)


def test_reflow_is_an_option_of_any_reader(build, tmp_path):
    wrapped = "\n".join(["the quick brown fox jumps over a lazy dog while seven well-"] * 12)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": wrapped}) + "\n")
    texts, _ = build(f"jsonl:{tmp_path}/a.jsonl")
    assert "well - the" in texts[0]
    task = plan_tasks(expand_specs([f"jsonl:{tmp_path}/a.jsonl"]), 500)[0]
    assert list(clean_texts(task.pieces, Cleaning(reflow="auto"), Tally())) == [wrapped.replace("-\n", "-")]


BAD = {
    "lines:a.txt": (b"the fox\nth\xe9 dog\nthe sea\n", "undecodable", r"line 2 \(byte 10\)"),
    "jsonl:a.jsonl": (b'{"text": "the fox"}\n{"text": 5}\n{"text": "the sea"}\n', "malformed", r"line 2 \(byte 20\)"),
    "wikiextractor:a": (
        b'<doc title="a">\nthe fox\n</doc>\nstray\nlines\n<doc title="b">\nthe sea\n</doc>\n',
        "malformed",
        r"line 4 \(byte 31\)",
    ),
}


@pytest.mark.parametrize("spec", BAD)
def test_a_fault_ends_the_run_or_costs_its_document(build, tmp_path, spec, capsys):
    raw, reason, where = BAD[spec]
    kind, name = spec.split(":")
    (tmp_path / name).write_bytes(raw)
    spec = f"{kind}:{tmp_path}/{name}"
    with pytest.raises(DataError, match=f"{name}, {where}: expected"):
        build(spec)
    # The same directory goes on: a run that stops writes nothing else.
    assert build(spec, options=["--on-error", "skip"]) == (["the fox", "the sea"], {reason: 1})
    assert re.search(f"skipped: {tmp_path}/{name}, {where}: expected", capsys.readouterr().err)


def test_a_file_of_faults_is_counted_and_not_listed_for_ever(build, tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(b"the fox\n" + b"\xff\n" * 500)
    _, left_out = build(f"lines:{tmp_path}/a.txt", shard_tokens=10_000, options=["--on-error", "skip"])
    assert left_out == {"undecodable": 500}
    assert capsys.readouterr().err.count("skipped: ") == 101


def test_skipping_gives_the_same_bytes_from_two_workers(build, tmp_path, capfd):
    lines = [line.encode() for line in sentences(200)]
    lines[50] = lines[120] = b"\xff"
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines))
    for workers in (1, 2):
        _, left_out = build(
            f"lines:{tmp_path}/a.txt", name=str(workers), workers=workers, options=["--on-error", "skip"]
        )
        assert left_out == {"undecodable": 2} and capfd.readouterr().err.count("skipped: ") == 2
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_a_restart_reads_again_only_what_no_task_has_read(build, tmp_path, monkeypatch):
    spec = write_lines(tmp_path / "a.txt", sentences(200))
    expected = build(spec, name="whole")
    original, read = TaskReader.__call__, []

    def failing(reader, task):
        if len(read) == 2:
            raise OSError("power cut")
        read.append(task.index)
        return original(reader, task)

    monkeypatch.setattr(TaskReader, "__call__", failing)
    with pytest.raises(OSError, match="power cut"):
        build(spec)
    monkeypatch.setattr(TaskReader, "__call__", lambda reader, task: read.append(task.index) or original(reader, task))
    assert build(spec) == expected and read == list(range(len(read))) and len(read) > 4
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def write_hub(directory, shards):
    directory.mkdir(exist_ok=True)
    for index, texts in enumerate(shards):
        table = pa.table({"text": texts, "title": ["x"] * len(texts)})
        pq.write_table(table, directory / f"train-{index:05d}-of-{len(shards):05d}.parquet")
    return f"hub:{directory}"


def test_a_data_set_is_streamed_shard_by_shard(build, tmp_path):
    shards = [sentences(20, seed=seed) for seed in range(3)]
    spec = write_hub(tmp_path / "set", shards)
    tasks = plan_tasks(expand_specs([spec]), 500)
    assert [[(piece.start, piece.end) for piece in task.pieces] for task in tasks] == [[(0, 1)], [(1, 2)], [(2, 3)]]
    assert build(spec) == ([text for shard in shards for text in shard], {})
    assert [d.text for d in read_documents([spec + "?field=title"])] == ["x"] * 60


def test_rows_without_text_are_faults_and_versions_count(build, tmp_path):
    spec = write_hub(tmp_path / "set", [["the fox", None, "the sea"]])
    with pytest.raises(DataError, match="row 1: expected text in field 'text' of shard 0, found NoneType"):
        build(spec)
    assert build(spec, options=["--on-error", "skip"]) == (["the fox", "the sea"], {"malformed": 1})
    hashes = [source_hash(expand_specs([spec + query]), "") for query in ("", "?field=title", "?split=train")]
    assert hashes[0] == hashes[2] != hashes[1]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?field=body", "no field 'body'; there are text, title"),
        ("?split=test", "cannot load this data set: Bad split: test"),
        ("?revison=x", "'revison' is no option of hub:; these are config, split, field, revision"),
    ],
)
def test_a_wrong_data_set_is_the_users_mistake(tmp_path, query, message):
    spec = write_hub(tmp_path / "set", [["the fox"]])
    with pytest.raises(UserError, match=message) as caught:
        plan_tasks(expand_specs([spec + query]), 500)
    assert caught.value.exit_code == 2
