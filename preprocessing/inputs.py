"""From `FORMAT:PATH` to files, and from files to the fixed list of tasks that any number of processes share.

The list depends on the inputs and the shard size only, never on the number of workers: that is what makes the
shards the same bytes for any number of them.
"""

import glob
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pipeline.errors import UserError
from preprocessing.compressed import is_compressed
from preprocessing.pieces import Document, Piece
from preprocessing.readers import FORMATS, read_piece

# English text in a BERT vocabulary has 4.4 bytes per token: a task gives about one shard, seldom a little more.
BYTES_PER_TOKEN = 4
# Text compresses to a quarter (gzip, zstd) or less (xz); only the grouping of small files depends on it.
COMPRESSION = 4
# Part of the source hash: raise it when the same inputs would give other shards than before.
PLAN_VERSION = 2
_SAMPLE = 1 << 16

SPEC_HELP = (
    "FORMAT:PATH, PATH may be a glob; formats: text (a document per file), lines, jsonl, wikiextractor, mediawiki, "
    "and hub:NAME?config=C&split=S&field=F&revision=R"
)


@dataclass(frozen=True)
class Source:
    """One input and the format to read it in; for `hub:` the path is what stands behind the colon."""

    format: str
    path: Path

    @property
    def text_bytes(self) -> int:
        """Bytes of text: exact for a plain text file, an estimate for others."""
        size = self.path.stat().st_size * (COMPRESSION if is_compressed(self.path) else 1)
        return int(size * FORMATS[self.format].text_share)


@dataclass(frozen=True)
class Task:
    """Pieces that one process turns into shards; `index` is its place in the list and in the shards' names."""

    index: int
    pieces: tuple[Piece, ...]


def expand_specs(specs: Iterable[str]) -> list[Source]:
    """Files of the SPECs, in the order given, those of a glob sorted. UserError names what is wrong with a SPEC."""
    return [source for spec in specs for source in _expand(spec)]


def read_documents(specs: Iterable[str]) -> Iterator[Document]:
    """Every document of the SPECs in order."""
    for source in expand_specs(specs):
        yield from read_piece(Piece(source.format, str(source.path)))


def plan_tasks(sources: Iterable[Source], shard_tokens: int) -> list[Task]:
    """Cut the sources into tasks of about one shard: big plain files in ranges, small files together."""
    limit = shard_tokens * BYTES_PER_TOKEN
    tasks, group, group_bytes = list[Task](), list[Piece](), 0
    for piece, size in _pieces(sources, limit):
        if group and group_bytes + size > limit:
            tasks.append(Task(len(tasks), tuple(group)))
            group, group_bytes = [], 0
        group.append(piece)
        group_bytes += size
    if group:
        tasks.append(Task(len(tasks), tuple(group)))
    return tasks


def source_hash(sources: Iterable[Source], settings: str) -> str:
    """Hex SHA-256 of what decides the shards' bytes: the sources and, as `settings`, everything else.

    A file counts with its size and the hash of its first and last 64 KiB: the same corpus elsewhere or copied
    anew is the same source, and planning does not read terabytes.
    """
    digest = hashlib.sha256(f"{PLAN_VERSION} {settings}".encode())
    for source in sources:
        if identify := FORMATS[source.format].fingerprint:
            digest.update(f"\n{source.format} {identify(str(source.path))}".encode())
            continue
        try:
            size, ends = source.path.stat().st_size, _hash_of_ends(source.path)
        except OSError as error:
            raise UserError(f"{source.path}: cannot read: {error.strerror or error}") from error
        digest.update(f"\n{source.format} {source.path.suffix} {size} {ends}".encode())
    return digest.hexdigest()


def _expand(spec: str) -> list[Source]:
    name, colon, pattern = spec.partition(":")
    if not colon or name not in FORMATS:
        known = ", ".join(f"{known}:PATH" for known in FORMATS)
        raise UserError(f"input {spec!r} is not FORMAT:PATH with a known format; known are {known}")
    if FORMATS[name].count_shards is not None:
        return [Source(name, Path(pattern))]
    if Path(pattern).is_file():
        return [Source(name, Path(pattern))]
    if Path(pattern).is_dir():
        raise UserError(f"input {spec!r} is a directory; name its files, for example {name}:{pattern.rstrip('/')}/*")
    files = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())
    if not files:
        raise UserError(f"input {spec!r}: no such file")
    return [Source(name, path) for path in files]


def _hash_of_ends(path: Path) -> str:
    with open(path, "rb") as stream:
        head = stream.read(_SAMPLE)
        stream.seek(max(path.stat().st_size - _SAMPLE, 0))
        return hashlib.sha256(head + stream.read(_SAMPLE)).hexdigest()


def _pieces(sources: Iterable[Source], limit: int) -> Iterator[tuple[Piece, int]]:
    """Yield pieces with their size in bytes of text; what cannot be cut is one piece, a shard of no file a task."""
    for source in sources:
        path = str(source.path)
        if count_shards := FORMATS[source.format].count_shards:
            yield from ((Piece(source.format, path, shard, shard + 1), limit) for shard in range(count_shards(path)))
            continue
        size, text_bytes = source.path.stat().st_size, source.text_bytes
        parts = -(-text_bytes // limit) if _can_be_cut(source) else 1
        if parts <= 1:
            yield Piece(source.format, path), text_bytes
            continue
        bounds = [size * part // parts for part in range(parts + 1)]
        for start, end in pairwise(bounds):
            yield Piece(source.format, path, start, end), text_bytes // parts


def _can_be_cut(source: Source) -> bool:
    known = FORMATS[source.format]
    if is_compressed(source.path):
        return known.bz2_splittable and source.path.suffix == ".bz2"
    return known.splittable
