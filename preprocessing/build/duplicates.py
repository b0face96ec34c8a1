"""Exact duplicates: of documents with the same text, all but the first in the order of the input.

The digests of all tasks, 16 bytes a document, lie in files. They are gone through in as many rounds as keep memory
small, each looking only at the digests with a certain remainder. The result is one array of int64: tasks + 1 bounds,
and between bounds t and t + 1 the places, within task t, of its duplicates.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.files import write_atomically
from preprocessing.build.output import DIGEST_BYTES, digests_path, duplicates_path

_ROUND = 2_000_000
"""Documents of one round: 50 bytes of memory for each."""


def find_duplicates(output: Path, tasks: int) -> None:
    """Write the duplicates among the documents of all tasks, whose first pass is done."""
    # All documents are numbered through: task t has the numbers starts[t] to starts[t + 1] - 1, (tasks + 1,) int64.
    sizes = [digests_path(output, task).stat().st_size // DIGEST_BYTES for task in range(tasks)]
    starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    rounds = max(1, -(-int(starts[-1]) // _ROUND))
    found = [_duplicates_of_round(output, starts, rounds, part) for part in range(rounds)]
    # Each round gives its numbers in the order of their digests: sorted, those of a task lie together, and `bounds`
    # (tasks + 1,) says where. A document of another round has another digest, so no pair is missed.
    duplicates = np.sort(np.concatenate(found))
    bounds = np.searchsorted(duplicates, starts)
    places = duplicates - np.repeat(starts[:-1], np.diff(bounds))
    packed = io.BytesIO()
    # The bounds count from the start of the file's array, so that a task finds its places with two look-ups.
    np.save(packed, np.concatenate([bounds + len(starts), places]).astype(np.int64))
    write_atomically(duplicates_path(output), packed.getvalue())


def duplicates_of(output: Path, task: int, documents: int) -> np.ndarray:
    """Whether each of the `documents` of a task is a duplicate (documents,) bool."""
    found = np.load(duplicates_path(output), mmap_mode="r")
    flags = np.zeros(documents, dtype=bool)
    flags[found[found[task] : found[task + 1]]] = True
    return flags


def _duplicates_of_round(output: Path, starts: np.ndarray, rounds: int, part: int) -> np.ndarray:
    """Numbers, in the whole input, of the duplicates whose digest leaves the remainder `part`.

    A digest is a row of two uint64: digests (documents of the round, 2), places (documents of the round,).
    """
    digests, places = map(np.concatenate, zip(*_digests_of_round(output, starts, rounds, part), strict=True))
    # A stable sort: the first of equal digests is the first of the input.
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    same = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    return places[order[1:][same]]


def _digests_of_round(
    output: Path, starts: np.ndarray, rounds: int, part: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for task, start in enumerate(starts[:-1]):
        digests = np.fromfile(digests_path(output, task), dtype="<u8").reshape(-1, 2)
        chosen = np.flatnonzero(digests[:, 0] % np.uint64(rounds) == part)
        yield digests[chosen], chosen + start
