"""The full check of a shard directory: every byte against the manifest, every index entry, every id."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.data.indexed import HEADER, IndexedReader, ShardInfo
from pipeline.data.manifest import Manifest, quick_faults
from pipeline.errors import DataError
from pipeline.files import sha256_of

# Ids or index entries looked at in one go: keeps memory small for shards of any size.
_BLOCK = 1 << 22


def all_faults(directory: Path, manifest: Manifest) -> Iterator[str]:
    """Yield one sentence for each fault, naming the file and the byte."""
    yield from quick_faults(directory, manifest)
    yield from _stray_files(directory, manifest)
    for shard in manifest.shards:
        yield from _hash_faults(directory, shard)
        try:
            reader = IndexedReader(directory / shard.name)
        except DataError:
            continue  # quick_faults has said so
        yield from _index_faults(reader)
        yield from _id_faults(reader, manifest.vocab_size)


def _stray_files(directory: Path, manifest: Manifest) -> Iterator[str]:
    known = {f"{shard.name}{suffix}" for shard in manifest.shards for suffix in (".bin", ".idx")}
    for path in sorted(directory.iterdir()):
        if path.suffix in (".bin", ".idx") and path.name not in known:
            yield f"{path}: is not in the manifest"


def _hash_faults(directory: Path, shard: ShardInfo) -> Iterator[str]:
    for suffix, expected in ((".bin", shard.sha256_bin), (".idx", shard.sha256_idx)):
        path = directory / f"{shard.name}{suffix}"
        try:
            found = sha256_of(path)
        except OSError:
            continue  # quick_faults has said so
        if found != expected:
            size = path.stat().st_size
            yield f"{path}: bytes 0 to {size}: expected content with SHA-256 {expected}, found {found}"


def _index_faults(reader: IndexedReader) -> Iterator[str]:
    """Offsets follow from the lengths, and document ends never go back; the first fault of each kind is named."""
    sequences, itemsize = len(reader.lengths), reader.tokens.itemsize
    expected_offset = 0
    for start in range(0, sequences, _BLOCK):
        lengths = reader.lengths[start : start + _BLOCK].astype(np.int64)
        if (lengths < 0).any():
            at = start + int(np.argmax(lengths < 0))
            yield f"{reader.idx_path}: byte {HEADER.size + 4 * at}: expected a length, found {reader.lengths[at]}"
            return
        expected = expected_offset + np.concatenate([[0], np.cumsum(lengths) * itemsize])
        wrong = reader.offsets[start : start + _BLOCK] != expected[:-1]
        if wrong.any():
            at = int(np.argmax(wrong))
            where = HEADER.size + 4 * sequences + 8 * (start + at)
            found = reader.offsets[start + at]
            yield f"{reader.idx_path}: byte {where}: expected offset {expected[at]}, found {found}"
            return
        expected_offset = int(expected[-1])
    ends_at = HEADER.size + 12 * sequences
    for start in range(0, len(reader.document_ends) - 1, _BLOCK):
        back = np.diff(reader.document_ends[start : start + _BLOCK + 1]) < 0
        if back.any():
            at = start + int(np.argmax(back)) + 1
            yield f"{reader.idx_path}: byte {ends_at + 8 * at}: expected document ends that never go back"
            return


def _id_faults(reader: IndexedReader, vocab_size: int) -> Iterator[str]:
    for start in range(0, reader.token_count, _BLOCK):
        ids = reader.tokens[start : start + _BLOCK]
        wrong = (ids < 0) | (ids >= vocab_size)
        if wrong.any():
            at = start + int(np.argmax(wrong))
            where = f"{reader.bin_path}: byte {at * reader.tokens.itemsize}"
            yield f"{where}: expected an id below {vocab_size}, found {reader.tokens[at]}"
            return
