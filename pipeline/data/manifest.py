"""`manifest.json` of a shard directory: what is in it, and whether it is still what was written.

    DIR/manifest.json   this file; its last field is a hash of everything before it
    DIR/tokenizer/      the tokenizer that made the ids
    DIR/NAME.bin .idx   the shards, in the order of the manifest

`quick_check` is what the trainer runs at its start: headers, sizes, manifest and tokenizer, never a body.
`preprocessing/verify_shards.py` reads everything.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.data.indexed import DTYPES, IndexedReader, ShardInfo, dtype_code
from pipeline.errors import DataError, UserError
from pipeline.files import write_atomically

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer"
_TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""Files that decide which ids a text gets. Anything else in a tokenizer directory may change freely."""


@dataclass(frozen=True)
class Manifest:
    """Contents of a shard directory.

    `source_hash` identifies what the shards were made from (input contents, tokenizer, shard size); `skipped`
    counts the documents left out, by reason.
    """

    source_hash: str
    tokenizer_fingerprint: str
    vocab_size: int
    skipped: dict[str, int]
    shards: tuple[ShardInfo, ...]
    format_version: int = FORMAT_VERSION

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def tokens_hash(self) -> str:
        """Hex SHA-256 that identifies the stream of tokens: all shards in order, bodies and indices."""
        return hashlib.sha256("".join(s.sha256_bin + s.sha256_idx for s in self.shards).encode()).hexdigest()

    def to_bytes(self) -> bytes:
        """The one way this manifest is written; two equal manifests are equal byte for byte."""
        fields = {
            "format_version": self.format_version,
            "source_hash": self.source_hash,
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
            "vocab_size": self.vocab_size,
            "documents": self.documents,
            "tokens": self.tokens,
            "skipped": dict(sorted(self.skipped.items())),
            "shards": [asdict(shard) for shard in self.shards],
        }
        content_hash = hashlib.sha256(json.dumps(fields).encode()).hexdigest()
        return (json.dumps({**fields, "content_hash": content_hash}, indent=1) + "\n").encode()

    def write(self, directory: Path) -> None:
        """Make the manifest appear whole in `directory`."""
        write_atomically(directory / MANIFEST_NAME, self.to_bytes())


def read_manifest(directory: Path) -> Manifest:
    """Read `directory`/manifest.json. UserError if there is none, DataError if a single byte of it changed."""
    path = directory / MANIFEST_NAME
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{directory}: no finished shard directory: it has no readable {MANIFEST_NAME}") from error
    try:
        manifest = _parse(json.loads(raw))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: byte {error.pos}: expected JSON, found an error: {error.msg}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: expected the fields of format version {FORMAT_VERSION}: {error!r}") from error
    expected = manifest.to_bytes()
    if raw != expected:
        at = next((i for i, pair in enumerate(zip(raw, expected, strict=False)) if pair[0] != pair[1]), len(expected))
        raise DataError(f"{path}: the content does not match its own hash; they part at byte {at}")
    return manifest


def tokenizer_fingerprint(directory: Path) -> str:
    """Hex SHA-256 over names and contents of the files that define the tokenizer in `directory`.

    DataError if it holds none.
    """
    digest = hashlib.sha256()
    files = [directory / name for name in _TOKENIZER_FILES] + list(directory.glob("*.model"))
    present = sorted((path for path in files if path.is_file()), key=lambda path: path.name)
    if not present:
        raise DataError(f"{directory}: expected the files of a tokenizer, found none")
    for path in present:
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def quick_faults(directory: Path, manifest: Manifest) -> Iterator[str]:
    """Yield one sentence for each disagreement of tokenizer, headers and sizes with the manifest."""
    try:
        if tokenizer_fingerprint(directory / TOKENIZER_NAME) != manifest.tokenizer_fingerprint:
            yield f"{directory / TOKENIZER_NAME}: is not the tokenizer that made these shards (its fingerprint differs)"
    except DataError as error:
        yield str(error)
    for shard in manifest.shards:
        try:
            yield from _shard_faults(IndexedReader(directory / shard.name), shard, manifest.vocab_size)
        except DataError as error:
            yield str(error)


def quick_check(directory: Path) -> Manifest:
    """Return the manifest of a shard directory that passes the checks that read no body, else DataError."""
    manifest = read_manifest(directory)
    for fault in quick_faults(directory, manifest):
        raise DataError(fault)
    return manifest


def _shard_faults(reader: IndexedReader, shard: ShardInfo, vocab_size: int) -> Iterator[str]:
    code = dtype_code(vocab_size)
    if reader.code != code:
        expected = f"dtype code {code} for a vocabulary of {vocab_size}"
        yield f"{reader.idx_path}: byte 17: expected {expected}, found {reader.code}"
    if len(reader) != shard.documents:
        yield f"{reader.idx_path}: byte 26: expected {shard.documents} documents, found {len(reader)}"
    if reader.token_count != shard.tokens:
        size = shard.tokens * DTYPES[code].itemsize
        yield f"{reader.bin_path}: expected {shard.tokens} tokens in {size} bytes, found {reader.token_count}"


def _parse(fields: dict[str, Any]) -> Manifest:
    if fields["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format version {fields['format_version']}")
    return Manifest(
        source_hash=fields["source_hash"],
        tokenizer_fingerprint=fields["tokenizer_fingerprint"],
        vocab_size=fields["vocab_size"],
        skipped=fields["skipped"],
        shards=tuple(ShardInfo(**shard) for shard in fields["shards"]),
    )
