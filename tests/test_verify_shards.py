"""verify_shards.py finds every change and says where; inspect_shards.py shows what is there."""

import re

import numpy as np
import pytest
from shard_support import (
    contents,
    flip_bit,
    run_script,
    sentences,
    write_shard,
    write_shard_directory,
    write_vocabulary,
)

from pipeline.data.indexed import HEADER
from pipeline.data.manifest import Manifest, read_manifest
from preprocessing import inspect_shards
from preprocessing.verification import all_faults


def faults(directory):
    return list(all_faults(directory, read_manifest(directory)))


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


@pytest.mark.parametrize("vocab_size", [1000, 70_000])
def test_index_and_id_faults_are_named_even_where_the_hashes_agree(tmp_path, vocab_size):
    """As if the program that wrote shards and manifest had been wrong."""
    code_width = 2 if vocab_size == 1000 else 4
    manifest = write_shard_directory(tmp_path, vocab_size)
    smaller = Manifest(manifest.source_hash, manifest.tokenizer_fingerprint, 999, {}, manifest.shards)
    assert any(
        f"b.bin: byte {3 * code_width}: expected an id below 999, found 999" in fault
        for fault in all_faults(tmp_path, smaller)
    )
    index = bytearray((tmp_path / "b.idx").read_bytes())
    index[HEADER.size : HEADER.size + 8] = np.array([2, 3], "<i4").tobytes()  # was 1, 3
    (tmp_path / "b.idx").write_bytes(index)
    where = HEADER.size + 4 * 2 + 8
    assert any(f"b.idx: byte {where}: expected offset {2 * code_width}" in fault for fault in faults(tmp_path))


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


def test_inspect_shows_counts_and_text(built, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["inspect_shards.py", str(built), "--documents", "2"])
    assert inspect_shards.main() == 0
    shown = capsys.readouterr().out
    tokens = read_manifest(built).tokens
    assert re.search(r"documents +51\n", shown) and f"{1 / tokens:.4%}" in shown
    assert sentences(1)[0] in shown and shown.rstrip().endswith("the [UNK] s ##n ##o ##w".replace(" ##", ""))
