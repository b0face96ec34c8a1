"""The full check of a shard directory: every byte against the manifest, every index entry, every id."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pipeline.data.indexed import HEADER, IndexedReader, ShardInfo
from pipeline.data.manifest import Manifest, quick_faults, read_manifest
from pipeline.errors import DataError
from pipeline.files import sha256_of

_BLOCK = 1 << 22
"""Ids or index entries looked at in one go: keeps memory small for shards of any size."""


def verify(directory: Path, quick: bool) -> None:
    """Print every fault, or that there is none. DataError if there is one; otherwise as `find_faults`."""
    count = 0
    for fault in find_faults(directory, quick):
        print(fault)
        count += 1
    if count:
        raise DataError(f"{directory}: {count} {'fault' if count == 1 else 'faults'} found")
    manifest = read_manifest(directory)
    checked = "quick check passed" if quick else "every byte checked"
    print(f"{directory}: {len(manifest.shards)} shards, {manifest.tokens:,} tokens: {checked}")


def find_faults(directory: Path, quick: bool) -> Iterator[str]:
    """Yield one sentence for each fault, naming the file and the byte; UserError if `directory` has no manifest.

    `quick` looks at manifest, tokenizer, headers and sizes and reads no body. Where the manifest is damaged, the
    shards that are there are still checked as far as they explain themselves.
    """
    try:
        manifest = read_manifest(directory)
    except DataError as error:
        yield str(error)
        for path in sorted(directory.glob("*.idx")):
            yield from _lone_shard_faults(path.with_suffix(""), quick)
        return
    told = list(quick_faults(directory, manifest))
    yield from told
    if not quick:
        yield from _stray_files(directory, manifest)
        for shard in manifest.shards:
            yield from (fault for fault in _body_faults(directory, shard, manifest.vocab_size) if fault not in told)


def _lone_shard_faults(prefix: Path, quick: bool) -> Iterator[str]:
    try:
        reader = IndexedReader(prefix)
    except DataError as error:
        yield str(error)
        return
    if not quick:
        yield from _index_faults(reader)


def _stray_files(directory: Path, manifest: Manifest) -> Iterator[str]:
    known = {f"{shard.name}{suffix}" for shard in manifest.shards for suffix in (".bin", ".idx")}
    for path in sorted(directory.iterdir()):
        if path.suffix in (".bin", ".idx") and path.name not in known:
            yield f"{path}: is not in the manifest"


def _body_faults(directory: Path, shard: ShardInfo, vocab_size: int) -> Iterator[str]:
    yield from _hash_faults(directory, shard)
    try:
        reader = IndexedReader(directory / shard.name)
    except DataError as error:
        yield str(error)
        return
    if reader.tokens.nbytes != shard.bytes:
        size = reader.tokens.nbytes
        yield f"{reader.bin_path}: byte {min(size, shard.bytes)}: expected {shard.bytes} bytes, found {size}"
    yield from _index_faults(reader)
    yield from _id_faults(reader, vocab_size)


def _hash_faults(directory: Path, shard: ShardInfo) -> Iterator[str]:
    for suffix, expected in ((".bin", shard.sha256_bin), (".idx", shard.sha256_idx)):
        path = directory / f"{shard.name}{suffix}"
        try:
            found = sha256_of(path)
        except OSError as error:
            yield f"{path}: cannot read: {error.strerror or error}"
            continue
        if found != expected:
            size = path.stat().st_size
            yield f"{path}: bytes 0 to {size}: expected content with SHA-256 {expected}, found {found}"


def _index_faults(reader: IndexedReader) -> Iterator[str]:
    """Each offset is the one before and its length, no length is negative, and document ends never go back."""
    sequences, itemsize = len(reader.lengths), reader.tokens.itemsize
    for at in _where(sequences, lambda a, b: reader.lengths[a:b] < 0):
        yield f"{reader.idx_path}: byte {HEADER.size + 4 * at}: expected a length, found {reader.lengths[at]}"
    offsets_at = HEADER.size + 4 * sequences

    def follows(start: int, end: int) -> np.ndarray:
        return reader.offsets[start:end] + reader.lengths[start:end].astype(np.int64) * itemsize

    for at in _where(sequences - 1, lambda a, b: reader.offsets[a + 1 : b + 1] != follows(a, b)):
        where = f"{reader.idx_path}: byte {offsets_at + 8 * (at + 1)}"
        yield f"{where}: expected offset {follows(at, at + 1)[0]}, found {reader.offsets[at + 1]}"
    ends, ends_at = reader.document_ends, offsets_at + 8 * sequences
    for at in _where(len(ends) - 1, lambda a, b: ends[a + 1 : b + 1] < ends[a:b]):
        where = f"{reader.idx_path}: byte {ends_at + 8 * (at + 1)}"
        yield f"{where}: expected a document end of at least {ends[at]}, found {ends[at + 1]}"


def _id_faults(reader: IndexedReader, vocab_size: int) -> Iterator[str]:
    for at in _where(reader.token_count, lambda a, b: (reader.tokens[a:b] < 0) | (reader.tokens[a:b] >= vocab_size)):
        where = f"{reader.bin_path}: byte {at * reader.tokens.itemsize}"
        yield f"{where}: expected an id below {vocab_size}, found {reader.tokens[at]}"


def _where(count: int, wrong: Callable[[int, int], np.ndarray]) -> Iterator[int]:
    """Yield the places 0..count - 1 where `wrong(start, end)`, a block (end - start,) of bool, is True."""
    for start in range(0, count, _BLOCK):
        yield from (start + np.flatnonzero(wrong(start, min(start + _BLOCK, count)))).tolist()
