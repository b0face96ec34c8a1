"""The indexed dataset against bytes spelled out from the format's definition."""

import os
import pickle
import struct
import time

import numpy as np
import pytest

from pipeline.data.indexed import IndexedReader, IndexedWriter
from pipeline.errors import DataError
from tests.support.shards import flip_bit, write_shard

CASES = [
    (30_522, 8, "H", 2, 30_521),
    (65_499, 8, "H", 2, 65_498),
    (65_500, 4, "i", 4, 65_499),
    (250_000, 4, "i", 4, 249_999),
]


def index_bytes(code: int, lengths: list[int], offsets: list[int], ends: list[int]) -> bytes:
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(lengths), len(ends))
    counts = struct.pack(f"<{len(lengths)}i", *lengths)
    return header + counts + struct.pack(f"<{len(offsets)}q", *offsets) + struct.pack(f"<{len(ends)}q", *ends)


@pytest.mark.parametrize(("vocab_size", "code", "letter", "width", "largest"), CASES)
def test_written_bytes_are_the_definition(tmp_path, vocab_size, code, letter, width, largest):
    info = write_shard(tmp_path / "x", [[1, 2, 3], [largest], [0, 7]], vocab_size)
    assert (tmp_path / "x.bin").read_bytes() == struct.pack(f"<6{letter}", 1, 2, 3, largest, 0, 7)
    expected = index_bytes(code, [3, 1, 2], [0, 3 * width, 4 * width], [0, 1, 2, 3])
    assert (tmp_path / "x.idx").read_bytes() == expected
    assert (info.name, info.tokens, info.documents, info.bytes) == ("x", 6, 3, 6 * width)
    assert sorted(os.listdir(tmp_path)) == ["x.bin", "x.idx"]


@pytest.mark.parametrize(("code", "letter", "width"), [(8, "H", 2), (4, "i", 4)])
def test_reads_what_megatron_writes(tmp_path, code, letter, width):
    """Three documents of two, none and one sequence, as Megatron's sentence splitting gives them."""
    (tmp_path / "m.v1.bin").write_bytes(struct.pack(f"<6{letter}", 10, 11, 12, 13, 14, 15))
    (tmp_path / "m.v1.idx").write_bytes(index_bytes(code, [2, 1, 3], [0, 2 * width, 3 * width], [0, 2, 2, 3]))
    reader = IndexedReader(tmp_path / "m.v1")
    assert [list(reader[i]) for i in range(len(reader))] == [[10, 11, 12], [], [13, 14, 15]]
    assert reader.tokens.dtype == np.dtype(f"<{'u2' if code == 8 else 'i4'}") and reader.token_count == 6
    assert list(reader.lengths) == [2, 1, 3] and reader.lengths.dtype == np.int32
    assert list(reader.offsets) == [0, 2 * width, 3 * width] and reader.offsets.dtype == np.int64
    assert list(reader.document_ends) == [0, 2, 2, 3]
    assert [reader.first_token(i) for i in range(4)] == [0, 3, 3, 6]
    with pytest.raises(IndexError):
        reader[3]


@pytest.mark.parametrize("documents", [[], [[]], [[], [5], []]])
def test_shards_with_little_or_nothing_in_them(tmp_path, documents):
    write_shard(tmp_path / "x", documents)
    reader = IndexedReader(tmp_path / "x")
    assert [list(reader[i]) for i in range(len(reader))] == documents


def test_nothing_appears_before_finish_and_discard_leaves_nothing(tmp_path):
    writer = IndexedWriter(tmp_path / "x", 1000)
    writer.add(np.array([1, 2]))
    assert not {"x.bin", "x.idx"} & set(os.listdir(tmp_path))
    writer.discard()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("ids", [np.array([1000]), np.array([-1]), np.array([[1, 2]])])
def test_ids_outside_the_vocabulary_are_refused(tmp_path, ids):
    writer = IndexedWriter(tmp_path / "x", 1000)
    with pytest.raises(ValueError, match="1000"):
        writer.add(ids)
    writer.discard()


def test_opening_a_two_gigabyte_shard_reads_none_of_it(tmp_path):
    tokens = 1 << 30
    (tmp_path / "big.bin").touch()
    os.truncate(tmp_path / "big.bin", 2 * tokens)  # sparse: takes no space
    (tmp_path / "big.idx").write_bytes(index_bytes(8, [tokens], [0], [0, 1]))
    began = time.monotonic()
    reader = IndexedReader(tmp_path / "big")
    assert len(reader[0]) == tokens and time.monotonic() - began < 0.5


def test_a_pickled_reader_carries_its_name_not_its_tokens(tmp_path):
    write_shard(tmp_path / "x", [[1, 2, 3]] * 1000)
    raw = pickle.dumps(IndexedReader(tmp_path / "x"))
    assert len(raw) < 500 and list(pickle.loads(raw)[999]) == [1, 2, 3]


def test_every_bit_of_the_header_is_checked(tmp_path):
    write_shard(tmp_path / "x", [[1, 2, 3], [4, 5]])
    original = (tmp_path / "x.idx").read_bytes()
    for bit in range(8 * 34):
        flip_bit(tmp_path / "x.idx", bit)
        with pytest.raises(DataError, match=r"x\.idx: byte \d+: expected"):
            IndexedReader(tmp_path / "x")
        (tmp_path / "x.idx").write_bytes(original)
    IndexedReader(tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "size"), [("x.idx", n) for n in (0, 9, 33, 34, 80, 81)] + [("x.bin", n) for n in (0, 1, 9)]
)
def test_truncated_files_are_named_with_the_byte(tmp_path, name, size):
    write_shard(tmp_path / "x", [[1, 2, 3], [4, 5]])
    assert (tmp_path / name).stat().st_size > size
    os.truncate(tmp_path / name, size)
    with pytest.raises(DataError, match=rf"{name}: byte {size}: expected"):
        IndexedReader(tmp_path / "x")


@pytest.mark.parametrize("name", ["x.idx", "x.bin"])
def test_longer_and_missing_files_are_found(tmp_path, name):
    write_shard(tmp_path / "x", [[1, 2, 3], [4, 5]])
    with open(tmp_path / name, "ab") as stream:
        stream.write(b"\0")
    with pytest.raises(DataError, match=name):
        IndexedReader(tmp_path / "x")
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: cannot read"):
        IndexedReader(tmp_path / "x")
