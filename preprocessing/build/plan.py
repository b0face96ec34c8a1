"""The fixed list of tasks that any number of processes share.

The list depends on the inputs and the shard size only, never on the number of workers: that is what makes the
shards the same bytes for any number of them.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from preprocessing.readers.compressed import BZIP2, opening
from preprocessing.readers.documents import Piece
from preprocessing.readers.formats import FORMATS
from preprocessing.readers.specs import Source

BYTES_PER_TOKEN = 4
"""English text in a BERT vocabulary has 4.4 bytes per token: a task gives about one shard, seldom a little more."""
PLAN_VERSION = 3
"""Part of the source hash: raise it when the same inputs would give other shards than before."""
_SAMPLE = 1 << 16


@dataclass(frozen=True)
class Task:
    """Pieces that one process turns into shards; `index` is its place in the list and in the shards' names."""

    index: int
    pieces: tuple[Piece, ...]


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
        with opening(source.path):
            size, ends = source.path.stat().st_size, _hash_of_ends(source.path)
        digest.update(f"\n{source.format} {source.path.suffix} {size} {ends}".encode())
    return digest.hexdigest()


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
    if source.compression is None:
        return known.splittable
    return known.bz2_splittable and source.compression is BZIP2
