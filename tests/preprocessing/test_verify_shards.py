"""verify_shards.py finds every change and says where; inspect_shards.py shows what is there."""

import os
import random
import re
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.indexed import HEADER, IndexedReader
from pipeline.data.manifest import Manifest, read_manifest
from pipeline.errors import UserError
from preprocessing import inspect_shards
from preprocessing.inspection.lengths import EDGES, count_shard, document_lengths, quantile
from preprocessing.inspection.verification import find_faults
from tests.support.shards import (
    contents,
    flip_bit,
    run_script,
    sentences,
    write_shard,
    write_shard_directory,
    write_vocabulary,
)


def faults(directory):
    return list(find_faults(directory, quick=False))


def test_a_sound_directory_has_no_fault(tmp_path):
    write_shard_directory(tmp_path)
    assert faults(tmp_path) == []


def test_every_byte_of_every_shard_counts(tmp_path):
    write_shard_directory(tmp_path)
    for name in ("a.bin", "a.idx", "b.bin", "b.idx"):
        original = (tmp_path / name).read_bytes()
        for bit in range(0, 8 * len(original), 3):  # every byte, and each of its bits in turn
            flip_bit(tmp_path / name, bit)
            found = faults(tmp_path)
            assert any(fault.startswith(f"{tmp_path / name}: byte") for fault in found)
            assert all(fault.startswith(f"{tmp_path / name[0]}.") for fault in found)
            (tmp_path / name).write_bytes(original)


@pytest.mark.parametrize(("vocab_size", "smaller", "width"), [(1000, 8, 2), (70_000, 66_000, 4)])
def test_every_index_and_id_fault_is_named_even_where_the_hashes_agree(tmp_path, vocab_size, smaller, width):
    """As if the program that wrote shards and manifest had been wrong."""
    first = write_shard_directory(tmp_path, vocab_size)
    shards = (first.shards[0], write_shard(tmp_path / "b", [[smaller - 1], [smaller, 0, vocab_size - 1]], vocab_size))
    Manifest(first.source_hash, first.tokenizer_fingerprint, smaller, {}, shards).write(tmp_path)
    expected = [
        f"{tmp_path}/b.bin: byte {place * width}: expected an id below {smaller}, found {found}"
        for place, found in ((1, smaller), (3, vocab_size - 1))
    ]
    assert faults(tmp_path) == expected
    index = bytearray((tmp_path / "b.idx").read_bytes())
    fields = HEADER.size + 4 * 2 + 8
    index[HEADER.size :] = struct.pack("<2i5q", -1, 2, 0, 2 * width, 0, 3, 2)  # was 1, 3; 0, width; 0, 1, 2
    (tmp_path / "b.idx").write_bytes(index)
    found = [fault for fault in faults(tmp_path) if "b.idx: byte " in fault]
    assert [fault.split(": ", 1)[1] for fault in found if "bytes" not in fault] == [
        f"byte {HEADER.size}: expected a length, found -1",
        f"byte {fields}: expected offset {-width}, found {2 * width}",
        f"byte {fields + 8 + 2 * 8}: expected a document end of at least 3, found 2",
    ]


def test_sizes_that_the_manifest_has_wrong_are_found(tmp_path):
    first = write_shard_directory(tmp_path)
    shards = (replace(first.shards[0], bytes=11), first.shards[1])
    Manifest(first.source_hash, first.tokenizer_fingerprint, 1000, {}, shards).write(tmp_path)
    assert faults(tmp_path) == [f"{tmp_path}/a.bin: byte 10: expected 11 bytes, found 10"]


def test_each_missing_file_is_named_once(tmp_path):
    write_shard_directory(tmp_path)
    for name in ("a.bin", "a.idx", "b.bin"):
        (tmp_path / name).unlink()
    expected = [f"{tmp_path / name}: cannot read" for name in ("a.bin", "a.idx", "b.bin")]
    assert sorted(fault.rpartition(": ")[0] for fault in faults(tmp_path)) == expected


def test_a_damaged_manifest_does_not_hide_a_damaged_shard(tmp_path):
    write_shard_directory(tmp_path)
    flip_bit(tmp_path / "manifest.json", 100)
    os.truncate(tmp_path / "a.bin", 5)
    assert [fault.split(": ")[0] for fault in find_faults(tmp_path, quick=True)] == [
        f"{tmp_path}/manifest.json",
        f"{tmp_path}/a.bin",
    ]


