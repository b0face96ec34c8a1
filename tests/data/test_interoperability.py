"""Megatron-LM's files and ours are the same files: bytes spelled out by hand, and a reader written from the format.

The format, as Megatron-LM's IndexedDataset defines it; all numbers little-endian:

    NAME.idx    magic b"MMIDIDX\\0\\0", version u64 = 1, type u8, sequences u64, document entries u64,
                lengths i32 x sequences, byte offsets i64 x sequences, document bounds i64 x entries
    NAME.bin    the ids of all sequences, one behind the other
    types       1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 6 f64, 7 f32, 8 u16

Document d is made of the sequences from bound d to bound d + 1.
"""

import struct
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.data.indexed import IndexedReader
from pipeline.errors import DataError
from tests.support.shards import run_script, sentences, write_shard, write_vocabulary

LETTERS = {1: "B", 2: "b", 3: "h", 4: "i", 5: "q", 6: "d", 7: "f", 8: "H"}

# Three documents of two, none and one sequence: [[1, 2], [515]], [], [[65499, 0, 7]].
UINT16 = {
    "bin": "0100 0200 0302 dbff 0000 0700",
    "idx": """
        4d4d494449445800 00  0100000000000000  08  0300000000000000  0400000000000000
        02000000 01000000 03000000
        0000000000000000 0400000000000000 0600000000000000
        0000000000000000 0200000000000000 0200000000000000 0300000000000000""",
}
INT32 = {
    "bin": "01000000 02000000 03020000 dbff0000 00000000 07000000",
    "idx": """
        4d4d494449445800 00  0100000000000000  04  0300000000000000  0400000000000000
        02000000 01000000 03000000
        0000000000000000 0800000000000000 0c00000000000000
        0000000000000000 0200000000000000 0200000000000000 0300000000000000""",
}
SEQUENCES = [[[1, 2], [515]], [], [[65499, 0, 7]]]


def write_fixture(prefix: Path, fixture: dict[str, str]) -> Path:
    for suffix, text in fixture.items():
        prefix.with_suffix(f".{suffix}").write_bytes(bytes.fromhex(text))
    return prefix


def parse(prefix: Path) -> list[list[list[int]]]:
    """Documents, each a list of sequences, read with nothing but the definition above."""
    index, body = prefix.with_suffix(".idx").read_bytes(), prefix.with_suffix(".bin").read_bytes()
    assert index[:9] == b"MMIDIDX\0\0"
    version, kind, sequences, entries = struct.unpack_from("<QBQQ", index, 9)
    assert version == 1
    lengths = struct.unpack_from(f"<{sequences}i", index, 34)
    offsets = struct.unpack_from(f"<{sequences}q", index, 34 + 4 * sequences)
    bounds = struct.unpack_from(f"<{entries}q", index, 34 + 12 * sequences)
    assert len(index) == 34 + 12 * sequences + 8 * entries
    rows = [
        list(struct.unpack_from(f"<{length}{LETTERS[kind]}", body, offset))
        for length, offset in zip(lengths, offsets, strict=True)
    ]
    assert bounds[0] == 0 and bounds[-1] == sequences
    return [rows[start:end] for start, end in pairwise(bounds)]


@pytest.mark.parametrize("fixture", [UINT16, INT32], ids=["uint16", "int32"])
def test_megatrons_files_are_read_here(tmp_path, fixture):
    prefix = write_fixture(tmp_path / "megatron", fixture)
    assert parse(prefix) == SEQUENCES
    reader = IndexedReader(prefix)
    joined = [[token for sequence in document for token in sequence] for document in SEQUENCES]
    assert [reader[i].tolist() for i in range(len(reader))] == joined


@pytest.mark.parametrize(("vocab_size", "fixture"), [(65_499 + 1, INT32), (65_499, UINT16)])
def test_our_files_are_megatrons(tmp_path, vocab_size, fixture):
    """One sequence per document is how we write; the bytes of the ids are then Megatron's, and the rest parses."""
    documents = [[1, 2, 515], [], [min(65_499, vocab_size - 1), 0, 7]]
    write_shard(tmp_path / "ours", documents, vocab_size)
    assert parse(tmp_path / "ours") == [[document] for document in documents]
    assert len((tmp_path / "ours.bin").read_bytes()) == len(bytes.fromhex(fixture["bin"]))


def test_built_shards_parse_by_the_definition_alone(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(sentences(40)))
    vocabulary = write_vocabulary(tmp_path / "vocab.txt")
    arguments = ["--input", f"lines:{tmp_path}/a.txt", "--tokenizer", vocabulary, "--output", tmp_path / "out"]
    assert run_script("build_shards", *arguments, "--workers", 1).returncode == 0
    (index,) = (tmp_path / "out").glob("*.idx")
    pieces = vocabulary.read_text().split("\n")
    texts = ["".join(f" {pieces[i]}" for i in sequence) for (sequence,) in parse(index.with_suffix(""))]
    assert [text.replace(" ##", "").strip() for text in texts] == sentences(40)


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 5, 6, 7, 9])
def test_other_id_types_of_megatron_are_refused_in_a_sentence(tmp_path, kind):
    prefix = write_fixture(tmp_path / "megatron", UINT16)
    index = bytearray(prefix.with_suffix(".idx").read_bytes())
    index[17] = kind
    prefix.with_suffix(".idx").write_bytes(index)
    with pytest.raises(DataError, match=rf"megatron\.idx: byte 17: expected dtype code 4 .* or 8 .*, found {kind}"):
        IndexedReader(prefix)


def test_multimodal_files_of_megatron_are_refused_in_a_sentence(tmp_path):
    """Those end with one more byte per sequence, its mode."""
    prefix = write_fixture(tmp_path / "megatron", UINT16)
    with open(prefix.with_suffix(".idx"), "ab") as stream:
        stream.write(bytes(3))
    with pytest.raises(DataError, match=r"megatron\.idx: byte 102: expected a file of 102 bytes .*, found 105"):
        IndexedReader(prefix)
