"""Megatron-LM's indexed dataset, byte for byte: one shard is NAME.bin (token ids) and NAME.idx (where they are).

NAME.idx, little-endian, with n sequences and d document ends:

    byte  0   9 bytes  magic "MMIDIDX\\0\\0"
    byte  9   u64      version, 1
    byte 17   u8       dtype code: 8 = uint16 ids, 4 = int32 ids
    byte 18   u64      n
    byte 26   u64      d (documents + 1)
    byte 34   n i32    tokens in each sequence
    then      n i64    byte offset of each sequence in NAME.bin
    then      d i64    number of the sequence at which each document ends; the first entry is 0

We write one sequence per document; Megatron's own tools may write several, and the reader takes both.
"""

import hashlib
import os
import struct
from array import array
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.errors import DataError
from pipeline.files import sync_directory, temporary_name, writing

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, np.dtype[Any]] = {8: np.dtype("<u2"), 4: np.dtype("<i4")}
UINT16_VOCAB_LIMIT = 65_500
"""Megatron's own limit: some ids below 65,536 stay free for tokens that are added later."""


def dtype_code(vocab_size: int) -> int:
    """Code of the id type that shards of this vocabulary use: 8 (uint16) or 4 (int32)."""
    return 8 if vocab_size < UINT16_VOCAB_LIMIT else 4