def test_two_hundred_random_damages_are_all_found_and_named(tmp_path):
    """Bit flips, truncations, and swaps of bytes within a file or of two files, in any file of the directory."""
    write_shard_directory(tmp_path)
    draw = random.Random(0)
    names = ("a.bin", "a.idx", "b.bin", "b.idx", "manifest.json")
    kinds = Counter[str]()
    original = {name: (tmp_path / name).read_bytes() for name in names}
    while kinds.total() < 200:
        name, other, kind = draw.choice(names), draw.choice(names), draw.choice(("flip", "cut", "swap", "files"))
        content = bytearray(original[name])
        i, j = draw.randrange(len(content)), draw.randrange(len(content))
        if kind == "flip":
            content[i] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del content[i:]
        elif kind == "swap":
            content[i], content[j] = content[j], content[i]
        else:
            content = bytearray(original[other])
            (tmp_path / other).write_bytes(original[name])
        if content == original[name]:
            continue
        (tmp_path / name).write_bytes(content)
        found = {fault.split(": ")[0] for fault in faults(tmp_path)}
        damaged = {name, other} if kind == "files" else {name}
        # A wrong length may put the blame on the .bin too; and where the manifest is no manifest, nothing can be
        # said of the shards' content.
        if "manifest.json" in damaged:
            assert str(tmp_path / "manifest.json") in found
        else:
            assert {str(tmp_path / one) for one in damaged} <= found
            assert {Path(one).stem for one in found} == {Path(one).stem for one in damaged}
        for one in names:
            (tmp_path / one).write_bytes(original[one])
        kinds[kind] += 1
    assert min(kinds.values()) > 25 and faults(tmp_path) == []


def test_swapped_and_stray_shards_are_found(tmp_path):
    write_shard_directory(tmp_path)
    write_shard(tmp_path / "c", [[1]])
    assert [fault.split(": ")[0] for fault in faults(tmp_path)] == [f"{tmp_path}/c.bin", f"{tmp_path}/c.idx"]
    for suffix in (".bin", ".idx"):
        (tmp_path / f"c{suffix}").unlink()
        (tmp_path / f"a{suffix}").write_bytes((tmp_path / f"b{suffix}").read_bytes())
    assert {fault.split(": ")[0] for fault in faults(tmp_path)} == {f"{tmp_path}/a.bin", f"{tmp_path}/a.idx"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    (folder / "a.txt").write_text("\n".join([*sentences(50), "the ☃ snow"]))
    vocabulary = write_vocabulary(folder / "vocab.txt")
    arguments = ["--input", f"lines:{folder}/a.txt", "--tokenizer", vocabulary, "--output", folder / "out"]
    assert run_script("build_shards", *arguments).returncode == 0
    return folder / "out"


def test_the_script_prints_each_fault_and_exits_with_3(built, tmp_path):
    for name, raw in contents(built).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(raw)
    done = run_script("verify_shards", tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and "every byte checked" in done.stdout
    flip_bit(tmp_path / "shard_00000_000.bin", 96)  # the lowest bit of an id: still an id
    assert run_script("verify_shards", tmp_path, "--quick").returncode == 0
    done = run_script("verify_shards", tmp_path, module=True)
    assert (done.returncode, done.stderr) == (3, f"error: {tmp_path}: 1 fault found\n")
    assert done.stdout.startswith(f"{tmp_path}/shard_00000_000.bin: bytes 0 to ")
    (tmp_path / "shard_00000_000.idx").unlink()
    done = run_script("verify_shards", tmp_path, "--quick")
    assert done.returncode == 3 and "shard_00000_000.idx: cannot read" in done.stdout
    done = run_script("verify_shards", tmp_path / "nothing")
    assert done.returncode == 2 and re.fullmatch(r"error: .*no finished shard directory.*\n", done.stderr)


def test_inspect_shows_counts_and_text(built, tmp_path, monkeypatch, capsys):
    picture = tmp_path / "lengths.png"
    arguments = ["inspect_shards.py", str(built), "--documents", "2", "--histogram", str(picture)]
    monkeypatch.setattr("sys.argv", arguments)
    assert inspect_shards.main() == 0
    shown = capsys.readouterr().out
    tokens = read_manifest(built).tokens
    assert re.search(r"documents +51\n", shown) and f"{1 / tokens:.4%}" in shown
    assert sentences(1)[0] in shown and shown.rstrip().endswith("the [UNK] s ##n ##o ##w".replace(" ##", ""))
    assert picture.read_bytes().startswith(b"\x89PNG") and not (built / inspect_shards.HISTOGRAM_NAME).exists()


def test_inspect_says_where_it_cannot_write(built, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["inspect_shards.py", str(built), "--histogram", str(tmp_path / "no" / "a.png")])
    with pytest.raises(UserError, match=r"a\.png: cannot write"):
        inspect_shards.main()


def test_lengths_and_quantiles_are_counted_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr("preprocessing.inspection.lengths._BLOCK", 7)
    lengths = np.random.default_rng(0).integers(1, 400, 100)
    write_shard(tmp_path / "x", [[3] * (count - 1) + [1] for count in lengths.tolist()])
    reader = IndexedReader(tmp_path / "x")
    counts = count_shard(reader, unknown_id=1)
    assert (counts.least, counts.most, counts.unknown) == (lengths.min(), lengths.max(), 100)
    assert counts.histogram.tolist() == np.histogram(lengths, EDGES)[0].tolist() and counts.histogram.sum() == 100
    assert document_lengths(reader, 3, 9).tolist() == lengths[3:9].tolist()
    assert quantile(counts.histogram, 0.5) == pytest.approx(np.median(lengths), rel=0.09)