def stored_ids(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """`ids` (tokens,) of any integer type in the one that shards hold. ValueError if one is not in [0, vocab_size)."""
    if ids.ndim != 1 or (ids.size and not 0 <= ids.min() <= ids.max() < vocab_size):
        raise ValueError(f"a document is one row of ids in [0, {vocab_size})")
    return ids.astype(DTYPES[dtype_code(vocab_size)])


@dataclass(frozen=True)
class ShardInfo:
    """What the manifest records about one shard; `bytes` is the size of NAME.bin, hashes are hex SHA-256."""

    name: str
    tokens: int
    documents: int
    bytes: int
    sha256_bin: str
    sha256_idx: str


class IndexedWriter:
    """Writes one shard under temporary names; `finish` gives it its names, `discard` removes what was written."""

    def __init__(self, prefix: Path, vocab_size: int) -> None:
        self.prefix = Path(prefix)
        self.vocab_size = vocab_size
        self.code = dtype_code(vocab_size)
        self.tokens = 0
        self._lengths = array("i")
        self._digest = hashlib.sha256()
        self._bin = _suffixed(self.prefix, ".bin")
        self._idx = _suffixed(self.prefix, ".idx")
        with writing(self._bin):
            self._stream = open(temporary_name(self._bin), "wb")  # noqa: SIM115

    @property
    def documents(self) -> int:
        return len(self._lengths)

    def add(self, ids: np.ndarray, lengths: np.ndarray | None = None) -> None:
        """Append documents that follow each other.

        Args:
            ids: (tokens,) of any integer type, each in [0, vocab_size), else ValueError.
            lengths: (documents,) tokens of each, which add up to those of `ids`; without them it is one document.
        """
        raw = stored_ids(ids, self.vocab_size).tobytes()
        with writing(self._bin):
            self._stream.write(raw)
        self._digest.update(raw)
        self._lengths.extend([ids.size] if lengths is None else lengths.tolist())
        self.tokens += ids.size

    def finish(self) -> ShardInfo:
        """Make the shard appear. A pair counts as existing when its .idx is there, so .idx comes last."""
        index = self._index_bytes()
        with writing(self._bin):
            _sync(self._stream)
            self._stream.close()
        with writing(self._idx):
            with open(temporary_name(self._idx), "wb") as stream:
                stream.write(index)
                _sync(stream)
            os.replace(temporary_name(self._bin), self._bin)
            sync_directory(self._bin.parent)
            os.replace(temporary_name(self._idx), self._idx)
            sync_directory(self._bin.parent)
        size = self.tokens * DTYPES[self.code].itemsize
        hashes = self._digest.hexdigest(), hashlib.sha256(index).hexdigest()
        return ShardInfo(self.prefix.name, self.tokens, self.documents, size, *hashes)

    def discard(self) -> None:
        """Remove the temporary files; nothing appears."""
        with suppress(OSError):  # on a full disk, closing fails as writing did
            self._stream.close()
        for path in (self._bin, self._idx):
            temporary_name(path).unlink(missing_ok=True)

    def _index_bytes(self) -> bytes:
        lengths = np.frombuffer(self._lengths, dtype="<i4") if self._lengths else np.empty(0, "<i4")
        ends = np.cumsum(lengths, dtype="<i8") * DTYPES[self.code].itemsize
        offsets = np.concatenate([np.zeros(1, "<i8"), ends])[: self.documents]
        header = HEADER.pack(MAGIC, VERSION, self.code, self.documents, self.documents + 1)
        return header + lengths.tobytes() + offsets.tobytes() + np.arange(self.documents + 1, dtype="<i8").tobytes()


class IndexedReader:
    """One shard, memory-mapped. Opening checks the header and the sizes and costs the same for any size.

    `tokens` (token_count,) uint16 or int32; `lengths` (sequences,) int32; `offsets` (sequences,) int64, in bytes;
    `document_ends` (documents + 1,) int64, in sequences. `reader[i]` are the ids of document i, a view.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = Path(prefix)
        self.bin_path = _suffixed(self.prefix, ".bin")
        self.idx_path = _suffixed(self.prefix, ".idx")
        index = _map_bytes(self.idx_path)
        self.code, sequences, ends = _checked_header(self.idx_path, index)
        self.lengths = np.frombuffer(index, "<i4", sequences, HEADER.size)
        self.offsets = np.frombuffer(index, "<i8", sequences, HEADER.size + 4 * sequences)
        self.document_ends = np.frombuffer(index, "<i8", ends, HEADER.size + 12 * sequences)
        body = _map_bytes(self.bin_path)
        self._check_ends(body.size)
        self.tokens = body.view(DTYPES[self.code])

    def __reduce__(self) -> tuple[type["IndexedReader"], tuple[Path]]:
        # A data-loader process maps the files itself; without this, pickling would copy every token to it.
        return IndexedReader, (self.prefix,)

    def __len__(self) -> int:
        return len(self.document_ends) - 1

    @property
    def token_count(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)} in {self.prefix}")
        return self.tokens[self.first_token(index) : self.first_token(index + 1)]

    def first_token(self, document: int) -> int:
        """Index in `tokens` of the first token of document 0..len (len: one past the last)."""
        sequence = int(self.document_ends[document])
        if sequence == len(self.offsets):
            return self.token_count
        return int(self.offsets[sequence]) // self.tokens.itemsize

    def document_begins(self) -> np.ndarray:
        """Byte of NAME.bin at which each document begins: (documents,) int64, mapped where each is one sequence."""
        if np.array_equal(self.document_ends, np.arange(len(self.offsets) + 1)):
            return self.offsets
        begins = np.append(self.offsets, self.tokens.nbytes)
        return begins[np.clip(self.document_ends[:-1], 0, len(self.offsets))]

    def byte_of_end(self, document: int) -> int:
        """Where NAME.idx says at which byte of NAME.bin a document ends, which is where the next begins."""
        return HEADER.size + 4 * len(self.lengths) + 8 * int(self.document_ends[document + 1])

    def _check_ends(self, bin_size: int) -> None:
        """Compare the first and last index entries with each other and with the size of the body."""
        sequences, documents_at = len(self.lengths), HEADER.size + 12 * len(self.lengths)
        itemsize = DTYPES[self.code].itemsize
        expected_size = 0
        if sequences:
            _expect(self.idx_path, HEADER.size + 4 * sequences, "first offset", 0, int(self.offsets[0]))
            expected_size = int(self.offsets[-1]) + int(self.lengths[-1]) * itemsize
        last_end = documents_at + 8 * (len(self.document_ends) - 1)
        _expect(self.idx_path, documents_at, "first document end", 0, int(self.document_ends[0]))
        _expect(self.idx_path, last_end, "last document end", sequences, int(self.document_ends[-1]))
        if bin_size != expected_size or bin_size % itemsize:
            where = f"{self.bin_path}: byte {min(bin_size, max(expected_size, 0))}"
            raise DataError(f"{where}: expected a file of {expected_size} bytes, found {bin_size}")


def _suffixed(prefix: Path, suffix: str) -> Path:
    # with_suffix would cut a dot in the shard's own name.
    return prefix.with_name(prefix.name + suffix)


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _map_bytes(path: Path) -> np.ndarray:
    try:
        # Zero bytes cannot be mapped; a shard without tokens is legal.
        if path.stat().st_size == 0:
            return np.empty(0, np.uint8)
        # A plain array over the map: slices of np.memmap cost four times as much.
        return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror or error}") from error


def _expect(path: Path, offset: int, what: str, expected: object, found: object) -> None:
    if found != expected:
        raise DataError(f"{path}: byte {offset}: expected {what} {expected}, found {found}")


def _checked_header(path: Path, index: np.ndarray) -> tuple[int, int, int]:
    """Return dtype code, sequence count and number of document ends."""
    if index.size < HEADER.size:
        raise DataError(f"{path}: byte {index.size}: expected a header of {HEADER.size} bytes, the file ends here")
    magic, version, code, sequences, ends = HEADER.unpack(index[: HEADER.size].tobytes())
    _expect(path, 0, "magic", MAGIC, magic)
    _expect(path, 9, "version", VERSION, version)
    if code not in DTYPES:
        raise DataError(f"{path}: byte 17: expected dtype code 4 (int32) or 8 (uint16), found {code}")
    if ends < 1:
        raise DataError(f"{path}: byte 26: expected at least one document end, found {ends}")
    size = HEADER.size + 12 * sequences + 8 * ends
    if index.size != size:
        counts = f"{sequences} sequences and {ends} document ends"
        where = f"{path}: byte {min(size, index.size)}"
        raise DataError(f"{where}: expected a file of {size} bytes for {counts}, found {index.size}")
    return code, sequences, ends
